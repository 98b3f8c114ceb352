"""Clips of a video by a named sampler."""

from dataclasses import dataclass

import numpy as np

from vidtok.datasets import dense_clips, uniform_segments, whole_windows
from vidtok.hints import nearest

SAMPLERS = ("uniform", "dense", "windows")


@dataclass(frozen=True)
class Clips:
    """Which clips: the samplers of `vidtok.datasets.samplers`, without chance.

    Args:
        name: "uniform" (`uniform_segments`), "dense" (`dense_clips`) or "windows" (`whole_windows`).
        number: of clips; of windows, the frames from one to the next (None: end to end).
        frames: of a clip. stride: from one to the next, in frames of `fps`. fps: None, the video's own.
    """

    name: str
    number: int | None
    frames: int
    stride: int = 1
    fps: float | None = None

    def times(self, duration: float, fps: float) -> np.ndarray:
        """Seconds [clips, frames] in a video of that duration and rate."""
        if self.name == "uniform":
            return uniform_segments(duration, fps, frames=self.frames, clips=self.number)
        pace = {"frames": self.frames, "stride": self.stride, "at_fps": self.fps}
        if self.name == "dense":
            return dense_clips(duration, fps, clips=self.number, **pace)
        return whole_windows(duration, fps, hop=self.number, **pace)

    def __str__(self) -> str:
        rate = "" if self.fps is None else f" at {self.fps:g} fps"
        return f"{self.name}:{self.number}, {self.frames} x {self.stride}{rate}"


def parse_clips(text: str, frames: int, stride: int = 1, fps: float | None = None) -> Clips:
    """ "uniform:4", "dense:5", "windows" or "windows:8"; see `Clips`. Raises ValueError for anything else."""
    name, colon, number = text.partition(":")
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}: {nearest(name, SAMPLERS)}")
    if colon and not (number.isdecimal() and int(number) > 0):
        raise ValueError(f"clips are NAME or NAME:NUMBER, not {text!r}")
    if name == "uniform" and (stride != 1 or fps is not None):
        raise ValueError("uniform clips span the whole video: they have no stride and no rate of their own")
    return Clips(name, int(number) if colon else None if name == "windows" else 1, frames, stride, fps)
