"""Another frame rate: which frame is shown at which time."""

from collections.abc import Iterator

import numpy as np

from .reader import Chunk

TOLERANCE = 1e-3  # seconds: containers that count milliseconds round 1/30 s to 33 or 34 ms


def resample_indices(timestamps: np.ndarray, fps: float, start: float = 0.0, count: int | None = None) -> np.ndarray:
    """int64 indices of the frames shown at start, start + 1/fps, ...: the latest frame not after each time.

    timestamps: float64 [N] ascending seconds. A time within 1 ms before a frame counts as its time. count: how many;
    None, as many as come before the last timestamp plus one mean frame gap.
    """
    if count is None:
        gap = (timestamps[-1] - timestamps[0]) / max(len(timestamps) - 1, 1)
        count = max(1, int(np.ceil((timestamps[-1] + gap - start) * fps - TOLERANCE * fps)))
    return indices_at(timestamps, start + np.arange(count) / fps)


def indices_at(timestamps: np.ndarray, times: np.ndarray) -> np.ndarray:
    """int64 indices of the frames shown at `times` (seconds, any shape); before the first frame, that one."""
    return np.maximum(np.searchsorted(timestamps, times + TOLERANCE, side="right") - 1, 0)


def resample_chunks(chunks: Iterator[Chunk], fps: float, last_display: float, size: int) -> Iterator[Chunk]:
    """The same rule on a stream, holding one frame back. Yields chunks of `size` frames, timestamps j/fps.

    last_display: seconds the last frame is shown.
    """
    pictures: list[np.ndarray] = []
    emitted = 0
    held = None

    def due(until: float) -> Iterator[Chunk]:
        nonlocal emitted, pictures
        while emitted / fps + TOLERANCE < until:
            pictures.append(held)
            emitted += 1
            if len(pictures) == size:
                yield Chunk(np.stack(pictures), np.arange(emitted - size, emitted) / fps)
                pictures = []

    time = 0.0
    for frames, times in chunks:
        for frame, time in zip(frames, times, strict=True):
            if held is not None:
                yield from due(time)
            held = frame
    yield from due(max(time + last_display, 2 * TOLERANCE))
    if pictures:
        yield Chunk(np.stack(pictures), np.arange(emitted - len(pictures), emitted) / fps)
