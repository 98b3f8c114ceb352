"""Read and write videos as tensors, whole or streamed in bounded memory; files are written atomically."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidtok.datasets.backends import open_video
from vidtok.datasets.container import open_container, tick_of
from vidtok.datasets.damage import Damage
from vidtok.datasets.decode import PyAVReader
from vidtok.datasets.frames import OnError, Size, check_size, frames_to_video, plan_view
from vidtok.errors import VideoError


@dataclass(frozen=True)
class VideoInfo:
    """Metadata of a video file.

    Attributes:
        path: the file.
        height, width: in pixels as shown (rotation applied).
        fps: average frames per second.
        num_frames: according to the header, which may be wrong; None if it is not stated.
        duration: seconds according to the header, which may be wrong; None if it is not stated.
        codec: FFmpeg's name of the codec.
        pixel_format: FFmpeg's name of the pixel format, or "unknown".
        traits: {name: description} of unusual properties: sample aspect ratio, transfer (HDR), scan (interlaced),
            rotation.
    """

    path: Path
    height: int
    width: int
    fps: float
    num_frames: int | None
    duration: float | None
    codec: str
    pixel_format: str
    traits: dict[str, str] = field(default_factory=dict)


def probe_video(path: str | Path) -> VideoInfo:
    """Read the metadata of a video; this decodes one frame.

    Raises:
        VideoError: the file can't be decoded.
    """
    container, stream = open_container(path)
    with container:
        codec, pixel_format = stream.codec_context.name, stream.codec_context.pix_fmt
        frames: int | None = stream.frames
        duration = float(stream.duration * tick_of(stream)) if stream.duration else None
        if duration is None and container.duration:
            duration = container.duration / 1e6
    with PyAVReader(path) as reader:
        (height, width), fps, traits = reader.size, reader.fps, reader.traits.rows()
    if not frames:
        frames = round(duration * fps) if duration else None
    return VideoInfo(Path(path), height, width, fps, frames, duration, codec, pixel_format or "unknown", traits)


class VideoStream:
    """Iterable of one video's float32 chunks [1,3,t,H,W] in [-1, 1], t = `chunk` except for the last.

    Memory holds one chunk, whatever the length of the video. A stream can be iterated once. It is closed at its
    end or by `with`. See `iter_video` for the arguments.

    Attributes:
        path: the file.
        backend: name of the reader.
        fps: frames per second of the yielded frames.
        native_fps: frames per second of the file.
        size: (height, width) of the yielded frames in pixels.
        native_size: (height, width) of the file in pixels as shown.
        source_bytes: size of the file.
        timestamps: float64, seconds from the first frame, of the frames yielded so far.
        num_frames: number of frames yielded so far.
        error: the `VideoError` that on_error="keep" or "skip" suppressed, or None.
        damage: the `Damage` that on_error="skip" has found so far, or None.
    """

    def __init__(
        self, path: str | Path, fps: float | None, size: Size, chunk: int, multiple: int, on_error: OnError, reader: str
    ):
        if fps is not None and not fps > 0:
            raise ValueError(f"fps={fps} must be above 0")
        if chunk < 1:
            raise ValueError(f"chunk={chunk} must be at least 1")
        check_size(size)
        self._reader, self._chunk = open_video(path, reader, on_error), chunk
        self.path, self.backend = self._reader.path, self._reader.backend
        self.native_fps, self.fps = self._reader.fps, self._reader.fps if fps is None else float(fps)
        self._resample = fps is not None
        self.native_size = self._reader.size
        try:
            self._view = plan_view(*self.native_size, size, multiple)
        except ValueError as e:
            self.close()
            raise VideoError(path, str(e)) from e
        self.size = self._view.size
        self._times: list[np.ndarray] = []

    @property
    def timestamps(self) -> np.ndarray:
        return np.concatenate(self._times) if self._times else np.zeros(0)

    @property
    def num_frames(self) -> int:
        return sum(map(len, self._times))

    @property
    def source_bytes(self) -> int:
        return self._reader.version.size

    @property
    def error(self) -> VideoError | None:
        return self._reader.error

    @property
    def sar(self) -> Fraction:
        """Width of a pixel over its height, as shown."""
        return getattr(self._reader, "sar", Fraction(1))

    @property
    def damage(self) -> Damage | None:
        return getattr(self._reader, "damage", None)

    def __iter__(self) -> Iterator[Tensor]:
        for frames_THWC in self.iter_uint8():
            yield frames_to_video(frames_THWC)[None]

    def iter_uint8(self) -> Iterator[np.ndarray]:
        """Iterate over the same chunks as uint8 [t,H,W,3], a quarter of the memory."""
        fps = self.fps if self._resample else None
        for frames_THWC, times in self._reader.iter_frames(self._chunk, self._view, fps):
            self._times.append(times)
            yield frames_THWC
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
    reader: str = "auto",
) -> VideoStream:
    """Stream a video of any length in bounded memory; see `VideoStream` for the chunks.

    Args:
        path: the file.
        fps: frames per second to resample to, see `read_video`; None, native.
        size: see `read_video`.
        chunk: frames per chunk, at least 1.
        multiple: sides that `size` does not set are cropped to a multiple of it; 1 with size=None keeps all pixels.
        on_error: "raise"; "keep": a video that breaks in the middle ends at its last good frame; "skip": decoding
            continues after the break, without the damaged frames, see `VideoStream.damage`.
        reader: "auto", "pyav", "decord" or "torchcodec", see `open_video`.

    Raises:
        VideoError: the file can't be decoded; raised when iteration reaches the break, if not before.
        ValueError: an illegal argument.
    """
    return VideoStream(path, fps, size, chunk, multiple, on_error, reader)


def read_video(
    path: str | Path,
    fps: float | None = None,
    size: Size = 128,
    max_frames: int | None = None,
    stride: tuple[int, int, int] = (4, 8, 8),
) -> Tensor:
    """Read a video, or an image as a video of one frame -> float32 [1,3,T,H,W] in [-1, 1].

    T, H and W are cropped to lengths that a tokenizer of the given stride accepts.

    Args:
        path: the file.
        fps: frames per second to resample to. Frame j is the latest one whose timestamp is not after j/fps (within
            1 ms, the rounding of containers with millisecond timestamps); the last frame is shown for 1/native fps.
            None keeps every frame.
        size: in pixels. int, the short side becomes `size` (aspect ratio kept), and the long side is center-cropped to
            a multiple of the stride; (h, w), the largest centered region of that aspect ratio is resized to h x w;
            None, native size, center-cropped to multiples of the stride. For the filters see `AREA_FACTOR` in
            `vidtok.datasets.decode`.
        max_frames: number of frames to read, before T is cropped to 1 + a multiple of the stride; None, all.
        stride: (time, height, width) of the tokenizer.

    Raises:
        VideoError: the file can't be decoded to its end (or to max_frames).
        ValueError: an illegal argument.
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
