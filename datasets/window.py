"""A window of consecutive frames out of the middle of a video, without decoding what comes before where possible."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from .cache import cached_frames
from .container import open_container
from .error import VideoError
from .picture import to_rgb
from .reader_pyav import PyAVReader
from .resample import resample_indices
from .timeline import Timeline, read_timeline


def read_window(
    path: str | Path, frames: int, fps: float | None, position: float, cache: str | Path | None = None
) -> np.ndarray:
    """`frames` consecutive frames -> uint8 [T,H,W,3].

    fps: resample by time (see `read_video`); None, native. position: 0..1, where between the first possible window and
    the last one. cache: folder for decoded frames, see `cached_frames`. Raises `VideoError` where the video is shorter
    than the window or can't be decoded.
    """
    if cache is not None:
        pictures, timestamps, native_fps = cached_frames(path, cache)
        return np.array(pictures[_indices(path, timestamps, native_fps, frames, fps, position)])
    timeline = _timeline(str(path))
    if timeline.doubt is not None:
        with PyAVReader(path) as reader:
            return reader.frames(_indices(path, reader.timestamps, reader.fps, frames, fps, position))
    return _seek(path, timeline, _indices(path, timeline.timestamps, timeline.fps, frames, fps, position))


_timeline = lru_cache(maxsize=20_000)(read_timeline)


def _indices(
    path: str | Path, timestamps: np.ndarray, native_fps: float, frames: int, fps: float | None, position: float
) -> np.ndarray:
    if fps is None:
        starts = len(timestamps) - frames + 1
        if starts < 1:
            raise VideoError(path, f"{len(timestamps)} frames are less than a window of {frames}")
        return min(int(position * starts), starts - 1) + np.arange(frames)
    room = timestamps[-1] + 1 / native_fps - frames / fps
    if room < -1e-3:
        raise VideoError(path, f"{timestamps[-1] + 1 / native_fps:.2f} s are less than {frames} frames at {fps} fps")
    return resample_indices(timestamps, fps, start=position * max(room, 0.0), count=frames)


def _seek(path: str | Path, timeline: Timeline, indices: np.ndarray) -> np.ndarray:
    """Decode from the last keyframe that is not after the first index."""
    wanted = set(timeline.pts[indices].tolist())
    last, pictures = max(wanted), {}
    container, stream = open_container(path)
    with container:
        key = timeline.keys[np.searchsorted(timeline.keys, min(wanted), side="right") - 1]
        container.seek(int(key), stream=stream)
        try:
            for frame in container.decode(stream):
                if frame.pts in wanted:
                    pictures[frame.pts] = to_rgb(frame, stream.codec_context.width, stream.codec_context.height)
                if frame.pts is None or frame.pts >= last:
                    break
        except OSError as e:
            raise VideoError(path, f"the stream breaks while reading frames {indices[0]} to {indices[-1]}") from e
    if len(pictures) != len(wanted):
        raise VideoError(path, f"frames {indices[0]} to {indices[-1]}: {len(pictures)} of {len(wanted)} were decoded")
    return np.stack([pictures[p] for p in timeline.pts[indices].tolist()])
