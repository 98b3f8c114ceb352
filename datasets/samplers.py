"""Temporal samplers: pure functions that select which moments of a video a model sees.

Each returns times, float64 [clips, frames], in seconds from the first frame. `vidtok.datasets.seek.indices_at` converts
them to the indices of the frames shown at these times. A dataset takes a sampler with its settings bound, such as
`functools.partial(dense_clips, frames=16, stride=4, clips=5)`.

Common arguments:
    duration: of the video in seconds, including the display time of the last frame.
    fps: frames per second of the video.
    rng: random generator; unused by the deterministic samplers.
    frames, stride: a clip is `frames` frames, `stride` frames apart, counted at `at_fps`.
    at_fps: frame rate at which frames and stride are counted, so that 16 x 4 at 30 fps is the same span of time in
        every video; None, the video's own.
    clips: number of clips.

In a video shorter than a clip, the last frame is repeated until the clip ends.
"""

import numpy as np


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

    A single clip is taken from the middle. SlowFast and VideoMAE test so on Kinetics, with 5 clips of 16 x 4.
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
