"""Writing videos, whole or chunk by chunk; a file appears complete or not at all."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image
from torch import Tensor

from .tensor import video_to_frames


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
