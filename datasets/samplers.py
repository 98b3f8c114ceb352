"""Temporal samplers: pure functions that select which moments of a video a model sees.

Each returns times, float64 [clips, frames], in seconds from the first frame. `vidtok.datasets.frames.indices_at`
converts them to the indices of the frames shown at these times. A dataset takes a sampler with its settings bound, such
as `functools.partial(dense_clips, frames=16, stride=4, clips=5)`.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from vidtok.datasets.frames import TOLERANCE, indices_at
from vidtok.datasets.seek import Choose
from vidtok.errors import VideoError
from vidtok.names import MEDIA_SUFFIXES

Segment = tuple[float, float]  # (start, end) in seconds from the first frame of the video


def uniform_segments(
    duration: float, fps: float, rng: np.random.Generator | None = None, *, frames: int, clips: int = 1
) -> np.ndarray:
    """Sample the middle of each of `frames` equal segments (TSN, arXiv 1608.00859, at test time).

    With several clips, clip k = 0..clips-1 has the moment k/clips of each segment (as VideoMAE tests on
    Something-Something, with 2 clips). Deterministic, for evaluation.
    """
    share = np.full((1, 1), 0.5) if clips == 1 else np.arange(clips)[:, None] / clips
    return (np.arange(frames) + share) * (duration / frames)


def random_segments(
    duration: float, fps: float, rng: np.random.Generator, *, frames: int, clips: int = 1
) -> np.ndarray:
    """Sample a random moment of each of `frames` equal segments, independently per clip (TSN at training time)."""
    return (np.arange(frames) + rng.random((clips, frames))) * (duration / frames)


def dense_clips(
    duration: float,
    fps: float,
    rng: np.random.Generator | None = None,
    *,
    frames: int,
    stride: int = 1,
    clips: int = 1,
    at_fps: float | None = None,
) -> np.ndarray:
    """Sample evenly spaced clips, the first at the start and the last at the end of the video.

    A single clip is taken from the middle. SlowFast and VideoMAE test this way on Kinetics, with 5 clips of 16 x 4.
    Deterministic, for evaluation.
    """
    share = np.array([0.5]) if clips == 1 else np.linspace(0, 1, clips)
    starts, step = _room(duration, fps, frames, stride, at_fps) * share, stride / (at_fps or fps)
    if at_fps is None:
        starts = np.floor(starts * fps + 1e-6) / fps  # on a frame, so that all times of a clip round alike
    return starts[:, None] + np.arange(frames) * step


def random_clip(
    duration: float,
    fps: float,
    rng: np.random.Generator,
    *,
    frames: int,
    stride: int = 1,
    clips: int = 1,
    at_fps: float | None = None,
    spread: bool = False,
) -> np.ndarray:
    """Sample clips at random positions (random temporal crop), uniform over the possible first frames.

    Args:
        spread: sample one clip from each of `clips` equal parts of the possible first frames, in order (as V-JEPA
            trains).
    """
    room = _room(duration, fps, frames, stride, at_fps)
    share = rng.random(clips)
    if spread:
        share = (np.arange(clips) + share) / clips
    starts = np.floor(share * (round(room * fps) + 1)) / fps
    return starts[:, None] + np.arange(frames) * (stride / (at_fps or fps))


def whole_windows(
    duration: float,
    fps: float,
    rng: np.random.Generator | None = None,
    *,
    frames: int,
    stride: int = 1,
    hop: int | None = None,
    at_fps: float | None = None,
) -> np.ndarray:
    """Cover the whole video with sliding windows; their number depends on the duration.

    The last window is moved back to end with the video, so that no frame is missing or repeated. Deterministic.

    Args:
        hop: frames from one window to the next, counted at `at_fps`; None, frames x stride (no overlap).
    """
    rate = at_fps or fps
    room = _room(duration, fps, frames, stride, at_fps)
    step = (hop or frames * stride) / rate
    starts = np.append(np.arange(0, room - 1e-6, step), room)
    return starts[:, None] + np.arange(frames) * (stride / rate)


def _room(duration: float, fps: float, frames: int, stride: int, at_fps: float | None) -> float:
    """Return the seconds between the first and the last possible start of a clip; 0 if the video is too short."""
    span = (frames - 1) * stride / (at_fps or fps) + 1 / fps  # the last frame is shown for 1/fps
    return max(duration - span, 0.0)


def segment_id(name: str, segment: Segment) -> str:
    """Name a segment as Kinetics does: "u.mp4" from 3 to 6 s is "u_000003_000006.mp4"; fractions are kept."""
    suffix = os.path.splitext(name)[1] if name.lower().endswith(MEDIA_SUFFIXES) else ""
    times = [f"{time:06.0f}" if time % 1 == 0 else f"{time:013.6f}".rstrip("0") for time in segment]
    return "_".join([name.removesuffix(suffix), *times]) + suffix


def ids_and_segments(table: pd.DataFrame) -> tuple[list[str], list[Segment | None]]:
    """Return the name and the segment of each row of `read_annotations`.

    A row without times is a whole video. So is a row whose name ends with its times: its file is already trimmed.
    """
    names = table["path" if "path" in table else "id"].tolist()
    if "start" not in table:
        return names, [None] * len(names)
    ids: list[str] = []
    segments: list[Segment | None] = []
    for name, start, end in zip(names, table["start"], table["end"], strict=True):
        segment = None if pd.isna(start) else (float(start), float(end))
        if segment is not None and _stem(name).endswith(_stem(segment_id("", segment))):
            segment = None
        ids.append(name if segment is None else segment_id(name, segment))
        segments.append(segment)
    return ids, segments


def _stem(name: str) -> str:
    # Lists may have a million names: pathlib takes ten times as long.
    return os.path.splitext(os.path.basename(name))[0] if name.lower().endswith(MEDIA_SUFFIXES) else name


def describe_segment(path: str | Path, segment: Segment | None) -> str:
    """Return the name of a segment for a message: "u.mp4 (3 to 6 s)"."""
    return str(path) if segment is None else f"{path} ({segment[0]:g} to {segment[1]:g} s)"


def segment_error(segment: Segment, duration: float, fps: float) -> str | None:
    """Return the reason why a segment is not within a video of `duration` seconds; None if it is, up to rounding."""
    start, end = segment
    if start >= duration or end > duration + 1 / fps + 0.1:
        return f"the segment from {start:g} to {end:g} s is not within the video, which lasts {duration:.2f} s"
    return None


def frames_of_segment(path: str | Path, timestamps: np.ndarray, fps: float, segment: Segment | None) -> slice:
    """Return the frames with timestamps in [start, end); for a segment between two frames, the one shown then.

    Args:
        path: the file to name in an error.
        timestamps: float64 [N], seconds.
        fps: frames per second.
        segment: (start, end) in seconds; None, the whole video. An end after the end of the video is clipped to it.

    Raises:
        VideoError: the segment starts after the end of the video.
    """
    if segment is None:
        return slice(0, len(timestamps))
    duration = timestamps[-1] + 1 / fps
    if segment[0] >= duration and (why := segment_error(segment, duration, fps)):
        raise VideoError(path, why)
    first, stop = np.searchsorted(timestamps, np.subtract(segment, TOLERANCE)).tolist()
    if stop <= first:
        first = int(indices_at(timestamps, np.array(segment[0])))
    return slice(first, max(stop, first + 1))


def choose_in_segment(
    timestamps: np.ndarray, fps: float, path: str | Path, segment: Segment | None, choose: Choose
) -> np.ndarray:
    """Choose frames of a segment as if it were a whole video; return their int64 indices in the video, any shape.

    Args:
        timestamps, fps, path, segment: see `frames_of_segment`.
        choose: function of (timestamps of the segment's frames, starting at 0; fps) that returns indices among them.
    """
    inside = frames_of_segment(path, timestamps, fps, segment)
    return inside.start + choose(timestamps[inside] - timestamps[inside.start], fps)


def choose_at_times(timestamps: np.ndarray, fps: float, times: Callable[[float, float], np.ndarray]) -> np.ndarray:
    """Return int64 indices of the frames at times(duration in seconds, fps), in seconds from the first frame."""
    return indices_at(timestamps, times(timestamps[-1] + 1 / fps, fps))
