"""Whole videos as tensors: at once, or streamed in bounded memory.

Writing videos, whole or chunk by chunk; a file appears complete or not at all.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vidtok.datasets.decode import Chunk, OnError, PyAVReader, open_container
from vidtok.datasets.frames import Size, check_size, frames_to_video, plan_resize, resize_video, video_to_frames
from vidtok.datasets.seek import resample_chunks
from vidtok.errors import VideoError


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


class VideoWriter:
    """Write chunks of a video to .mp4 (also .mov, .mkv: H.264, crf 12), .gif, or one frame to .png.

    Even sizes are stored as 4:2:0, which every player shows; a size with an odd side as 4:4:4, which keeps it exact.
    The file gets its name when the `with` block ends well; an exception inside leaves nothing behind.
    """

    def __init__(self, path: str | Path, fps: float):
        self.path = Path(path)
        suffix = self.path.suffix.lower()
        if suffix not in _SINKS:
            raise ValueError(f"{self.path}: can write {', '.join(_SINKS)}, not '{suffix}'")
        if not fps > 0:
            raise ValueError(f"fps={fps} must be above 0")
        self._part = self.path.with_name(f".{self.path.stem}.{os.getpid()}.part{suffix}")
        self._sink = _SINKS[suffix](self._part, Fraction(fps).limit_denominator(1001))
        self._shape: tuple[int, ...] | None = None

    def write(self, video: Tensor) -> None:
        """Append [3,t,H,W] or [1,3,t,H,W]: floats in [-1, 1] (clamped) or uint8. All chunks have one H, W."""
        if video.ndim == 5 and video.shape[0] == 1:
            video = video[0]
        if video.ndim != 4 or video.shape[0] != 3 or 0 in video.shape:
            raise ValueError(f"a video is [3,T,H,W] or [1,3,T,H,W], got {list(video.shape)}")
        shape = tuple(video.shape[2:])
        if self._shape not in (None, shape):
            raise ValueError(f"chunk of {shape} after chunks of {self._shape}")
        self._shape = shape
        self._sink.add(video_to_frames(video.detach()))

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type | None, *exc: object) -> None:
        try:
            if kind is None:
                if self._shape is None:
                    raise ValueError(f"{self.path}: no frame was written")
                self._sink.finish()
                os.replace(self._part, self.path)
        finally:
            try:
                self._sink.abandon()  # may fail too, on a full disk
            finally:
                self._part.unlink(missing_ok=True)


def write_video(path: str | Path, video: Tensor, fps: float) -> None:
    """Write float [1,3,T,H,W] or [3,T,H,W] in [-1, 1] (clamped), or uint8, to .mp4, .gif or (T = 1) .png.

    fps: frames per second. See `VideoWriter` for the coding; raises ValueError for a wrong shape or suffix.
    """
    with VideoWriter(path, fps) as writer:
        writer.write(video)


class _H264:
    def __init__(self, path: Path, fps: Fraction):
        self._container, self._fps, self._stream = av.open(str(path), "w"), fps, None

    def add(self, frames_THWC: np.ndarray) -> None:
        if self._stream is None:
            height, width = frames_THWC.shape[1:3]
            self._stream = self._container.add_stream("libx264", rate=self._fps, options={"crf": "12"})
            self._stream.width, self._stream.height = width, height
            self._stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
        for image_HWC in frames_THWC:
            frame = av.VideoFrame.from_ndarray(image_HWC, format="rgb24")
            self._container.mux(self._stream.encode(frame.reformat(format=self._stream.pix_fmt)))

    def finish(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def abandon(self) -> None:
        self._container.close()


class _Pillow:
    """Pictures that Pillow writes in one go at the end: a GIF, or a PNG of one frame."""

    def __init__(self, path: Path, fps: Fraction):
        self._path, self._fps, self._images = path, fps, []

    def add(self, frames_THWC: np.ndarray) -> None:
        self._images += [Image.fromarray(image_HWC) for image_HWC in frames_THWC]
        if self._path.suffix.lower() == ".png" and len(self._images) > 1:
            raise ValueError("a .png holds one frame; write .mp4 or .gif, or one frame of the video")

    def finish(self) -> None:
        first, *rest = self._images
        if self._path.suffix.lower() == ".png":
            first.save(self._path)
        else:
            first.save(self._path, save_all=True, append_images=rest, duration=float(1000 / self._fps), loop=0)

    def abandon(self) -> None:
        self._images = []


_SINKS = {".mp4": _H264, ".mov": _H264, ".mkv": _H264, ".gif": _Pillow, ".png": _Pillow}
