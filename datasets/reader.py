"""The protocol every way of reading a video follows."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

OnError = Literal["raise", "keep"]


class Chunk(NamedTuple):
    """Consecutive frames. frames: uint8 [T,H,W,3] RGB. timestamps: float64 [T], seconds from the first frame."""

    frames: np.ndarray
    timestamps: np.ndarray


class VideoReader(Protocol):
    """The frames of one video as FFmpeg presents them: edit lists honoured, rotation applied, presentation order.

    backend: "pyav", "decord" or "torchcodec". num_frames: presented frames. fps: average frames per second.
    timestamps: float64 [num_frames], seconds from the first presented frame. start_time: that frame's time on the
    container's own clock, in seconds. duration: seconds, last frame's display time included.
    A reader belongs to the process that opened it; close it or use it as a context manager.
    """

    backend: str
    path: Path

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

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """Frames at `indices` (any order, repeats allowed) -> uint8 [T,H,W,3] RGB.

        Raises ValueError for an index outside 0..num_frames-1, `VideoError` where the stream breaks.
        """
        ...

    def iter_frames(self, chunk: int = 16) -> Iterator[Chunk]:
        """All frames in presentation order, `chunk` at a time, in memory that does not grow with the video."""
        ...

    def close(self) -> None: ...
    def __enter__(self) -> "VideoReader": ...
    def __exit__(self, *exc: object) -> None: ...
