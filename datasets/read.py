"""Whole videos as tensors: at once, or streamed in bounded memory."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .container import open_container
from .error import VideoError
from .reader import Chunk, OnError
from .reader_pyav import PyAVReader
from .resample import resample_chunks
from .tensor import Size, check_size, frames_to_video, plan_resize, resize_video


@dataclass(frozen=True)
class VideoInfo:
    """What a file says of itself. height, width: pixels as shown (rotation applied). fps: average frames per second.
    num_frames, duration (seconds): the header's claim, None where it makes none; only decoding tells the truth."""

    path: Path
    height: int
    width: int
    fps: float
    num_frames: int | None
    duration: float | None
    codec: str
    pixel_format: str


def probe_video(path: str | Path) -> VideoInfo:
    """Read the header and decode one frame. Raises `VideoError`."""
    container, stream = open_container(path)
    with container:
        codec, pixel_format, frames = stream.codec_context.name, stream.codec_context.pix_fmt, stream.frames
        duration = float(stream.duration * stream.time_base) if stream.duration else None
        if duration is None and container.duration:
            duration = container.duration / 1e6
    with PyAVReader(path) as reader:
        (height, width), fps = reader.size, reader.fps
    if not frames:
        frames = round(duration * fps) if duration else None
    return VideoInfo(Path(path), height, width, fps, frames, duration, codec, pixel_format or "unknown")


class VideoStream:
    """Iterates over one video as float32 [1,3,t,H,W] chunks in [-1, 1], t = `chunk` but for the last.

    fps: of what is yielded. native_fps, native_size (height, width): of the file. size: (height, width) yielded.
    timestamps: float64, seconds from the first frame, of the frames yielded so far: all of them at the end, as is
    num_frames. backend: the reader's name. error: what ended the video early under on_error="keep".
    Memory holds one chunk whatever the length. Iterate once; closes itself at the end, or use it as a context manager.
    """

    def __init__(self, path: str | Path, fps: float | None, size: Size, chunk: int, multiple: int, on_error: OnError):
        if fps is not None and not fps > 0:
            raise ValueError(f"fps={fps} must be above 0")
        if chunk < 1:
            raise ValueError(f"chunk={chunk} must be at least 1")
        check_size(size)
        self._reader = PyAVReader(path, on_error)
        self._chunk, self._size_wanted, self._multiple = chunk, size, multiple
        self.path, self.backend = self._reader.path, self._reader.backend
        self.native_fps, self.fps = self._reader.fps, self._reader.fps if fps is None else float(fps)
        self._resample = fps is not None
        self.native_size = self._reader.size
        try:
            self.size = plan_resize(*self.native_size, size, multiple)[1]
        except ValueError as e:
            self.close()
            raise VideoError(path, str(e)) from e
        self._times: list[np.ndarray] = []

    @property
    def timestamps(self) -> np.ndarray:
        return np.concatenate(self._times) if self._times else np.zeros(0)

    @property
    def num_frames(self) -> int:
        return sum(map(len, self._times))

    @property
    def error(self) -> VideoError | None:
        return self._reader.error

    def __iter__(self) -> Iterator[Tensor]:
        chunks: Iterator[Chunk] = self._reader.iter_frames(self._chunk)
        if self._resample:
            chunks = resample_chunks(chunks, self.fps, 1 / self.native_fps, self._chunk)
        for frames_THWC, times in chunks:
            self._times.append(times)
            yield resize_video(frames_to_video(frames_THWC), self._size_wanted, self._multiple)[None]
        self.close()

    def close(self) -> None:
        self._reader.close()

    def __enter__(self) -> "VideoStream":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def iter_video(
    path: str | Path,
    fps: float | None = None,
    size: Size = 128,
    chunk: int = 16,
    multiple: int = 8,
    on_error: OnError = "raise",
) -> VideoStream:
    """Stream a video of any length in bounded memory; see `VideoStream` for what comes out and `read_video` for sizes.

    The length is not cut. multiple=1 with size=None keeps every pixel. Raises `VideoError`, at the latest
    where the stream breaks.
    """
    return VideoStream(path, fps, size, chunk, multiple, on_error)


def read_video(
    path: str | Path,
    fps: float | None = None,
    size: Size = 128,
    max_frames: int | None = None,
    stride: tuple[int, int, int] = (4, 8, 8),
) -> Tensor:
    """Read a video, or an image as a video of one frame -> float32 [1,3,T,H,W] in [-1, 1], cut to what a tokenizer of
    this stride (time, height, width) takes.

    fps: resample by time. Frame j is the latest one whose timestamp is not after j/fps (within 1 ms, the rounding of
    containers that count milliseconds); the last frame is shown for 1/native fps. None keeps every frame.
    size: int, short side becomes `size` (bicubic, antialiased, aspect kept), long side cut at the centre to a multiple
    of the stride; (h, w), resized to cover and cut at the centre; None, native size cut at the centre to multiples.
    max_frames: stop after so many (before the cut of T to 1 + a multiple of the stride).
    Raises `VideoError` for a file that can't be read to its end (or to max_frames), ValueError for bad arguments.
    """
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames={max_frames} must be at least 1")
    chunks, count = [], 0
    with iter_video(path, fps, size, multiple=math.lcm(*stride[1:])) as stream:
        for video_BCTHW in stream:
            chunks.append(video_BCTHW)
            count += video_BCTHW.shape[2]
            if max_frames is not None and count >= max_frames:
                break
    video_BCTHW = torch.cat(chunks, dim=2)
    length = min(count, max_frames or count)
    return video_BCTHW[:, :, : 1 + (length - 1) // stride[0] * stride[0]].contiguous()
