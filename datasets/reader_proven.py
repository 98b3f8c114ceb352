"""What the random-access backends share: a file is proven right before its first frame is trusted."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from .error import VideoError
from .reader import Chunk
from .reader_pyav import PyAVReader
from .timeline import read_timeline


class ProvenReader:
    """Base of the backends that seek. A subclass names its `backend`, opens in `_open` and decodes in `_get`.

    The packets prove count and times (see `Timeline`), the first frame's picture is compared with PyAV's. Any doubt is
    a `VideoError` that says which, raised before a frame is handed out.
    """

    backend: str

    def __init__(self, path: str | Path):
        self.path, timeline = Path(path), read_timeline(path)
        if timeline.doubt is not None:
            raise self._distrust(timeline.doubt)
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

    def __enter__(self) -> "ProvenReader":
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
