"""The `VideoReader` protocol, `open_video`, and random-access readers (decord, torchcodec).

A seeking backend is used only on files where it is verified that it returns the same frames as sequential decoding by
PyAV. torchcodec is an optional extra.
"""

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np

from vidtok.datasets.container import read_timeline
from vidtok.datasets.decode import RESIZE_VERSION, PyAVReader, convert_pictures
from vidtok.datasets.frames import Chunk, OnError, View, resample_chunks
from vidtok.errors import VideoError, nearest
from vidtok.inputs import FileVersion, check_unchanged, file_version

PIXELS_AT_ONCE = 1 << 25  # of full-size frames in memory before resizing: 4 at 4K, 100 MB


class VideoReader(Protocol):
    """Protocol of the video readers: the frames of one video as FFmpeg presents them.

    Edit lists and rotation are applied; frames are in presentation order. A reader belongs to the process that opened
    it. Close it, or use it as a context manager.

    Attributes:
        backend: "pyav", "decord" or "torchcodec".
        path: the file.
        version: the file's version when it was opened.
        size: (height, width) in pixels as shown.
        num_frames: number of presented frames.
        fps: average frames per second, measured if the container states none or a wrong one.
        duration: seconds, including the display time of the last frame.
        timestamps: float64 [num_frames], seconds from the first presented frame.
        start_time: time of the first presented frame on the container's clock, in seconds.
        error: the `VideoError` that on_error="keep" or "skip" suppressed; None until decoding has reached it.
    """

    backend: str
    path: Path
    version: FileVersion
    size: tuple[int, int]
    error: VideoError | None

    @property
    def num_frames(self) -> int: ...
    @property
    def fps(self) -> float: ...
    @property
    def duration(self) -> float: ...
    @property
    def timestamps(self) -> np.ndarray: ...
    @property
    def start_time(self) -> float: ...

    def frames(self, indices: Sequence[int], view: View | None = None) -> np.ndarray:
        """Return the frames at `indices` (any order, repeats allowed) as uint8 [T,h,w,3] RGB.

        Args:
            indices: frame numbers.
            view: region to read and its output size; None, the whole frame at native size.

        Raises:
            ValueError: an index outside 0..num_frames-1.
            VideoError: the stream breaks.
        """
        ...

    def iter_frames(self, chunk: int = 16, view: View | None = None, fps: float | None = None) -> Iterator[Chunk]:
        """Yield all frames in presentation order in chunks; memory does not depend on the length of the video.

        Args:
            chunk: frames per chunk, at least 1.
            view: as in `frames`.
            fps: frames per second to resample to, see `resample_indices`; None, native.
        """
        ...

    def close(self) -> None: ...
    def __enter__(self) -> "VideoReader": ...
    def __exit__(self, *exc: object) -> None: ...


class VerifiedReader:
    """Base class of the seeking backends. A subclass sets `backend` and defines `_open`, `_get` and `close`.

    On opening, the number of frames and their timestamps are checked against the packets (see `Timeline`), and the
    first frame is compared with PyAV's. Any mismatch raises a `VideoError` with the reason, before a frame is returned.
    """

    backend: str
    size: tuple[int, int]
    error: VideoError | None = None
    _decoder: Any  # None after closing

    def __init__(self, path: str | Path):
        self.path, self.version = Path(path), file_version(path)
        if not self.path.is_file():
            raise self._distrust("it reads files on disk, not members of archives or folders of frames")
        timeline = read_timeline(path)
        if timeline.unreliable is not None:
            raise self._distrust(timeline.unreliable)
        if timeline.open_gop:
            raise self._distrust("frames after a keyframe are shown before it (open GOP)")
        self.fps, self.timestamps = timeline.fps, timeline.timestamps
        self.start_time = float(timeline.pts[0] * timeline.tick)
        if (count := self._open()) != self.num_frames:
            raise self._distrust(f"it counts {count} frames, the packets {self.num_frames}")
        self._check_picture()

    @property
    def num_frames(self) -> int:
        return len(self.timestamps)

    @property
    def duration(self) -> float:
        return float(self.timestamps[-1]) + 1 / self.fps

    def frames(self, indices: Sequence[int], view: View | None = None) -> np.ndarray:
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.ndim != 1 or not wanted.size or wanted.min() < 0 or wanted.max() >= self.num_frames:
            raise ValueError(f"{self.path} has frames 0 to {self.num_frames - 1}, not {indices!r}")
        portion = len(wanted) if view is None else max(1, PIXELS_AT_ONCE // (self.size[0] * self.size[1]))
        starts = range(0, len(wanted), portion)
        parts = [convert_pictures(self._get(wanted[i : i + portion].tolist()), view) for i in starts]
        check_unchanged(self.path, self.version)
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def iter_frames(self, chunk: int = 16, view: View | None = None, fps: float | None = None) -> Iterator[Chunk]:
        if chunk < 1:
            raise ValueError(f"chunk={chunk} must be at least 1")
        chunks = self._chunks(chunk, view)
        return chunks if fps is None else resample_chunks(chunks, fps, 1 / self.fps, chunk)

    def _chunks(self, chunk: int, view: View | None) -> Iterator[Chunk]:
        for start in range(0, self.num_frames, chunk):
            stop = min(start + chunk, self.num_frames)
            yield Chunk(self.frames(range(start, stop), view), self.timestamps[start:stop])

    def __enter__(self) -> "VerifiedReader":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _open(self) -> int:
        """Open the file; return the number of frames according to the backend."""
        raise NotImplementedError

    def _get(self, indices: list[int]) -> np.ndarray:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def _check_times(self, times: np.ndarray, truth: np.ndarray) -> None:
        """Compare the timestamps of the backend with those of the packets; both are float64, in seconds."""
        worst = np.abs(times - truth).max(initial=0)
        if not worst <= 0.01:
            raise self._distrust(f"its timestamps are {worst:.3g} s off")

    def _check_picture(self) -> None:
        with PyAVReader(self.path) as reader:
            truth_HWC, turned = reader.frames([0])[0], reader.turned
        mine_HWC = self._get([0])[0]
        self.size = mine_HWC.shape[:2]
        if turned:
            raise self._distrust("the picture is turned by metadata")
        if mine_HWC.shape != truth_HWC.shape:
            raise self._distrust(f"its frames are {mine_HWC.shape}, not {truth_HWC.shape}")
        difference = np.abs(mine_HWC.astype(np.int16) - truth_HWC).mean()
        if difference > 4:  # of 255: rounding in color conversion is below 2, a different frame or matrix above 5
            raise self._distrust(f"its first frame differs by {difference:.1f} levels")

    def _broken(self) -> VideoError:
        """Return the error for frames that this backend can't decode.

        If PyAV can't decode the file either, return PyAV's error, which has the number of good frames.
        """
        try:
            with PyAVReader(self.path) as reader:
                return self._distrust(f"it can't decode frames that are there ({reader.num_frames} in all)")
        except VideoError as e:
            return e

    def _distrust(self, why: str) -> VideoError:
        return VideoError(self.path, f"{self.backend} can't be proven right on this file: {why}")


def has_decord() -> bool:
    """Return whether decord is installed."""
    return find_spec("decord") is not None


class DecordReader(VerifiedReader):
    """Read frames at random positions with decord, on verified files only. See `VideoReader`."""

    backend = "decord"

    def _open(self) -> int:
        import decord

        decord.logging.set_level(decord.logging.QUIET)  # it writes packet bytes to the console
        self._failure = decord.DECORDError, RuntimeError
        try:
            self._decoder = decord.VideoReader(str(self.path), num_threads=1)
            times = self._decoder.get_frame_timestamp(range(len(self._decoder)))[:, 0].astype(np.float64)
        except (*self._failure, UnicodeEncodeError) as e:  # the latter for a name that is not UTF-8
            raise self._distrust("it can't open it") from e
        if len(times) == self.num_frames:
            self._check_times(times - times[0], self.timestamps)
        return len(times)

    def _get(self, indices: list[int]) -> np.ndarray:
        try:
            return self._decoder.get_batch(indices).asnumpy()
        except self._failure as e:
            raise self._broken() from e

    def close(self) -> None:
        self._decoder = None


class TorchCodecReader(VerifiedReader):
    """Read frames at random positions with torchcodec in exact mode, on verified files only. See `VideoReader`.

    Raises:
        ImportError: torchcodec or FFmpeg's shared libraries cannot be loaded.
    """

    backend = "torchcodec"

    def _open(self) -> int:
        try:
            from torchcodec.decoders import VideoDecoder
        except (ImportError, OSError, RuntimeError) as e:  # RuntimeError: the wheel is installed, FFmpeg or CUDA is not
            raise ImportError("backend 'torchcodec' needs torchcodec and FFmpeg's shared libraries installed") from e
        try:
            self._decoder = VideoDecoder(
                str(self.path), seek_mode="exact", dimension_order="NHWC", num_ffmpeg_threads=1
            )
            return len(self._decoder)
        except (RuntimeError, ValueError) as e:
            raise self._distrust("it can't open it") from e

    def _get(self, indices: list[int]) -> np.ndarray:
        try:
            batch = self._decoder.get_frames_at(indices)
        except RuntimeError as e:
            raise self._broken() from e
        self._check_times(batch.pts_seconds.numpy(), self.start_time + self.timestamps[indices])
        return batch.data.numpy()

    def close(self) -> None:
        self._decoder = None


READERS = ("auto", "pyav", "decord", "torchcodec")
OPTIONS = ("deinterlace", "sar")  # of the reader "pyav"


def split_reader(backend: str | None) -> tuple[str, list[str]]:
    """Split "pyav+deinterlace+sar" into (name of the reader that `open_video` uses, sorted options).

    Raises:
        ValueError: an unknown option, or one that the reader doesn't support.
    """
    name, *options = (backend or "auto").split("+")
    name = "pyav" if name == "auto" else name
    if "tonemap" in options:
        raise ValueError("HDR is not tone-mapped: convert the video first, as with ffmpeg's zscale and tonemap filters")
    if unknown := [option for option in options if option not in OPTIONS]:
        raise ValueError(f"unknown option of reading {unknown[0]!r}: {nearest(unknown[0], OPTIONS)}")
    if options and name != "pyav":
        raise ValueError(f"{options[0]} is for the reader pyav, not {name}")
    return name, sorted({*options})


def reader_name(backend: str | None) -> str:
    """Return the name of the reader that `open_video` uses for `backend`."""
    return split_reader(backend)[0]


def validate_no_options(backend: str | None) -> None:
    """Raise ValueError for reader options, which can't be combined with a cache of decoded videos."""
    if options := split_reader(backend)[1]:
        raise ValueError(f"a cache holds videos as they are in their files: {' and '.join(options)} is without a cache")


def pixels_version(backend: str | None) -> str:
    """Return what determines the pixels of a decoded file: "READER/VERSION OF THE RESIZE", and "+OPTION" for each."""
    name, options = split_reader(backend)
    return "+".join([f"{name}/{RESIZE_VERSION}", *options])


def reader_version(name: str) -> str:
    """Return the version of a reader's package; "" for rendered videos, which have none."""
    package = {"pyav": "av", "decord": "decord", "torchcodec": "torchcodec"}.get(name)
    return "" if package is None else version(package)


def open_video(path: str | Path, backend: str | None = "auto", on_error: OnError = "raise") -> VideoReader:
    """Open a video, or an image as a video of one frame.

    Args:
        path: the file.
        backend: "pyav" decodes sequentially and is always correct. "decord" and "torchcodec" seek; they raise
            `VideoError` for a file on which they can't be verified. "auto" and None are "pyav": the other two round
            colors differently, so that their pixels never equal PyAV's, and `vidtok bench loader` finds neither faster.
            "pyav" and "auto" take options after a "+": "pyav+deinterlace" interpolates the second field of interlaced
            frames, "pyav+sar" scales frames to square pixels.
        on_error: "raise"; with "pyav" also "keep": a video that breaks in the middle ends at its last good frame; or
            "skip": decoding continues after the break, without the damaged frames. `reader.error` describes the loss.

    Raises:
        VideoError: the file cannot be decoded.
        ValueError: an unknown backend or on_error, or another on_error than "raise" with a seeking backend.
    """
    if on_error not in get_args(OnError):
        raise ValueError(f"on_error={on_error!r} is not one of {', '.join(get_args(OnError))}")
    name, options = split_reader(backend)
    if name not in READERS:
        raise ValueError(f"backend={backend!r} is not one of {', '.join(READERS)}")
    if name == "pyav":
        return PyAVReader(path, on_error, options)
    if on_error != "raise":
        raise ValueError(f"on_error={on_error!r} needs backend='pyav': only sequential decoding finds the break")
    return DecordReader(path) if name == "decord" else TorchCodecReader(path)
