"""Single frames out of a video, without decoding what comes before where possible."""

from collections.abc import Callable
from functools import lru_cache
from itertools import chain
from pathlib import Path

import av
import numpy as np

from .cache import cached_frames
from .container import describe, open_container
from .error import VideoError
from .picture import to_rgb
from .reader import Chunk
from .reader_pyav import PyAVReader
from .timeline import Timeline, read_timeline

Choose = Callable[[np.ndarray, float], np.ndarray]


def read_selection(path: str | Path, choose: Choose, cache: str | Path | None = None) -> Chunk:
    """The frames that `choose(timestamps, fps)` asks for by index: int64 of any shape, repeats allowed.

    Returns frames uint8 [*shape,H,W,3] and their timestamps float64 [*shape]. cache: folder for decoded frames, see
    `cached_frames`. Raises `VideoError` where the video can't be decoded.
    """
    if cache is not None:
        pictures, timestamps, fps = cached_frames(path, cache)
        indices = choose(timestamps, fps)
        return Chunk(np.array(pictures[indices]), timestamps[indices])
    timeline, frames_NHWC = _timeline(str(path)), None
    if timeline.doubt is None:
        timestamps = timeline.timestamps
        indices = choose(timestamps, timeline.fps)
        frames_NHWC = _seek(path, timeline, indices.ravel())
    if frames_NHWC is None:
        with PyAVReader(path) as reader:
            timestamps = reader.timestamps
            indices = choose(timestamps, reader.fps)
            frames_NHWC = reader.frames(indices.ravel())
    return Chunk(frames_NHWC.reshape(*indices.shape, *frames_NHWC.shape[1:]), timestamps[indices])


_timeline = lru_cache(maxsize=20_000)(read_timeline)


def _seek(path: str | Path, timeline: Timeline, indices: np.ndarray) -> np.ndarray | None:
    """Decode from the last keyframe that is not after the first index; None where seeking leads anywhere else, as it
    does in containers without an index (MPEG-TS and -PS)."""
    wanted = set(timeline.pts[indices].tolist())
    first, last, pictures = min(wanted), max(wanted), {}
    container, stream = open_container(path)
    with container:
        container.seek(int(timeline.keys[np.searchsorted(timeline.keys, first, side="right") - 1]), stream=stream)
        packets = container.demux(stream)
        try:
            start = next(packets)
            if not start.is_keyframe or start.pts is None or start.pts > first:
                return None
            for frame in chain(start.decode(), chain.from_iterable(packet.decode() for packet in packets)):
                if frame.pts in wanted:
                    pictures[frame.pts] = to_rgb(frame, stream.codec_context.width, stream.codec_context.height)
                if frame.pts is None or frame.pts >= last:
                    break
        except av.error.FFmpegError as e:
            what = f"frames {indices.min()} to {indices.max()}"
            raise VideoError(path, f"the stream breaks while reading {what} ({describe(e)})") from e
    if len(pictures) != len(wanted):
        what = f"frames {indices.min()} to {indices.max()}"
        raise VideoError(path, f"{what}: {len(pictures)} of {len(wanted)} were decoded")
    return np.stack([pictures[p] for p in timeline.pts[indices].tolist()])
