"""Read and write videos as tensors, whole or streamed in bounded memory. Files are written atomically."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream as AvStream
from PIL import Image
from torch import Tensor

from vidtok.datasets.backends import open_video
from vidtok.datasets.container import open_container, tick_of
from vidtok.datasets.damage import Damage
from vidtok.datasets.decode import PyAVReader
from vidtok.datasets.frames import OnError, Size, check_size, frames_to_video, plan_view, video_to_frames
from vidtok.errors import VideoError
from vidtok.files import temporary_path


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
    """

    path: Path
    height: int
    width: int
    fps: float
    num_frames: int | None
    duration: float | None
    codec: str
    pixel_format: str


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
        (height, width), fps = reader.size, reader.fps
    if not frames:
        frames = round(duration * fps) if duration else None
    return VideoInfo(Path(path), height, width, fps, frames, duration, codec, pixel_format or "unknown")


class VideoStream:
    """Iterate over one video as float32 [1,3,t,H,W] chunks in [-1, 1], t = `chunk` except for the last.

    Memory holds one chunk, whatever the length of the video. A stream can be iterated once; it closes itself at the
    end, or use it as a context manager. See `iter_video` for the arguments.

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
        error: the `VideoError` that on_error="keep" or "skip" passed over, or None.
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
        multiple: sides are cropped to a multiple of it where `size` does not set them; 1 with size=None keeps all
            pixels.
        on_error: "raise"; "keep": a video that breaks in the middle ends at its last good frame; "skip": it goes on
            after that, without the frames that are damaged, see `VideoStream.damage`.
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

    T, H and W are cropped to what a tokenizer of the given stride accepts.

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


class VideoWriter:
    """Write a video chunk by chunk to .mp4, .mov or .mkv (H.264, crf 12), .gif, or one frame to .png.

    Even sizes are stored as 4:2:0, which every player supports; sizes with an odd side as 4:4:4, which keeps the size.
    Color is limited-range BT.709 in HD and BT.601 below, as players expect it, and the file says so in its color tags.
    The file is renamed into place when the `with` block ends; an exception inside leaves no file.

    Args:
        path: the file to write.
        fps: frames per second, above 0; the mean of a variable rate.
        time_base: seconds per tick, for a variable rate: `write` then takes the ticks of frames. A .gif is played at
            the mean rate.

    Raises:
        ValueError: another suffix, or an illegal fps.
    """

    def __init__(self, path: str | Path, fps: float, time_base: Fraction | None = None):
        self.path = Path(path)
        suffix = self.path.suffix.lower()
        if suffix not in _SINKS:
            raise ValueError(f"{self.path}: can write {', '.join(_SINKS)}, not {suffix!r}")
        if not fps > 0:
            raise ValueError(f"fps={fps} must be above 0")
        self._part = temporary_path(self.path, suffix)
        # Below 1 fps it is the seconds per frame that are rounded.
        rate = Fraction(fps).limit_denominator(1001) if fps >= 1 else 1 / (1 / Fraction(fps)).limit_denominator(1001)
        self._sink = _SINKS[suffix](self._part, rate, time_base)
        self._shape: tuple[int, ...] | None = None

    def write(self, video: Tensor, ticks: Sequence[int] | None = None) -> None:
        """Append a chunk.

        Args:
            video: [3,t,H,W] or [1,3,t,H,W], float in [-1, 1] (clamped) or uint8; the same H and W in all chunks.
            ticks: [t], when each frame is shown, ascending; with a time base.

        Raises:
            ValueError: another shape.
        """
        if video.ndim == 5 and video.shape[0] == 1:
            video = video[0]
        if video.ndim != 4 or video.shape[0] != 3 or 0 in video.shape:
            raise ValueError(f"want a video [3,T,H,W] or [1,3,T,H,W], not {list(video.shape)}")
        shape = tuple(video.shape[2:])
        if self._shape not in (None, shape):
            raise ValueError(f"want (T, H, W) = (any, {self._shape[0]}, {self._shape[1]}) as before, not {shape}")
        self._shape = shape
        self._sink.add(video_to_frames(video.detach()), ticks)

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
                self._sink.abandon()  # may fail as well, on a full disk
            finally:
                self._part.unlink(missing_ok=True)


def write_video(path: str | Path, video: Tensor, fps: float) -> None:
    """Write a video to .mp4, .mov, .mkv, .gif or (T = 1) .png; see `VideoWriter` for the encoding.

    Args:
        path: the file to write.
        video: [1,3,T,H,W] or [3,T,H,W], float in [-1, 1] (clamped) or uint8.
        fps: frames per second, above 0.

    Raises:
        ValueError: another shape or suffix, or an illegal fps.
    """
    with VideoWriter(path, fps) as writer:
        writer.write(video)


class _H264:
    def __init__(self, path: Path, fps: Fraction, time_base: Fraction | None):
        self._container, self._fps, self._time_base = av.open(f"file:{path}", "w"), fps, time_base
        self._stream: AvStream | None = None

    def add(self, frames_THWC: np.ndarray, ticks: Sequence[int] | None) -> None:
        if self._stream is None:
            height, width = frames_THWC.shape[1:3]
            self._stream = self._container.add_stream("libx264", rate=self._fps, options={"crf": "12"})
            self._stream.width, self._stream.height = width, height
            self._stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
            # Players that ignore the tags guess the matrix from the size. These thresholds are mpv's.
            hd = width >= 1280 or height > 576
            self._matrix = Colorspace.ITU709 if hd else Colorspace.ITU601
            context = self._stream.codec_context
            if self._time_base is not None:
                context.time_base = self._time_base
            context.colorspace, context.color_range = self._matrix, ColorRange.MPEG
            context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        for i, image_HWC in enumerate(frames_THWC):
            frame = av.VideoFrame.from_ndarray(image_HWC, format="rgb24")
            yuv = frame.reformat(
                format=self._stream.pix_fmt, dst_colorspace=self._matrix, dst_color_range=ColorRange.MPEG
            )
            if ticks is not None:
                yuv.pts, yuv.time_base = int(ticks[i]), self._time_base
            self._container.mux(self._stream.encode(yuv))

    def finish(self) -> None:
        assert self._stream is not None  # a video has a frame
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def abandon(self) -> None:
        self._container.close()


def gif_delays(frames: int, fps: Fraction) -> list[int]:
    """Return the delay of each frame in hundredths of a second, 0 for a frame to leave out.

    The delays of 30 fps are 3, 4, 3, 3, 4, 3, ... so that no error adds up. Above 50 fps frames are left out: viewers
    show a delay of 1 as 10.
    """
    step = 1 if fps <= 50 else 2
    edges = [step * round(Fraction(100 * i, step) / fps) for i in range(frames + 1)]
    delays = [end - start for start, end in pairwise(edges)]
    return delays if any(delays) else [step, *delays[1:]]


class _Pillow:
    """Collect frames and write them at the end with Pillow: a GIF, or a PNG of one frame."""

    def __init__(self, path: Path, fps: Fraction, time_base: Fraction | None):
        self._path, self._fps = path, fps
        self._images: list[Image.Image] = []

    def add(self, frames_THWC: np.ndarray, ticks: Sequence[int] | None) -> None:
        self._images += [Image.fromarray(image_HWC) for image_HWC in frames_THWC]
        if self._path.suffix.lower() == ".png" and len(self._images) > 1:
            raise ValueError("a .png holds one frame; write .mp4 or .gif, or one frame of the video")

    def finish(self) -> None:
        if self._path.suffix.lower() == ".png":
            self._images[0].save(self._path)
        else:
            delays = gif_delays(len(self._images), self._fps)
            shown = [(image, delay) for image, delay in zip(self._images, delays, strict=True) if delay]
            (first, _), *rest = shown
            durations = [10 * delay for _, delay in shown]
            first.save(self._path, save_all=True, append_images=[i for i, _ in rest], duration=durations, loop=0)

    def abandon(self) -> None:
        self._images = []


_SINKS: dict[str, type[_H264] | type[_Pillow]] = {
    ".mp4": _H264,
    ".mov": _H264,
    ".mkv": _H264,
    ".gif": _Pillow,
    ".png": _Pillow,
}
