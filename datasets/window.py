"""A window of consecutive frames out of the middle of a video."""

from functools import partial
from pathlib import Path

import numpy as np

from .error import VideoError
from .resample import resample_indices
from .selection import read_selection


def read_window(path: str | Path, frames: int, fps: float | None, position: float) -> np.ndarray:
    """`frames` consecutive frames -> uint8 [T,H,W,3].

    fps: resample by time (see `read_video`); None, native. position: 0..1, where between the first possible window and
    the last one. Raises `VideoError` where the video is shorter than the window or can't be decoded.
    """
    choose = partial(window_indices, path=path, frames=frames, fps=fps, position=position)
    return read_selection(path, choose).frames


def window_indices(
    timestamps: np.ndarray, native_fps: float, path: str | Path, frames: int, fps: float | None, position: float
) -> np.ndarray:
    """Frame numbers of a window, int64 [frames], from the video's timestamps, float64 [T]; see `read_window`."""
    if fps is None:
        starts = len(timestamps) - frames + 1
        if starts < 1:
            raise VideoError(path, f"{len(timestamps)} frames are less than a window of {frames}")
        return min(int(position * starts), starts - 1) + np.arange(frames)
    room = timestamps[-1] + 1 / native_fps - frames / fps
    if room < -1e-3:
        raise VideoError(path, f"{timestamps[-1] + 1 / native_fps:.2f} s are less than {frames} frames at {fps} fps")
    return resample_indices(timestamps, fps, start=position * max(room, 0.0), count=frames)
