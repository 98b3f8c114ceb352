"""From a video to what the encoder takes: pieces of a few latents, in order, in bounded memory.

Runs in the decode processes.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from vidtok.datasets import MovingDigits, VideoError, frames_to_video, iter_video
from vidtok.datasets.resample import indices_at, resample_indices
from vidtok.datasets.selection import read_selection
from vidtok.datasets.transforms import centre_crop, resize_short_side, three_crops
from vidtok.extract.clips import Clips
from vidtok.extract.plan import Item
from vidtok.padding import pad_chunks

CLIPS_AT_ONCE = 8  # decoded together, to be held in memory


@dataclass(frozen=True)
class Reading:
    """How videos are read.

    stride: of the model, (frames, rows, columns) per token. size: short side to resize to in pixels, or None, native.
    crop: None, all of the picture; "centre", or with clips "three", squares of `size`. clips: None, the whole video,
    fps: at that rate (None: native), max_frames: cut there.
    """

    stride: tuple[int, int, int]
    size: int | None = None
    crop: str | None = None
    fps: float | None = None
    max_frames: int | None = None
    clips: Clips | None = None

    def __post_init__(self):
        if self.crop not in (None, "centre", "three"):
            raise ValueError(f"crop={self.crop!r} is not 'centre' or 'three'")
        if self.crop is not None and self.size is None:
            raise ValueError(f"a {self.crop} crop needs a size")
        if self.crop == "three" and self.clips is None:
            raise ValueError("three crops are taken of clips, not of whole videos")
        if self.clips is not None and self.max_frames is not None:
            raise ValueError("max_frames cuts whole videos, not clips")


@dataclass(frozen=True)
class Info:
    """What is known of a stream at its end; for the names see `vidtok.extract.record.RecordMeta`."""

    fps: float
    size: tuple[int, int]
    native_size: tuple[int, int]
    native_fps: float
    reader: str
    source_bytes: int | None
    timestamps: np.ndarray
    clips: int | None


class Piece(NamedTuple):
    """A part of a stream; a stream is a whole video, or clip number `clip` of one.

    video: float32 [1, 3, T, H, W] in [-1, 1], T = 1 + s_t n for the first piece, s_t n for others, padded as
    `vidtok.padding` says. info: with the last piece.
    """

    video: Tensor
    clip: int | None
    first: bool
    info: Info | None

    @property
    def ends_item(self) -> bool:
        return self.info is not None and (self.info.clips is None or self.clip == self.info.clips - 1)


def read_pieces(item: Item, reading: Reading) -> Iterator[Piece]:
    """All of a video. Raises `VideoError` where it can't be read, for whatever reason: one in a million must not end
    the run for all others."""
    try:
        if item.digit is not None:
            yield from _digit(item.digit, reading)
        elif reading.clips is None:
            yield from _whole(item.path, reading)
        else:
            yield from _clips(item.path, reading)
    except VideoError:
        raise
    except Exception as error:
        raise VideoError(str(item), f"{type(error).__name__}: {error}") from error


def _whole(path: str, reading: Reading) -> Iterator[Piece]:
    size = reading.size if reading.crop is None else (reading.size, reading.size)
    with iter_video(path, reading.fps, size, multiple=1) as stream:

        def info() -> Info:
            times = stream.timestamps[: reading.max_frames]
            native = (tuple(stream.native_size), stream.native_fps)
            return Info(stream.fps, tuple(stream.size), *native, stream.backend, Path(path).stat().st_size, times, None)

        yield from _pieces(_cut(stream, reading.max_frames), reading, None, info)


def _clips(path: str, reading: Reading) -> Iterator[Piece]:
    known: dict = {}

    def choose(timestamps: np.ndarray, fps: float, start: int) -> np.ndarray:
        indices = indices_at(timestamps, reading.clips.times(timestamps[-1] + 1 / fps, fps))
        known.update(count=len(indices), fps=fps)
        return indices[start : start + CLIPS_AT_ONCE]

    start = 0
    while start < known.get("count", 1):
        frames_VTHWC, timestamps_VT = read_selection(path, partial(choose, start=start))
        for i, (frames_THWC, times) in enumerate(zip(frames_VTHWC, timestamps_VT, strict=True), start):
            source = (known["fps"], "pyav", Path(path).stat().st_size)
            yield from _crops(frames_to_video(frames_THWC), times, reading, i, known["count"], *source)
        start += CLIPS_AT_ONCE


def _digit(digit: tuple[str, int, int], reading: Reading) -> Iterator[Piece]:
    split, number, seed = digit
    dataset = _digits(split, seed, reading.size)
    sample = dataset[number]
    video_CTHW, timestamps, fps = sample.video[0], sample.timestamps[0].numpy(), dataset.fps
    if reading.clips is None:
        indices = np.arange(len(timestamps)) if reading.fps is None else resample_indices(timestamps, reading.fps)
        indices_VT = indices[None, : reading.max_frames]
    else:
        indices_VT = indices_at(timestamps, reading.clips.times(timestamps[-1] + 1 / fps, fps))
    for i, indices in enumerate(indices_VT):
        times = timestamps[indices]
        yield from _crops(video_CTHW[:, indices], times, reading, i, len(indices_VT), fps, "digits", None)


@lru_cache(maxsize=64)
def _digits(split: str, seed: int, size: int | None) -> MovingDigits:
    """Made at the size that is asked for: as whoever trains on digits sees them, and not blurred by resizing."""
    return MovingDigits(split, seed=seed) if size is None else MovingDigits(split, size=size, seed=seed)


def _crops(
    video_CTHW: Tensor,
    times: np.ndarray,
    reading: Reading,
    number: int,
    count: int,
    native_fps: float,
    reader: str,
    source_bytes: int | None,
) -> Iterator[Piece]:
    """The pieces of one clip, or of several crops of it; of a whole video, where there are no clips."""
    native_size = tuple(video_CTHW.shape[-2:])
    views = video_CTHW[None] if reading.size is None else resize_short_side(video_CTHW[None], reading.size)
    if reading.crop is not None:
        views = (centre_crop if reading.crop == "centre" else three_crops)(views, reading.size)
    span = times[-1] - times[0]
    fps = float((len(times) - 1) / span) if span > 0 else native_fps
    clips = None if reading.clips is None else count * len(views)
    info = Info(fps, tuple(views.shape[-2:]), native_size, native_fps, reader, source_bytes, times, clips)
    for i, view in enumerate(views):
        clip = None if clips is None else number * len(views) + i
        yield from _pieces([view[None]], reading, clip, lambda: info)


def _pieces(chunks: Iterable[Tensor], reading: Reading, clip: int | None, info: Callable[[], Info]) -> Iterator[Piece]:
    held, first = None, True
    for video in pad_chunks(chunks, reading.stride):
        if held is not None:
            yield Piece(held, clip, first, None)
            first = False
        held = video
    yield Piece(held, clip, first, info())


def _cut(chunks: Iterable[Tensor], max_frames: int | None) -> Iterator[Tensor]:
    """The first `max_frames` frames."""
    left = max_frames
    for chunk in chunks:
        yield chunk if left is None else chunk[:, :, :left]
        if left is not None:
            left -= chunk.shape[2]
            if left <= 0:
                return


def next_piece(job: tuple[Item, int], reading: Reading) -> Piece | None:
    """Piece number k of an item, in a decode process, which is asked for them in order; None after the last."""
    item, k = job
    if k == 0:
        _open[:] = [(item, read_pieces(item, reading))]
    if not _open or _open[0][0] != item:
        return None
    return next(_open[0][1], None)


_open: list[tuple[Item, Iterator[Piece]]] = []  # what this process is at
