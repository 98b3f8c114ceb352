"""The door to all readers.

What the random-access backends share: a file is proven right before its first frame is trusted.

The decord backend.

The torchcodec backend, an optional extra.
"""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from vidtok.datasets.decode import Chunk, OnError, PyAVReader, VideoReader
from vidtok.datasets.seek import read_timeline
from vidtok.errors import VideoError


class VerifiedReader:
    """Base of the backends that seek. A subclass names its `backend`, opens in `_open` and decodes in `_get`.

    The packets prove count and times (see `Timeline`), the first frame's picture is compared with PyAV's. Any doubt is
    a `VideoError` that says which, raised before a frame is handed out.
    """

    backend: str

    def __init__(self, path: str | Path):
        self.path, timeline = Path(path), read_timeline(path)
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

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.ndim != 1 or not wanted.size or wanted.min() < 0 or wanted.max() >= self.num_frames:
            raise ValueError(f"{self.path} has frames 0 to {self.num_frames - 1}, asked for {indices!r}")
        return self._get(wanted.tolist())

    def iter_frames(self, chunk: int = 16) -> Iterator[Chunk]:
        if chunk < 1:
            raise ValueError(f"chunk={chunk} must be at least 1")
        for start in range(0, self.num_frames, chunk):
            stop = min(start + chunk, self.num_frames)
            yield Chunk(self._get(list(range(start, stop))), self.timestamps[start:stop])

    def __enter__(self) -> "VerifiedReader":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _open(self) -> int:
        """Open the file; return the backend's own count of frames."""
        raise NotImplementedError

    def _get(self, indices: list[int]) -> np.ndarray:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def _check_times(self, times: np.ndarray, truth: np.ndarray) -> None:
        """The backend's own `times`, in seconds from its first frame, against those of the packets."""
        worst = np.abs(times - truth).max(initial=0)
        if not worst <= 0.01:
            raise self._distrust(f"its timestamps are {worst:.3g} s off")

    def _check_picture(self) -> None:
        with PyAVReader(self.path) as reader:
            truth_HWC, turned = reader.frames([0])[0], reader.turned
        mine_HWC = self._get([0])[0]
        if turned:
            raise self._distrust("the picture is turned by metadata")
        if mine_HWC.shape != truth_HWC.shape:
            raise self._distrust(f"its frames are {mine_HWC.shape}, not {truth_HWC.shape}")
        difference = np.abs(mine_HWC.astype(np.int16) - truth_HWC).mean()
        if difference > 4:  # of 255: rounding in the colour conversion is below 2, another frame or matrix above 5
            raise self._distrust(f"its first frame differs by {difference:.1f} levels")

    def _broken(self) -> VideoError:
        """The error for frames this backend fails to decode: PyAV's, which counts the good ones, if it fails too."""
        try:
            with PyAVReader(self.path) as reader:
                return self._distrust(f"it can't decode frames that are there ({reader.num_frames} in all)")
        except VideoError as e:
            return e

    def _distrust(self, why: str) -> VideoError:
        return VideoError(self.path, f"{self.backend} can't be proven right on this file: {why}")


def has_decord() -> bool:
    return find_spec("decord") is not None


class DecordReader(VerifiedReader):
    """Random access by decord, on files it is proven right on. See `VideoReader`."""

    backend = "decord"

    def _open(self) -> int:
        import decord

        decord.logging.set_level(decord.logging.QUIET)  # it writes packet bytes to the console
        self._failure = decord.DECORDError, RuntimeError
        try:
            self._decoder = decord.VideoReader(str(self.path), num_threads=1)
            times = self._decoder.get_frame_timestamp(range(len(self._decoder)))[:, 0].astype(np.float64)
        except self._failure as e:
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
    """Random access by torchcodec in exact mode, on files it is proven right on. See `VideoReader`.

    Raises ImportError where torchcodec, or the FFmpeg it needs, can't be loaded.
    """

    backend = "torchcodec"

    def _open(self) -> int:
        try:
            from torchcodec.decoders import VideoDecoder
        except (ImportError, OSError, RuntimeError) as e:  # RuntimeError: the wheel is there, FFmpeg or CUDA is not
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


def open_video(path: str | Path, backend: str | None = None, on_error: OnError = "raise") -> VideoReader:
    """Open a video, or an image as a video of one frame.

    backend: "pyav" decodes from the start, always right; "decord" and "torchcodec" refuse a file they can't be proven
    right on. None takes decord where that proof succeeds, otherwise PyAV.
    on_error: "keep" ends a video that breaks in the middle at its last good frame instead of raising.
    Raises `VideoError` for a file that can't be decoded, ValueError for an unknown backend.
    """
    if on_error not in ("raise", "keep"):
        raise ValueError(f"on_error={on_error!r} is not 'raise' or 'keep'")
    if backend not in (None, "pyav", "decord", "torchcodec"):
        raise ValueError(f"backend={backend!r} is not 'pyav', 'decord', 'torchcodec' or None (automatic)")
    if on_error == "keep" and backend not in (None, "pyav"):
        raise ValueError("on_error='keep' needs the pyav backend: only decoding from the start finds the break")
    if backend == "pyav" or on_error == "keep" or (backend is None and not has_decord()):
        return PyAVReader(path, on_error)
    if backend == "torchcodec":
        return TorchCodecReader(path)
    if backend == "decord":
        return DecordReader(path)
    try:
        return DecordReader(path)
    except VideoError:  # no proof; and if the file itself is at fault, PyAV says it better
        return PyAVReader(path)
