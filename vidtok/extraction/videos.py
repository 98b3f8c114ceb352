"""One video through a tokenizer in bounded memory: what `encode`, `decode` and `reconstruct` are made of.

How far bf16 gives the tokens of fp32: a rounded latent near zero may fall on the other side.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vidtok import streaming
from vidtok.checks import check_memory
from vidtok.datasets import iter_video
from vidtok.extraction.output import make_settings
from vidtok.extraction.record import Record, RecordMeta, id_type
from vidtok.streaming import LATENTS, coded_size, pad_chunks
from vidtok.tokenizer import VideoTokenizer


class Source:
    """Iterates once over all pixels of a video, float32 [1, 3, any, H, W] in [-1, 1].

    Args:
        path: the video.
        size: short side to resize to, pixels; None, native. fps: resample by time; None, native.
        max_frames: stop after so many.
        count: called with the number of frames of each chunk.

    Attributes:
        frames: read so far.
        stream: the `VideoStream` behind it.
    """

    def __init__(
        self,
        path: Path,
        size: int | None = None,
        fps: float | None = None,
        max_frames: int | None = None,
        count: Callable[[int], None] = lambda frames: None,
    ):
        self.resize, self.fps, self.max_frames, self.count = size, fps, max_frames, count
        self.stream = iter_video(path, fps=fps, size=size, multiple=1)
        self.frames = 0

    def __iter__(self) -> Iterator[Tensor]:
        for chunk in self.stream:
            if self.max_frames is not None:
                chunk = chunk[:, :, : self.max_frames - self.frames]
            self.frames += chunk.shape[2]
            self.count(chunk.shape[2])
            yield chunk
            if self.frames == self.max_frames:
                return

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *exc: object) -> None:
        self.stream.close()

    def record(self, tokenizer: VideoTokenizer, ids: np.ndarray, precision: str, tile: int | None) -> Record:
        """The tokens [t, h, w] of this video, once it is read to its end, with all that is known about them."""
        requested = {"resize": self.resize, "resample": self.fps, "max_frames": self.max_frames, "tile": tile}
        settings = make_settings(tokenizer, precision=precision, **requested)
        meta = RecordMeta(
            **asdict(settings),
            fps=self.stream.fps,
            frames=self.frames,
            size=tuple(self.stream.size),
            coded_size=coded_size(self.stream.size, tokenizer.stride),
            native_size=tuple(self.stream.native_size),
            native_fps=self.stream.native_fps,
            source=self.stream.path.name,
            source_bytes=self.stream.path.stat().st_size,
            reader=self.stream.backend,
            bytes_per_token=float(ids.itemsize),
        )
        return Record(self.stream.path.name, None, None, ids, self.stream.timestamps[: self.frames], meta)


class Echo:
    """Passes the chunks of a video on and keeps them until they are taken."""

    def __init__(self, chunks: Iterable[Tensor]):
        self.chunks = chunks
        self.kept: list[Tensor] = []

    def __iter__(self) -> Iterator[Tensor]:
        for chunk in self.chunks:
            self.kept.append(chunk)
            yield chunk

    def take(self, frames: int) -> Tensor:
        """The next `frames` frames, or what is left: [1, 3, up to frames, H, W]."""
        video = torch.cat(self.kept, 2)
        self.kept = [video[:, :, frames:]]
        return video[:, :, :frames]


def encode_chunks(tokenizer: VideoTokenizer, chunks: Iterable[Tensor], tile: int | None) -> Iterator[Tensor]:
    """int64 ids [1, any, h, w] of the chunks of one video of any length and size, padded by `pad_chunks`.

    Raises:
        MemoryError: where a chunk can't fit the memory at hand; with tiles it isn't asked.
    """
    padded = pad_chunks(chunks, tokenizer.stride)
    if tile is None:
        padded = map(lambda chunk: _fits(tokenizer, tokenizer.encoder, chunk, (1, 1, 1)), padded)
    return streaming.stream_encode(tokenizer, padded, tile)


def decode_chunks(tokenizer: VideoTokenizer, ids: Iterable[Tensor], tile: int | None) -> Iterator[Tensor]:
    """float32 [1, 3, any, s_h h, s_w w] in [-1, 1] of int64 ids [1, any, h, w], padding included; raises as above."""
    if tile is None:
        ids = map(lambda chunk: _fits(tokenizer, tokenizer.decoder, chunk, tokenizer.stride), ids)
    return streaming.stream_decode(tokenizer, ids, tile)


def _fits(tokenizer: VideoTokenizer, net: nn.Module, chunk: Tensor, stride: tuple[int, int, int]) -> Tensor:
    check_memory(net, chunk.shape, stride, tokenizer.device, tokenizer.dtype)
    return chunk


def collect_ids(ids: Iterable[Tensor], bits: float) -> np.ndarray:
    """ids [1, any, h, w] joined to [t, h, w] in the type that a token file stores."""
    return np.concatenate([part[0].cpu().numpy().astype(id_type(bits)) for part in ids])


def chunk_ids(ids: np.ndarray) -> Iterator[Tensor]:
    """[t, h, w] as int64 [1, n, h, w], a few latents at a time."""
    for start in range(0, len(ids), LATENTS):
        yield torch.from_numpy(ids[start : start + LATENTS].astype(np.int64))[None]


VIDEOS = 8  # whose first frames are encoded twice; more would cost time and say nothing new


class Agreement:
    """Bits and tokens that two tokenizers agree on, over the beginnings of the first `VIDEOS` videos."""

    def __init__(self, tokenizer: VideoTokenizer, reference: VideoTokenizer):
        self.tokenizer, self.reference = tokenizer, reference
        self.bits = math.ceil(tokenizer.bits)
        self.videos = self.frames = self.tokens = self.same_tokens = self.other_bits = 0

    def add(self, path: Path, size: int | None, fps: float | None, tile: int | None) -> None:
        if self.videos == VIDEOS:
            return
        with Source(path, size, fps) as source:
            clip = next(pad_chunks(source, self.tokenizer.stride))
        differ = self.tokenizer.encode(clip, tile=tile) ^ self.reference.encode(clip, tile=tile)
        self.videos += 1
        self.frames += clip.shape[2]
        self.tokens += differ.numel()
        self.same_tokens += int((differ == 0).sum())
        places = torch.arange(self.bits, device=differ.device)
        self.other_bits += int((differ[..., None] >> places & 1).sum())

    def __str__(self) -> str:
        bits = 1 - self.other_bits / (self.tokens * self.bits)
        return (
            f"bf16 against fp32: {bits:.2%} of bits and {self.same_tokens / self.tokens:.2%} of tokens agree "
            f"({self.frames} frames of {self.videos} videos)"
        )
