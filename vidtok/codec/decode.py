"""Decompress files of entropy-coded tokens, whole or in part, in memory independent of their length."""

import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from vidtok.codec.container import Chunk, CodecError, ContainerReader
from vidtok.codec.encode import Report, loaded
from vidtok.codec.entropy import entropy_model
from vidtok.codec.header import Header
from vidtok.codec.prior import prior_of
from vidtok.datasets import AudioPackets, VideoWriter
from vidtok.errors import UserError
from vidtok.extraction.videos import chunk_ids, decode_chunks
from vidtok.files import validate_output
from vidtok.hub import describe_weights, list_shipped
from vidtok.inputs import open_binary
from vidtok.tokenizer import VideoTokenizer

WARM_UP = 16  # latents that are decoded before the requested ones; no shipped decoder looks back further


def decompress(
    source: str | os.PathLike | BinaryIO,
    output: str | os.PathLike | None = None,
    *,
    model: str | VideoTokenizer | None = None,
    prior: str | os.PathLike | None = None,
    start: float = 0.0,
    end: float | None = None,
    salvage: bool = False,
    audio: bool = True,
    tile: int | None = None,
    device: str = "auto",
    precision: str = "fp32",
    force: bool = False,
    progress: Report = lambda frames: None,
) -> Tensor | int:
    """Decompress a `.vtk` file.

    Args:
        source: a path or address, or a binary file opened for reading, seekable.
        output: .mp4, .mov, .mkv, .gif or .png, written with the times of the frames (.gif: at the mean rate); None,
            return the frames.
        model: the tokenizer that made the file, as in `compress`; None, the shipped one that the file names.
        prior: file of the prior that the file was compressed with; None, the shipped one that the file names.
        start, end: range to decode, in seconds from the first frame; end None, to the last frame. Only the chunks of
            the range are read, and earlier ones that the decoder looks back to.
        salvage: decode the undamaged chunks of a damaged or unfinished file, and warn about missing ones, and about
            missing audio.
        audio: write the audio of the file beside the frames (.gif and .png: never). Its packets are those of the
            source; of a range, those that begin in it.
        tile: side of spatial tiles in pixels; None, the tiles that were encoded.
        device, precision, force: as in `compress`.
        progress: called with the number of frames of each decoded piece.

    Returns:
        float32 [1, 3, T, H, W] in [-1, 1]; with `output`, the number of frames written.

    Raises:
        CodecError: the file is not a `.vtk` file, damaged or cut off; the message names the chunk, or the audio.
        UserError: the output exists or can't be written, or a package or the model that made the file is missing.
        ValueError: the model isn't the one that made the file, the range has no frames, `output` can't hold the audio,
            or an illegal argument.
    """
    if not (start >= 0 and (end is None or end > start)):
        raise ValueError(f"want 0 <= start < end, not start={start} and end={end}")
    path = None if output is None else Path(output)
    if path is not None:
        validate_output(str(path), force)
    with ExitStack() as stack:
        file, name = source, "the file"
        if isinstance(file, str | os.PathLike):
            file, name = stack.enter_context(open_binary(file)), str(file)
        reader = ContainerReader(file, name, salvage)
        if not reader.entries:
            raise CodecError(f"{name}: no chunk is good")
        header = reader.header
        coder = entropy_model(header.entropy, prior_of(header, prior))
        tokenizer = _tokenizer_of(header, name, model, device, precision, tile or header.tile)
        frames = _Frames(reader, coder.decode, tokenizer, tile or header.tile, salvage)
        base = Fraction(*header.time_base)
        pieces = frames.between(start, end, base)
        first = next(pieces, None)
        if first is None:
            raise ValueError(f"{name}: no frames between {start:g} s and {'its end' if end is None else f'{end:g} s'}")
        count, parts, writer, origin = 0, [], None, int(first[1][0])
        if path is not None:
            sound = _open_audio(reader, float(origin * base), end, salvage) if audio else None
            if sound is not None:
                stack.callback(sound.close)
            path.parent.mkdir(parents=True, exist_ok=True)
            writer = stack.enter_context(VideoWriter(path, header.fps, base, sound, header.sar))
        for video, ticks in chain([first], pieces):
            if writer is None:
                parts.append(video.cpu())
            else:
                writer.write(video, (ticks - origin).tolist())
            count += video.shape[2]
            progress(video.shape[2])
    return torch.cat(parts, 2) if writer is None else count


def _open_audio(reader: ContainerReader, start: float, end: float | None, salvage: bool) -> AudioPackets | None:
    """Return the audio from `start` to `end`, in seconds; None if the file has none.

    Raises:
        CodecError: it is damaged; with `salvage`, a warning instead.
    """
    if not reader.audio_bytes:
        return None
    try:
        packets, lead = reader.open_audio()
        try:
            return AudioPackets(packets, start, end, lead=lead, whole=True)
        except ValueError as error:
            raise reader.bad_audio(error) from error
    except CodecError as error:
        if not salvage:
            raise
        warnings.warn(f"the audio is damaged and left out ({error.__cause__})", stacklevel=2)
        return None


class _Frames:
    """Decoder of a file, which yields frames with their ticks."""

    def __init__(
        self, reader: ContainerReader, decode: Callable, tokenizer: VideoTokenizer, tile: int | None, salvage: bool
    ):
        self._reader, self._decode, self._tokenizer = reader, decode, tokenizer
        self._tile, self._salvage = tile, salvage

    def between(self, start: float, end: float | None, base: Fraction) -> Iterator[tuple[Tensor, np.ndarray]]:
        """Yield the frames of start <= time < end (seconds): [1, 3, n, H, W] with their ticks [n]."""
        entries = self._reader.entries
        shown = [number for number, entry in entries.items() if end is None or float(entry.first_tick * base) < end]
        begin = max((number for number in shown if float(entries[number].first_tick * base) <= start), default=0)
        begin -= -(-WARM_UP // self._reader.header.chunk_latents)
        chunks = self._good_chunks([number for number in shown if number >= begin])
        for run in _consecutive(chunks):
            yield from _cut(self._decode_run(run, start, base), start, end, base)

    def _good_chunks(self, numbers: list[int]) -> Iterator[tuple[Chunk, np.ndarray]]:
        header = self._reader.header
        missing = [*self._reader.damaged]
        for number in numbers:
            try:
                chunk = self._reader.read(number)
                try:
                    ids = self._decode(chunk.tokens, (chunk.latents, *header.grid), header.bits, header.levels)
                except ValueError as error:
                    raise self._reader.bad_chunk(number, error) from error
            except CodecError:
                if not self._salvage:
                    raise
                missing.append(number)
                continue
            yield chunk, ids
        if missing:
            warnings.warn(f"damaged chunks are left out: {', '.join(map(str, sorted(missing)))}", stacklevel=2)
        if not self._reader.complete:
            last = max(self._reader.entries)
            lost = ", and its audio is lost" if "audio" in self._reader.header.source else ""
            warnings.warn(f"the file is unfinished or cut off after chunk {last}{lost}", stacklevel=2)

    def _decode_run(
        self, run: Iterator[tuple[Chunk, np.ndarray]], start: float, base: Fraction
    ) -> Iterator[tuple[Tensor, np.ndarray]]:
        """Decode consecutive chunks: yield their frames without padding, and the frames' ticks.

        Latents of the first chunk that the decoder doesn't need for frames from `start` on (seconds) are skipped.
        """
        header = self._reader.header
        ticks = np.zeros(0, np.int64)  # ticks of frames that have not been decoded yet
        first = True

        def ids() -> Iterator[Tensor]:
            nonlocal ticks, first
            for chunk, tokens in run:
                shown = chunk.ticks
                if first:
                    early = int((shown * float(base) < start).sum())
                    skipped = max(early // header.stride[0] - WARM_UP, 0)
                    if skipped:
                        shown = shown[header.frames_of(chunk.number, skipped) :]
                    if chunk.number or skipped:
                        # The first latent of a stream decodes to one frame, which is dropped; all others are complete.
                        tokens = np.concatenate([tokens[skipped : skipped + 1], tokens[skipped:]])
                        ticks = np.array([-1])
                first = False
                ticks = np.concatenate([ticks, shown])
                yield from chunk_ids(tokens)

        height, width = header.size
        for video in decode_chunks(self._tokenizer, ids(), self._tile):
            now, ticks = ticks[: video.shape[2]], ticks[video.shape[2] :]
            skip = int(len(now) > 0 and now[0] == -1)
            if len(now) > skip:
                yield video[:, :, skip : len(now), :height, :width], now[skip:]


def _consecutive(chunks: Iterator[tuple[Chunk, np.ndarray]]) -> Iterator[Iterator[tuple[Chunk, np.ndarray]]]:
    """Split chunks into runs without gaps. A run must be exhausted before the next one is requested."""
    waiting = next(chunks, None)

    def run() -> Iterator[tuple[Chunk, np.ndarray]]:
        nonlocal waiting
        while waiting is not None:
            chunk, ids = waiting
            yield chunk, ids
            waiting = next(chunks, None)
            if waiting is not None and waiting[0].number != chunk.number + 1:
                return

    while waiting is not None:
        yield run()


def _cut(
    pieces: Iterator[tuple[Tensor, np.ndarray]], start: float, end: float | None, base: Fraction
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Keep the frames of start <= time < end, in seconds."""
    for video, ticks in pieces:
        seconds = np.array([float(tick * base) for tick in ticks.tolist()])
        keep = (seconds >= start) & (seconds < (math.inf if end is None else end))
        if keep.any():
            yield video[:, :, torch.from_numpy(keep)], ticks[keep]


def _tokenizer_of(
    header: Header, name: str, model: str | VideoTokenizer | None, device: str, precision: str, tile: int | None
) -> VideoTokenizer:
    """Return the tokenizer of a file. Raises ValueError if the given one didn't make the file."""
    made = f"{name}: made by {header.model!r} with {describe_weights(header.weight_hash)}"
    if model is None:
        # Names come from untrusted files, so only shipped models are loaded by name, and nothing is downloaded.
        if header.model not in list_shipped():
            raise UserError(f"{made}, which vidtok doesn't ship: give that model")
        model = header.model
    tokenizer, _ = loaded(model, device, precision, tile)
    facts = tokenizer.weight_hash, math.ceil(tokenizer.bits), tuple(tokenizer.stride)
    if facts != (header.weight_hash, header.bits, header.stride):
        raise ValueError(f"{made}, and the model given has weights {facts[0]}: give the one that made it")
    return tokenizer
