"""Compress videos to files of entropy-coded tokens, in memory independent of their length.

There are three independent layers: the tokenizer encodes frames to ids, an entropy model (`vidtok.codec.entropy`) codes
ids as bytes, and the container (`vidtok.codec.container`) stores the bytes in chunks.
"""

import math
import os
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from vidtok.checks import check_counts, check_memory, check_video
from vidtok.codec.container import CHUNK_BYTES, Chunk, ContainerWriter, pack_ticks
from vidtok.codec.entropy import EntropyModel, entropy_model, validate_entropy
from vidtok.codec.header import MAX_CHUNK_FRAMES, MAX_CHUNK_TOKENS, Header
from vidtok.codec.prior import Prior, find_prior
from vidtok.codec.source import FileSource, TensorSource
from vidtok.datasets.frames import OnError
from vidtok.extraction.model import load_tokenizer
from vidtok.files import replacing, validate_output
from vidtok.nets.layers import State
from vidtok.quantize import LFQ
from vidtok.remote import as_address
from vidtok.streaming import encode_tiles, pad_chunks
from vidtok.tokenizer import VideoTokenizer

CHUNK = 64  # latents
QUALITIES = [100.0, *np.geomspace(97, 1, 31).round(1).tolist()]  # candidates for `bpp`
HALF = 0.25  # threshold of quality 50, in units of the latents

Report = Callable[[int], None]


@dataclass(frozen=True)
class CompressionStats:
    """Sizes and duration of one compression.

    Attributes:
        frames, chunks: number of frames and chunks in the file.
        tokens: number of tokens, including those of padding.
        bytes: size of the file. token_bytes: size of its coded tokens.
        raw_bytes: size of the tokens as packed bits, without the container.
        pixels: number of pixels of all frames, without padding.
        quality: mean over chunks.
        seconds: wall-clock time.
        audio_bytes: size of the audio in the file; bits per pixel don't count it.
    """

    frames: int
    chunks: int
    tokens: int
    bytes: int
    token_bytes: int
    raw_bytes: int
    pixels: int
    quality: float
    seconds: float
    audio_bytes: int = 0

    def __str__(self) -> str:
        size = self.bytes - self.audio_bytes
        saved = 1 - size / self.raw_bytes
        audio = f" ({self.audio_bytes} of them audio)" if self.audio_bytes else ""
        quality = "" if self.quality == 100 else f" at quality {self.quality:.0f}"
        return (
            f"{self.frames} frames to {self.bytes} bytes{audio}{quality}, {8 * size / self.pixels:.4f} bits per pixel, "
            f"{saved:.1%} less than packed tokens, {self.frames / self.seconds:.1f} frames/s"
        )


def compress(
    video: str | os.PathLike | Tensor,
    output: str | os.PathLike | BinaryIO,
    *,
    model: str | VideoTokenizer = "vidtok-t",
    entropy: str = "adaptive",
    prior: str | os.PathLike | None = None,
    quality: float = 100,
    bpp: float | None = None,
    size: int | None = None,
    fps: float | None = None,
    max_frames: int | None = None,
    tile: int | None = None,
    chunk_latents: int = CHUNK,
    audio: bool = False,
    reader: str = "auto",
    on_error: OnError = "raise",
    device: str = "auto",
    precision: str = "fp32",
    force: bool = False,
    progress: Report = lambda frames: None,
) -> CompressionStats:
    """Compress a video to a `.vtk` file, see `vidtok.codec.container` for its format.

    The file is written chunk by chunk. If the process is killed, `decompress` with `salvage` decodes complete chunks.
    A file that is overwritten stays as it was until the new one is complete.

    Args:
        video: a file; or float [1, 3, T, H, W] in [-1, 1] of any length and size.
        output: a path, or a binary file opened for writing. A file at an address such as s3://bucket/clip.vtk is
            written on this machine and uploaded at the end.
        model: shipped name, folder or hub id of a tokenizer; or a loaded one, which brings its device and precision.
        entropy: "adaptive"; "prior", which takes fewer bytes and more time; or "raw" for packed bits.
        prior: file of the prior of a tokenizer that isn't shipped; None, the shipped one.
        quality: above 0, at most 100. 100 keeps the tokens unchanged. Below 100, a bit is copied from the previous
            latent where the latent's value is near zero, since "adaptive" codes changes. For LFQ tokenizers only.
        bpp: upper bound of the file's bits per pixel; each chunk gets the best quality that fits. Pixels are those of
            the coded frames, after `size` and `fps`. Audio doesn't count. None, `quality` applies.
        size: short side to resize a file to, in pixels; None, native.
        fps: frames per second to resample a file to; None, native. For a tensor, its frame rate (None: 30).
        max_frames: largest number of frames; None, all.
        tile: side of spatial tiles in pixels, for frames too large for memory.
        chunk_latents: latents per chunk. Chunks are coded independently: long chunks take fewer bytes, short chunks
            make seeking faster.
        audio: copy the first audio track of a file without reencoding; `decompress` writes the same packets beside the
            frames. If `max_frames` cuts the video, the audio ends with it. A file without audio gives a warning.
        reader, on_error: see `vidtok.datasets.open_video`; "keep" warns about damage.
        device, precision: as in `VideoTokenizer.from_pretrained`; device "auto" is a GPU if there is one.
        force: overwrite an existing path.
        progress: called with the number of frames of each piece that was read.

    Returns:
        Sizes and duration.

    Raises:
        ValueError: an illegal argument.
        UserError: the output exists or can't be written, there is no prior, or the package constriction is missing,
            which all entropy models but "raw" need.
        VideoError: the video can't be read. An incomplete file at a path is removed; an open file is left as it is.
    """
    began = time.monotonic()
    validate_entropy(entropy)
    if prior is not None and entropy != "prior":
        raise ValueError("a prior is for entropy='prior'")
    _check_rate(quality, bpp, entropy)
    check_counts(chunk_latents=chunk_latents, max_frames=1 if max_frames is None else max_frames)
    if isinstance(video, Tensor) and size is not None:
        raise ValueError("size resizes files: resize the tensor before")
    if isinstance(video, Tensor) and audio:
        raise ValueError("a tensor has no audio: give a file, or leave audio out")
    path = Path(output) if isinstance(output, str | os.PathLike) else None
    if path is not None:
        validate_output(str(path), force, remote=True)
        if not isinstance(video, Tensor) and path.exists() and Path(video).exists() and path.samefile(video):
            raise ValueError(f"{path} is the input: give another output")
    tokenizer, precision = loaded(model, device, precision, tile)
    network = find_prior(tokenizer.config.name, tokenizer.weight_hash, file=prior) if entropy == "prior" else None
    coder = entropy_model(entropy, network)
    held = bpp is not None or quality < 100
    if held and not isinstance(tokenizer.quantizer, LFQ):
        raise ValueError(f"quality and bpp are for LFQ tokenizers, and {tokenizer.config.name} is none")
    with ExitStack() as stack:
        stack.enter_context(_naming_errors(output))
        source: FileSource | TensorSource
        if isinstance(video, Tensor):
            source = TensorSource(video, 30 if fps is None else fps, max_frames, progress)
        else:
            source = FileSource(Path(video), size, fps, max_frames, reader, on_error, progress, audio)
        stack.callback(source.close)
        header = _make_header(tokenizer, source, precision, entropy, network, tile, chunk_latents)
        file = output
        if isinstance(file, str | os.PathLike):
            if as_address(file) is not None or Path(file).is_file():
                path = stack.enter_context(replacing(file))
            else:
                Path(file).parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(Path(path or file).open("wb"))
        try:
            writer = ContainerWriter(file, header)
            tokens, token_bytes, qualities = 0, 0, []
            grids = _encode(tokenizer, source, tile, held)
            for number, grid in enumerate(_regroup(grids, header.chunk_latents)):
                # The encoder reads ahead, so only the last chunk, which is padded, ends at `source.frames`.
                first, latents = writer.frames, grid.shape[-3]
                ticks = source.ticks(first, min(first + header.frames_of(number, latents), source.frames))
                budget = None
                if bpp is not None:
                    pixels = (first + len(ticks)) * math.prod(source.size)
                    budget = bpp * pixels / 8 - writer.expected_bytes - CHUNK_BYTES - len(pack_ticks(ticks))
                data, used = _code(grid, tokenizer, coder, header, quality, budget)
                writer.add(Chunk(number, latents, ticks, data))
                tokens += latents * math.prod(header.grid)
                token_bytes += len(data)
                qualities.append(used)
            if source.lead is not None:
                # The length of the audio stands before it, and `file` may be a pipe.
                with TemporaryFile(dir=None if path is None else path.parent) as packets:
                    source.copy_audio(packets)
                    writer.add_audio(packets, source.lead)
            writer.finish()
            if source.error is not None:
                warnings.warn(str(source.error), stacklevel=2)
        except Exception:
            if path is not None and path.is_file():  # not a device
                path.unlink()
            raise
    stats = CompressionStats(
        frames=writer.frames,
        chunks=len(writer.entries),
        tokens=tokens,
        bytes=writer.bytes_written,
        token_bytes=token_bytes,
        raw_bytes=-(-tokens * header.bits // 8),
        pixels=writer.frames * math.prod(source.size),
        quality=float(np.mean(qualities)),
        seconds=time.monotonic() - began,
        audio_bytes=writer.audio_bytes,
    )
    if bpp is not None and (least := 8 * (stats.bytes - stats.audio_bytes) / stats.pixels) > 1.02 * bpp:
        message = f"no fewer than {least:.4f} bits per pixel at this size: give a smaller size or fps"
        warnings.warn(message, stacklevel=2)
    return stats


@contextmanager
def _naming_errors(output: object) -> Iterator[None]:
    """Add the output's name to errors that have none, such as those of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(output)
        raise


def _check_rate(quality: float, bpp: float | None, entropy: str) -> None:
    if not 0 < quality <= 100:
        raise ValueError(f"quality={quality} must be above 0 and at most 100")
    if bpp is None:
        return
    if not bpp > 0:
        raise ValueError(f"bpp={bpp} must be above 0")
    if quality != 100 or entropy == "raw":
        raise ValueError("bpp chooses the quality, and packed bits take the same at each: give bpp or one of these")


def _encode(tokenizer: VideoTokenizer, frames: Iterable[Tensor], tile: int | None, latents: bool) -> Iterator[Tensor]:
    """Encode chunks of a video of any length and size, padded by `pad_chunks`.

    Yields:
        int64 ids [any, h, w]; with `latents`, float32 [D, any, h, w] before quantization, D encoder channels.

    Raises:
        MemoryError: a chunk doesn't fit into the available memory; not checked with tiles.
    """
    quantizer = tokenizer.quantizer
    states: defaultdict[int, State] = defaultdict(dict)  # by number of the tile
    for chunk in pad_chunks(frames, tokenizer.stride):
        check_video(chunk, tokenizer.stride, any_length=True)
        chunk = chunk.to(tokenizer.device)
        if tile is None:
            check_memory(tokenizer.encoder, chunk.shape, (1, 1, 1))
            z_BKthw = tokenizer.encode_chunk(chunk, states[0])
        else:
            z_BKthw = encode_tiles(_tile_encoder(tokenizer, states), chunk, tile, tokenizer.stride[1:])
        yield z_BKthw[0, : quantizer.in_channels] if latents else quantizer.codes_to_ids(z_BKthw)[0]


def _tile_encoder(tokenizer: VideoTokenizer, states: defaultdict[int, State]) -> Callable[[Tensor], Tensor]:
    """Return a function that encodes the tiles of one chunk in order, each with the state of its position."""
    place = count()
    return lambda part: tokenizer.encode_chunk(part, states[next(place)])


def _code(
    grid: Tensor, tokenizer: VideoTokenizer, coder: EntropyModel, header: Header, quality: float, budget: float | None
) -> tuple[bytes, float]:
    """Code a chunk.

    Args:
        grid: output of `_encode`.
        quality: quality of latents without a budget. budget: largest number of bytes; the best of `QUALITIES` that fits
            is found by bisection, or the lowest is taken if none fits.

    Returns:
        (coded tokens, their quality).
    """

    @cache
    def code(value: float) -> bytes:
        if grid.ndim == 3:
            return coder.encode(grid.numpy(), header.bits, header.levels)
        quantizer = tokenizer.quantizer
        ids = quantizer.codes_to_ids(quantizer.hold(grid[None], HALF * (100 / value - 1)))
        return coder.encode(ids[0].numpy(), header.bits, header.levels)

    if budget is None:
        return code(quality), quality
    best, worst = 0, len(QUALITIES) - 1
    while best < worst:
        middle = (best + worst) // 2
        if len(code(QUALITIES[middle])) <= budget:
            worst = middle
        else:
            best = middle + 1
    return code(QUALITIES[best]), QUALITIES[best]


def _regroup(parts: Iterator[Tensor], latents: int) -> Iterator[Tensor]:
    """Regroup [..., any, h, w] into [..., latents, h, w] on the CPU; the last one may have fewer."""
    held: list[Tensor] = []
    waiting = 0
    for part in parts:
        held.append(part.cpu())
        waiting += part.shape[-3]
        while waiting >= latents:
            joined = torch.cat(held, -3)
            yield joined[..., :latents, :, :]
            held, waiting = [joined[..., latents:, :, :]], waiting - latents
    if waiting:
        yield torch.cat(held, -3)


def _make_header(
    tokenizer: VideoTokenizer,
    source: FileSource | TensorSource,
    precision: str,
    entropy: str,
    prior: Prior | None,
    tile: int | None,
    chunk: int,
) -> Header:
    s_t, s_h, s_w = tokenizer.stride
    tokens = -(-source.size[0] // s_h) * -(-source.size[1] // s_w)
    return Header(
        model=tokenizer.config.name,
        weight_hash=tokenizer.weight_hash,
        precision=precision,
        bits=math.ceil(tokenizer.bits),
        levels=tokenizer.quantizer.levels if isinstance(tokenizer.quantizer, LFQ) else 1,
        stride=tuple(tokenizer.stride),
        entropy=entropy,
        chunk_latents=max(min(chunk, MAX_CHUNK_TOKENS // tokens, MAX_CHUNK_FRAMES // s_t), 1),
        size=source.size,
        fps=source.fps,
        time_base=(source.time_base.numerator, source.time_base.denominator),
        tile=tile,
        source=source.description,
        prior=None if prior is None else prior.hash,
    )


def loaded(model: str | VideoTokenizer, device: str, precision: str, tile: int | None) -> tuple[VideoTokenizer, str]:
    """Load a tokenizer unless it is loaded already; return (tokenizer, precision)."""
    if isinstance(model, VideoTokenizer):
        return model, "bf16" if model.dtype == torch.bfloat16 else "fp32"
    return load_tokenizer(model, device, precision, tile), precision
