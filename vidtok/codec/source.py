"""Sources of frames to compress: a file or a clip, with the times of its frames, and the audio of a file."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
from torch import Tensor

from vidtok.checks import check_video
from vidtok.codec.header import MAX_FPS, MIN_FPS
from vidtok.datasets.container import open_container
from vidtok.datasets.frames import OnError
from vidtok.datasets.writing import copy_audio, find_audio
from vidtok.errors import VideoError
from vidtok.extraction.videos import Source
from vidtok.names import escape_name


class FileSource:
    """Source of frames from a video file: iterates over float32 [1, 3, any, H, W] in [-1, 1].

    Args:
        audio: read the audio, too; warn if there is none. The others: as of `vidtok.extraction.videos.Source`.

    Attributes:
        frames: number of frames read so far.
        lead: seconds by which the audio begins before the first frame, at least 0; None, there is no audio to copy.
        size: (height, width) in pixels.
        fps: mean frames per second.
        time_base: seconds per tick; the time of every frame is a whole number of ticks.
        description: properties of the file, for `Header.source`.
    """

    def __init__(
        self,
        path: Path,
        size: int | None,
        fps: float | None,
        max_frames: int | None,
        reader: str,
        on_error: OnError,
        count: Callable[[int], None],
        audio: bool = False,
    ):
        if fps is not None:
            _check_fps(fps)
        self._path, self._on_error = path, on_error
        self._source = Source(path, size, fps, max_frames, count, reader, on_error)
        self.size: tuple[int, int] = self._source.stream.size
        self.fps = float(self._source.stream.fps)
        self.description, time_base = _describe(path)
        resampled = 1 / Fraction(self.fps).limit_denominator(10**6)
        self.time_base = resampled if fps is not None or time_base is None else time_base
        native = {"size": list(self._source.stream.native_size), "fps": float(self._source.stream.native_fps)}
        self.description |= native
        if (sar := self._source.stream.sar) != 1:
            self.description["aspect"] = [sar.numerator, sar.denominator]
        self._next_tick = 0
        self.lead: float | None = None
        if audio:
            self._describe_audio()

    def _describe_audio(self) -> None:
        audio = find_audio(self._path)
        if audio is None:
            warnings.warn(f"{self._path}: has no audio", stacklevel=2)
            return
        with closing(audio):
            context = audio.stream.codec_context
            codec = context.codec.canonical_name
            self.description["audio"] = {"codec": codec, "rate": context.sample_rate, "channels": context.channels}
            self.lead = audio.lead
            if audio.tracks > 1:
                warnings.warn(f"{self._path}: has {audio.tracks} audio tracks: the first is kept", stacklevel=2)

    def copy_audio(self, output: BinaryIO) -> None:
        """Copy the audio to a file, see `vidtok.datasets.writing.copy_audio`, after the frames have been read.

        If `max_frames` cut the video, packets that begin after its last frame are left out.
        """
        assert self.lead is not None
        end = None
        if self.frames == self._source.max_frames:
            end = float((self._next_tick - 1) * self.time_base) + 1 / self.fps
        try:
            copy_audio(self._path, output, end, self.lead)
        except VideoError as error:
            if self._on_error == "raise":
                raise
            warnings.warn(str(error), stacklevel=2)

    @property
    def error(self) -> VideoError | None:
        """Error of a damaged video that is read with on_error="keep"; None if there was none so far."""
        return self._source.stream.error

    @property
    def frames(self) -> int:
        return self._source.frames

    def ticks(self, start: int, end: int) -> np.ndarray:
        """Return the ticks of frames start .. end, int64 [end - start], ascending. Call it for consecutive ranges."""
        seconds = self._source.stream.timestamps[start:end]
        ticks = np.rint(seconds * self.time_base.denominator / self.time_base.numerator).astype(np.int64)
        order = np.arange(len(ticks))
        ticks = np.maximum.accumulate(np.maximum(ticks - order, self._next_tick)) + order
        self._next_tick = int(ticks[-1]) + 1
        return ticks

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._source)

    def close(self) -> None:
        self._source.stream.close()


class TensorSource:
    """Source of frames from a clip, float [1, 3, T, H, W] in [-1, 1] of any length and size, at a constant rate.

    The attributes are those of `FileSource`.

    Raises:
        ValueError: another shape or range, more than one clip, or an illegal rate.
    """

    error = None
    lead = None

    def __init__(self, video: Tensor, fps: float, max_frames: int | None, count: Callable[[int], None]):
        check_video(video, (1, 1, 1))
        if len(video) != 1:
            raise ValueError(f"one clip is compressed at a time, not {len(video)}")
        _check_fps(fps)
        self._video, self._count = video[:, :, :max_frames], count
        self.frames, self.size, self.fps = 0, (video.shape[3], video.shape[4]), float(fps)
        self.time_base = 1 / Fraction(fps).limit_denominator(10**6)
        self.description: dict = {}

    def ticks(self, start: int, end: int) -> np.ndarray:
        return np.arange(start, end)

    def copy_audio(self, output: BinaryIO) -> None:
        raise NotImplementedError("a clip has no audio")

    def __iter__(self) -> Iterator[Tensor]:
        for chunk in self._video.split(16, 2):
            self.frames += chunk.shape[2]
            self._count(chunk.shape[2])
            yield chunk

    def close(self) -> None:
        pass


def _check_fps(fps: float) -> None:
    if not MIN_FPS <= fps <= MAX_FPS:
        raise ValueError(f"fps={fps} must be above 0, in {MIN_FPS:g} .. {MAX_FPS:g}")


def _describe(path: Path) -> tuple[dict, Fraction | None]:
    """Return (name and color properties as far as the file states them; time base or None)."""
    container, stream = open_container(path)
    with container:
        context = stream.codec_context
        color = {
            "matrix": context.colorspace, "range": context.color_range,
            "primaries": context.color_primaries, "transfer": context.color_trc,
        }  # fmt: skip
        stated: dict[str, object] = {name: int(value) for name, value in color.items() if value is not None}
        base = stream.time_base
        name = escape_name(path.name)
        return {"name": name} | stated, None if base is None else Fraction(base.numerator, base.denominator)
