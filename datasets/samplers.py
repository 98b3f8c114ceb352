"""Which moments of a video a model gets to see: the field's samplers, as pure functions.

Each returns times, float64 [clips, frames], in seconds from the first frame; `indices_at` (vidtok.datasets.seek)
turns them into frames: the ones shown at those times. duration: seconds, the last frame's display time included. fps:
frames per second of the video. rng: for what is random. A dataset takes one with its settings filled in:
`functools.partial(dense_clips, frames=16, stride=4, clips=5)`.

frames x stride are counted in frames of `at_fps` (None: the video's own), so that 16 x 4 at 30 fps is the same stretch
of time in every video. A video shorter than a clip shows its last frame until the clip ends.
"""

import numpy as np


def uniform_segments(
    duration: float, fps: float, rng: np.random.Generator | None = None, *, frames: int, clips: int = 1
) -> np.ndarray:
    """The middle of each of `frames` equal segments (TSN, arXiv 1608.00859, at test time); for several clips
    k = 0..clips-1 the moment k/clips of each segment (as VideoMAE tests on Something-Something, with 2 clips).

    rng is not used: this is how a video is evaluated.
    """
    share = np.full((1, 1), 0.5) if clips == 1 else np.arange(clips)[:, None] / clips
    return (np.arange(frames) + share) * (duration / frames)


def random_segments(
    duration: float, fps: float, rng: np.random.Generator, *, frames: int, clips: int = 1
) -> np.ndarray:
    """A random moment of each of `frames` equal segments, for each clip anew (TSN at training time)."""
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
    """`clips` clips of frames x stride, the first from the start of the video, the last up to its end, the others
    evenly between (SlowFast, VideoMAE: 16 x 4 with 5 clips on Kinetics); a single one from the middle.

    rng is not used: this is how a video is evaluated.
    """
    share = np.array([0.5]) if clips == 1 else np.linspace(0, 1, clips)
    starts, step = _room(duration, fps, frames, stride, at_fps) * share, stride / (at_fps or fps)
    if at_fps is None:
        starts = np.floor(starts * fps + 1e-6) / fps  # on a frame, or the rounding of each time would differ
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
    """Clips of frames x stride from random places (random temporal crop): each frame a clip can begin with, with equal
    probability. spread: one from each of `clips` equal parts of these frames, in order (V-JEPA's training)."""
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
    """The whole video in windows of frames x stride, one every `hop` frames (None: frames x stride, end to end).

    The last window is moved back to end with the video, so that no frame is missing and none is made up. rng is not
    used. The number of windows depends on the duration.
    """
    rate = at_fps or fps
    room = _room(duration, fps, frames, stride, at_fps)
    step = (hop or frames * stride) / rate
    starts = np.append(np.arange(0, room - 1e-6, step), room)
    return starts[:, None] + np.arange(frames) * (stride / rate)


def _room(duration: float, fps: float, frames: int, stride: int, at_fps: float | None) -> float:
    """Seconds between the first and the last possible start of a clip, 0 in a video that is too short."""
    span = (frames - 1) * stride / (at_fps or fps) + 1 / fps  # the last frame is shown for 1/fps
    return max(duration - span, 0.0)
