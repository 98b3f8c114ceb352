"""Decoding: read a video as chunks of a few latents each, in order and in bounded memory.

This code runs in the decode processes.
"""

import math
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from torch import Tensor

from vidtok.datasets import DecodePool, MotionTasks, MovingDigits, VideoError, VideoStream, probe_video
from vidtok.datasets.backends import VideoReader, open_video, reader_name
from vidtok.datasets.container import cached_timeline
from vidtok.datasets.frames import Chunk, OnError, Size, View, indices_at, plan_view, resample_indices
from vidtok.datasets.samplers import Segment, choose_at_times, choose_in_segment, frames_of_segment, segment_error
from vidtok.datasets.seek import Choose, ChooseView, read_selection, read_windows, select_frames
from vidtok.datasets.transforms import three_crops
from vidtok.errors import nearest
from vidtok.extraction.sources import Clips, Rendered, WorkItem, open_tasks
from vidtok.inputs import file_version
from vidtok.streaming import LATENTS, as_video, as_videos, pad_chunks

CROPS = ("center", "three")
CLIPS_AT_ONCE = 8  # clips decoded together and held in memory
FRAMES_AT_ONCE = 32  # frames of a segment read together


@dataclass(frozen=True)
class ReadConfig:
    """Settings for reading videos.

    Args:
        stride: of the model, (frames, rows, columns) per token.
        size: short side to resize to in pixels; None, native.
        crop: "center", or with clips "three": squares of `size`. None: no crop.
        fps: frame rate to resample whole videos to; None, native.
        max_frames: length at which whole videos are cut; None, none.
        clips: the clips to read; None, the whole video.
        reader: see `vidtok.datasets.open_video`.
        on_error: for damaged videos, "raise", or "keep" to leave out the damaged frames. With "keep" the whole video is
            read, even for clips.
        latents: per chunk, see `vidtok.streaming.pad_chunks`.

    Raises:
        ValueError: an illegal setting, or settings that don't fit each other.
    """

    stride: tuple[int, int, int]
    size: int | None = None
    crop: str | None = None
    fps: float | None = None
    max_frames: int | None = None
    clips: Clips | None = None
    reader: str = "auto"
    on_error: str = "raise"
    latents: int = LATENTS

    def __post_init__(self):
        if self.crop is not None and self.crop not in CROPS:
            raise ValueError(f"unknown crop {self.crop!r}: {nearest(self.crop, CROPS)}")
        if self.crop is not None and self.size is None:
            raise ValueError(f"a {self.crop} crop needs a size")
        if self.crop == "three" and self.clips is None:
            raise ValueError("three crops are taken of clips, not of whole videos")
        if self.size is not None and self.size < 1:
            raise ValueError(f"size={self.size} must be above 0")
        if self.fps is not None and not self.fps > 0:
            raise ValueError(f"fps={self.fps} must be above 0")
        if self.clips is not None and self.max_frames is not None:
            raise ValueError("max_frames cuts whole videos, not clips")
        reader_mode(self.on_error, self.reader)

    @property
    def target_size(self) -> Size:
        """Size to which videos are resized while they are read: the short side, or the square of the center crop."""
        return self.size if self.size is None or self.crop != "center" else (self.size, self.size)

    def beginning(self, frames: int) -> "ReadConfig":
        """Return settings that read about `frames` frames of a whole video or of windows, for measurements."""
        if self.clips is None:
            return replace(self, max_frames=min(self.max_frames or frames, frames))
        return replace(self, clips=replace(self.clips, limit=math.ceil(frames / self.clips.frames)))


def reader_mode(on_error: str, reader: str) -> OnError:
    """Convert an extraction's `on_error`, "raise" or "keep", to that of `open_video`.

    Raises:
        ValueError: another value, or "keep" with a reader that doesn't support it.
    """
    if on_error not in ("raise", "keep"):
        raise ValueError(f"on_error is raise or keep, not {on_error!r}")
    if on_error == "keep" and reader_name(reader) != "pyav":
        raise ValueError(f"on_error=keep needs the reader pyav, not {reader}")
    return "skip" if on_error == "keep" else "raise"


@dataclass(frozen=True)
class Info:
    """Metadata of a stream, known at its end. For the fields see `vidtok.extraction.record.RecordMeta`."""

    fps: float
    size: tuple[int, int]
    native_size: tuple[int, int]
    native_fps: float
    reader: str
    source_bytes: int | None
    timestamps: np.ndarray
    clips: int | None
    damage: dict = field(default_factory=dict)


class StreamChunk(NamedTuple):
    """A chunk of a stream. A stream is a whole video, or one clip of it.

    Attributes:
        video: uint8 [1, 3, T, H, W], or float32 in [-1, 1] for a rendered video, padded by `vidtok.streaming`. T is
            1 + s_t n in the first chunk, s_t n in the others.
        clip: number of the clip; None for a whole video.
        first: whether it is the first chunk of the stream.
        info: metadata of the stream with its last chunk, else None.
        ends_item: whether it is the last chunk of the item.
    """

    video: Tensor
    clip: int | None
    first: bool
    info: Info | None
    ends_item: bool


class Expected(NamedTuple):
    """Expected result of a video, estimated from its header.

    Attributes:
        seconds: duration of the video or segment.
        frames: number of coded frames of all clips and crops.
        records: number of records: 1, or one for each clip and crop.
    """

    seconds: float
    frames: int
    records: int


def expect_item(item: WorkItem, reading: ReadConfig) -> Expected:
    """Estimate the result of a video. One frame is decoded; if the file has no duration, all packets are read.

    Raises:
        VideoError: the video can't be opened, or the segment is not within it.
    """
    if item.rendered is not None:
        dataset, fps = _open_rendered(item.rendered, reading)
        seconds = dataset.frames / fps
    else:
        assert item.path is not None  # an item is rendered or has a path
        info = probe_video(item.path)
        seconds, fps = info.duration or 0.0, info.fps
        if info.num_frames:
            seconds = info.num_frames / fps
        elif not seconds:
            seconds = len(cached_timeline(file_version(item.path), item.path).pts) / fps
    if item.segment is not None:
        if why := segment_error(item.segment, seconds, fps):
            raise VideoError(str(item), why)
        seconds = min(item.segment[1], seconds) - item.segment[0]
    if reading.clips is not None:
        clips, frames = reading.clips.times(seconds, fps).shape
        records = clips * (3 if reading.crop == "three" else 1)
        return Expected(seconds, records * frames, records)
    frames = max(1, math.ceil(seconds * (reading.fps or fps) - 0.01))
    return Expected(seconds, min(frames, reading.max_frames or frames), 1)


def expect_items(
    items: Iterable[WorkItem], reading: ReadConfig, workers: int, time_limit: float
) -> Iterator[tuple[WorkItem, Expected | VideoError]]:
    """Yield (item, `expect_item` of it or its error) of each item, from worker processes if workers > 0."""
    function = partial(expect_item, reading=reading)
    if workers:
        with DecodePool(function, workers, time_limit) as pool:
            yield from pool.imap(items, ahead=50)
        return
    for item in items:
        try:
            yield item, function(item)
        except VideoError as error:
            yield item, error


def read_chunks(item: WorkItem, reading: ReadConfig) -> Iterator[StreamChunk]:
    """Read all chunks of an item.

    Raises:
        VideoError: the item can't be read. Any other error is converted to it, so that one bad video doesn't end a run
            over a million.
    """
    try:
        if item.rendered is not None:
            yield from _rendered(item.rendered, reading)
            return
        assert item.path is not None  # an item is rendered or has a path
        if reading.clips is not None:
            yield from _clips(item.path, item.segment, reading, reading.clips)
        elif item.segment is not None:
            yield from _segment(item.path, item.segment, reading)
        else:
            yield from _whole(item.path, reading)
    except VideoError:
        raise
    except Exception as error:
        raise VideoError(str(item), f"{type(error).__name__}: {error}") from error


def _whole(path: str, reading: ReadConfig) -> Iterator[StreamChunk]:
    """Read all frames of a video."""
    size, times = reading.target_size, list[np.ndarray]()
    with open_video(path, reading.reader, reader_mode(reading.on_error, reading.reader)) as video:
        view, fps = plan_view(*video.size, size, multiple=1), video.fps
        chunks = as_videos(video.iter_frames(16, view, reading.fps), times)
        last = yield from _pieces(
            chunks if reading.max_frames is None else _cut(chunks, reading.max_frames), reading, None
        )
    source = video.size, fps, video.backend, video.version.size
    seconds = np.concatenate(times)[: reading.max_frames]
    info = Info(float(reading.fps or fps), view.size, *source, seconds, None, damage_meta(video))
    yield last._replace(info=info, ends_item=True)


def damage_meta(video: VideoReader | VideoStream | None) -> dict:
    """Return what is lost of a damaged video, as fields of `RecordMeta`; {} if nothing is."""
    damage = getattr(video, "damage", None)
    return {} if damage is None else damage.as_meta()


@contextmanager
def _open_kept(path: str, reading: ReadConfig) -> Iterator[VideoReader | None]:
    """Open the reader that leaves out damaged frames for on_error="keep"; otherwise yield None."""
    if reading.on_error == "raise":
        yield None
        return
    with open_video(path, reading.reader, reader_mode(reading.on_error, reading.reader)) as video:
        yield video


def _select(path: str, reading: ReadConfig, kept: VideoReader | None, choose: Choose, view: ChooseView) -> Chunk:
    """Read selected frames, with the reader `kept` if there is one."""
    if kept is not None:
        return select_frames(kept, choose, view)
    return read_selection(path, choose, None, view, reading.reader)


def _segment(path: str, segment: Segment, reading: ReadConfig) -> Iterator[StreamChunk]:
    """Read all frames of a segment, a few at a time."""
    known: dict = {}

    def choose(timestamps: np.ndarray, fps: float, start: int) -> np.ndarray:
        inside = frames_of_segment(path, timestamps, fps, segment)
        indices, times = np.arange(inside.start, inside.stop), timestamps[inside]
        if reading.fps is not None:
            indices = inside.start + resample_indices(times - times[0], reading.fps)
            times = times[0] + np.arange(len(indices)) / reading.fps
        known.update(times=times[: reading.max_frames], fps=fps)
        return indices[: reading.max_frames][start : start + FRAMES_AT_ONCE]

    def view(height: int, width: int) -> View:
        known.update(native=(height, width), view=plan_view(height, width, reading.target_size, multiple=1))
        return known["view"]

    def chunks() -> Iterator[Tensor]:
        start = 0
        while start < len(known.get("times", [None])):
            selected = partial(choose, start=start)
            yield as_video(_select(path, reading, kept, selected, view).frames)
            start += FRAMES_AT_ONCE

    with _open_kept(path, reading) as kept:
        last = yield from _pieces(chunks(), reading, None)
    source = known["native"], known["fps"], reader_name(reading.reader), file_version(path).size
    info = Info(reading.fps or known["fps"], known["view"].size, *source, known["times"], None, damage_meta(kept))
    yield last._replace(info=info, ends_item=True)


def _clips(path: str, segment: Segment | None, reading: ReadConfig, clips: Clips) -> Iterator[StreamChunk]:
    """Read the clips of a video or segment, `CLIPS_AT_ONCE` at a time."""
    known: dict = {}

    def view(height: int, width: int) -> View:
        known["native_size"] = height, width
        return plan_view(height, width, reading.target_size, multiple=1)

    def choose(timestamps: np.ndarray, fps: float, start: int, stop: int | None) -> np.ndarray:
        at_times = partial(choose_at_times, times=clips.times)
        indices = choose_in_segment(timestamps, fps, path, segment, at_times)
        known.update(count=len(indices), fps=fps)
        return indices[start:stop]

    def groups() -> Iterator[Chunk]:
        if clips.name == "windows":
            everything = partial(choose, start=0, stop=None)
            yield from read_windows(path, everything, CLIPS_AT_ONCE, view, reading.reader, kept)
            return
        start = 0
        while start < known.get("count", 1):
            yield _select(path, reading, kept, partial(choose, start=start, stop=start + CLIPS_AT_ONCE), view)
            start += CLIPS_AT_ONCE

    number = 0
    with _open_kept(path, reading) as kept:
        for frames_VTHWC, timestamps_VT in groups():
            for frames_THWC, times in zip(frames_VTHWC, timestamps_VT, strict=True):
                views = as_video(frames_THWC)
                if reading.crop == "three" and reading.size is not None:
                    views = three_crops(views, reading.size)
                source = known["native_size"], known["fps"], reader_name(reading.reader), file_version(path).size
                yield from _views(views, times, reading, number, known["count"], *source, damage_meta(kept))
                number += 1


def _rendered(rendered: Rendered, reading: ReadConfig) -> Iterator[StreamChunk]:
    """Render a video of digits, or clips of it; or a clip of a motion task."""
    dataset, fps = _open_rendered(rendered, reading)
    name = "digits" if rendered.task is None else "motion"
    sample = dataset[rendered.number]
    assert not isinstance(sample, VideoError)  # it would have been raised
    video_CTHW, timestamps = sample.video[0], sample.timestamps[0].numpy()
    if isinstance(dataset, MotionTasks):
        indices_VT = np.arange(len(timestamps))[None]  # it was rendered with the frames that are wanted
    elif reading.clips is None:
        indices = np.arange(len(timestamps)) if reading.fps is None else resample_indices(timestamps, reading.fps)
        indices_VT = indices[None, : reading.max_frames]
    else:
        indices_VT = indices_at(timestamps, reading.clips.times(timestamps[-1] + 1 / fps, fps))
    for i, indices in enumerate(indices_VT):
        views = video_CTHW[None, :, indices]
        if reading.crop == "three" and reading.size is not None:
            views = three_crops(views, reading.size)
        source = (video_CTHW.shape[-2], video_CTHW.shape[-1]), fps, name, None
        yield from _views(views, timestamps[indices], reading, i, len(indices_VT), *source)


def _open_rendered(rendered: Rendered, reading: ReadConfig) -> tuple[MovingDigits | MotionTasks, float]:
    """Return the dataset of a rendered video at the size that is read (resizing would blur it), and its frame rate."""
    if rendered.task is not None:
        tasks = _motion_tasks(replace(rendered, number=0), reading)
        return tasks, tasks.playback_fps
    digits = _digits(rendered.split or "train", rendered.seed, reading.size)
    return digits, digits.fps


@lru_cache(maxsize=64)
def _digits(split: str, seed: int, size: int | None) -> MovingDigits:
    return MovingDigits(split, seed=seed) if size is None else MovingDigits(split, size=size, seed=seed)


@lru_cache(maxsize=2)
def _motion_tasks(rendered: Rendered, reading: ReadConfig) -> MotionTasks:
    """Open the motion tasks of a clip. rendered: the clip with number 0, so that all clips share one dataset."""
    assert rendered.task is not None and reading.clips is not None and reading.size is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the plan has named the files that are left out
        return open_tasks(rendered, reading.clips, reading.size, reading.reader)


def _views(
    views: Tensor,
    times: np.ndarray,
    reading: ReadConfig,
    number: int,
    count: int,
    native_size: tuple[int, int],
    native_fps: float,
    reader: str,
    source_bytes: int | None,
    damage: Mapping[str, object] = MappingProxyType({}),
) -> Iterator[StreamChunk]:
    """Yield the chunks of the views (crops) [V, 3, T, H, W] of one clip, or of a whole video without clips."""
    span = times[-1] - times[0]
    fps = float((len(times) - 1) / span) if span > 0 else native_fps
    clips = None if reading.clips is None else count * len(views)
    size = (views.shape[-2], views.shape[-1])
    info = Info(fps, size, native_size, native_fps, reader, source_bytes, times, clips, dict(damage))
    for i, view in enumerate(views):
        clip = None if clips is None else number * len(views) + i
        last = yield from _pieces([view[None]], reading, clip)
        yield last._replace(info=info, ends_item=clips is None or clip == clips - 1)


def _pieces(
    chunks: Iterable[Tensor], reading: ReadConfig, clip: int | None
) -> Generator[StreamChunk, None, StreamChunk]:
    """Yield all chunks of a stream but the last, which is returned: the caller adds the metadata to it."""
    held: StreamChunk | None = None
    for video in pad_chunks(chunks, reading.stride, reading.latents):
        if held is not None:
            yield held
        held = StreamChunk(video, clip, held is None, None, False)
    assert held is not None  # a video has at least one frame
    return held


def _cut(chunks: Iterable[Tensor], max_frames: int) -> Iterator[Tensor]:
    """Cut a stream of chunks after `max_frames` frames."""
    left = max_frames
    for chunk in chunks:
        yield chunk[:, :, :left]
        left -= chunk.shape[2]
        if left <= 0:
            return
