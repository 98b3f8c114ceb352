"""Random access to frames: seeking, and a cache of decoded frames.

The cache holds decoded frames on disk, for training runs that read the same short videos repeatedly. Each video has two
files, named by a hash of its path, size and modification time: NAME.rgb, raw uint8 [T,H,W,3], and NAME.npz (timestamps
float64 [T] in seconds, shape int64 [T,H,W,3], fps float64). NAME.npz is written last: if it exists, both are complete.
144p takes about 110 KB per frame.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import lru_cache
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av import VideoFrame
from av.container import InputContainer
from av.video.stream import VideoStream

from vidtok.datasets.backends import VideoReader, open_video, validate_no_options
from vidtok.datasets.container import MAX_THREADS, Timeline, cached_timeline, describe, open_container
from vidtok.datasets.decode import FrameConverter, PyAVReader, convert_pictures
from vidtok.datasets.frames import Chunk, View, display_matrix, places_of, resample_indices
from vidtok.errors import VideoError
from vidtok.files import replacing
from vidtok.inputs import FileVersion, check_unchanged, file_version


def cached_frames(path: str | Path, folder: str | Path) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the frames of a video from the cache, decoding it in bounded memory on the first call.

    Args:
        path: the video.
        folder: the cache, created if missing.

    Returns:
        (frames, uint8 [T,H,W,3], memory-mapped; timestamps, float64 [T] in seconds; average frames per second).

    Raises:
        VideoError: the video can't be decoded.
    """
    folder = Path(folder)
    version = file_version(path)
    key = f"{version.path}:{version.size}:{version.modified}"
    name = hashlib.sha256(os.fsencode(key)).hexdigest()[:24]
    frames_file, facts_file = folder / f"{name}.rgb", folder / f"{name}.npz"
    if not facts_file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _decode(path, frames_file, facts_file)
    with np.load(facts_file, allow_pickle=False) as facts:
        shape, timestamps, fps = tuple(facts["shape"].tolist()), facts["timestamps"], float(facts["fps"])
    return np.memmap(frames_file, np.uint8, "r", shape=shape), timestamps, fps


def _decode(path: str | Path, frames_file: Path, facts_file: Path) -> None:
    """Decode a video into its two files; the rename is atomic and safe with concurrent processes."""
    times = []
    with replacing(facts_file) as new_facts:
        with replacing(frames_file) as new_frames, PyAVReader(path) as reader, open(new_frames, "wb") as handle:
            for chunk in reader.iter_frames():
                handle.write(np.ascontiguousarray(chunk.frames).data)
                times.append(chunk.timestamps)
                frame_shape, fps = chunk.frames.shape[1:], reader.fps
        timestamps = np.concatenate(times)
        with open(new_facts, "wb") as handle:
            np.savez(handle, timestamps=timestamps, shape=np.array([len(timestamps), *frame_shape]), fps=fps)


Choose = Callable[[np.ndarray, float], np.ndarray]
ChooseView = Callable[[int, int], View | None]


def whole_picture(height: int, width: int) -> None:
    """Return None, for whole frames at native size (the default `view`)."""


def read_selection(
    path: str | Path,
    choose: Choose,
    cache: str | Path | None = None,
    view: ChooseView = whole_picture,
    reader: str = "auto",
) -> Chunk:
    """Read selected frames, decoding from the nearest keyframes if the file allows it.

    Args:
        path: the video.
        choose: function of (timestamps, float64 [N] in seconds; fps) that returns int64 frame indices of any shape,
            repeats allowed.
        cache: folder for decoded frames, see `cached_frames`; None, no cache.
        view: function of (height, width) in pixels as shown that returns the region to read and its output size; None,
            the whole frame at native size. Called once, after `choose`.
        reader: "auto", "pyav", "decord" or "torchcodec", see `vidtok.datasets.open_video`.

    Returns:
        Frames uint8 [*shape,h,w,3] and timestamps float64 [*shape] in seconds.

    Raises:
        VideoError: the video can't be decoded.
    """
    if cache is not None:
        validate_no_options(reader)
        pictures, timestamps, fps = cached_frames(path, cache)
        indices = choose(timestamps, fps)
        return Chunk(convert_pictures(pictures[indices], view(*pictures.shape[1:3])), timestamps[indices])
    view, version = lru_cache(view), file_version(path)  # `view` is called only once, even if seeking fails
    if (timeline := _seekable(path, version, reader)) is not None:
        found = _read_seeking(path, version, timeline, choose(timeline.timestamps, timeline.fps), view)
        if found is not None:
            return found
    with open_video(path, reader) as video:
        return select_frames(video, choose, view)


def read_windows(
    path: str | Path,
    choose: Choose,
    count: int,
    view: ChooseView = whole_picture,
    reader: str = "auto",
    opened: VideoReader | None = None,
) -> Iterator[Chunk]:
    """Read windows of a video of any length, a few at a time, in bounded memory.

    Windows are read by seeking, as in `read_selection`. A file that doesn't allow it is decoded once, even if windows
    overlap; then the frames of overlaps are held in memory.

    Args:
        path, view, reader: see `read_selection`.
        choose: function of (timestamps, fps) that returns int64 [windows, T]. The first frames of windows ascend.
        count: number of windows that are read together.
        opened: an open reader to use instead of seeking.

    Yields:
        Frames uint8 [V,T,h,w,3] and timestamps float64 [V,T] in seconds, V = `count` except for the last.

    Raises:
        VideoError: the video can't be decoded.
    """
    view, version, start = lru_cache(view), file_version(path), 0
    if opened is None and (timeline := _seekable(path, version, reader)) is not None:
        indices_NT = choose(timeline.timestamps, timeline.fps)
        while start < len(indices_NT):
            found = _read_seeking(path, version, timeline, indices_NT[start : start + count], view)
            if found is None:
                break
            yield found
            start += count
        else:
            return
    with nullcontext(opened) if opened is not None else open_video(path, reader) as video:
        indices_NT = choose(video.timestamps, video.fps)[start:]
        rest, shape = np.unique(indices_NT), view(*video.size)
        held, frames_HHWC = rest[:0], None  # frame numbers, ascending, and their frames
        for part in np.split(indices_NT, range(count, len(indices_NT), count)):
            new, rest = np.split(rest, [np.searchsorted(rest, part.max(), side="right")])
            is_kept = held >= part.min()
            if len(new):
                new_HHWC = video.frames(new.tolist(), shape)
                frames_HHWC = new_HHWC if frames_HHWC is None else np.concatenate([frames_HHWC[is_kept], new_HHWC])
                held = np.concatenate([held[is_kept], new])
            assert frames_HHWC is not None  # the first windows have frames
            yield Chunk(frames_HHWC[np.searchsorted(held, part)], video.timestamps[part])


def _seekable(path: str | Path, version: FileVersion, reader: str) -> Timeline | None:
    """Return the timeline of a file that may be read by seeking; None if it is not reliable, or with other readers."""
    timeline = cached_timeline(version, str(path)) if reader in ("auto", "pyav") else None
    return None if timeline is None or timeline.unreliable is not None else timeline


def _read_seeking(
    path: str | Path, version: FileVersion, timeline: Timeline, indices: np.ndarray, view: ChooseView
) -> Chunk | None:
    """Read the frames at `indices`, of any shape, by seeking; None if that fails, see `_seek`."""
    try:
        frames_NHWC = _seek(path, timeline, indices.ravel(), view)
    except VideoError:
        check_unchanged(path, version)  # raises the better error
        raise
    if frames_NHWC is None:
        return None
    check_unchanged(path, version)
    return Chunk(frames_NHWC.reshape(*indices.shape, *frames_NHWC.shape[1:]), timeline.timestamps[indices])


def select_frames(video: VideoReader, choose: Choose, view: ChooseView = whole_picture) -> Chunk:
    """Read selected frames with an open reader, see `read_selection`."""
    timestamps = video.timestamps
    indices = choose(timestamps, video.fps)
    frames_NHWC = video.frames(indices.ravel().tolist(), view(*video.size))
    return Chunk(frames_NHWC.reshape(*indices.shape, *frames_NHWC.shape[1:]), timestamps[indices])


AHEAD = 16  # frames to decode and drop rather than to seek


def _seek(
    path: str | Path, timeline: Timeline, indices: np.ndarray, view: ChooseView, threads: int = MAX_THREADS
) -> np.ndarray | None:
    """Decode frames in ascending order, seeking to a keyframe wherever that skips more than `AHEAD` frames.

    Return None if seeking doesn't lead to the keyframe, as in containers without an index (MPEG-TS and -PS), or leads
    to frames that the decoder reports as corrupt.
    """
    places, out, convert = places_of(timeline.pts[indices]), None, None
    container, stream = open_container(path, threads)
    with container:
        frames: Iterator[VideoFrame] | None = None
        at = None  # time of the last decoded frame
        try:
            for wanted in sorted(places):
                key = int(timeline.keys[np.searchsorted(timeline.keys, wanted, side="right") - 1])
                if at is None or (key > at and np.subtract(*np.searchsorted(timeline.pts, (key, at))) > AHEAD):
                    frames = _frames_from(container, stream, key)
                for frame in frames or ():
                    if (at := frame.pts) is None or at >= wanted:
                        break
                if frames is None or at != wanted or frame.is_corrupt:
                    return None
                convert = convert or FrameConverter(path, (frame.width, frame.height), display_matrix(frame))
                picture_HWC = convert(frame, view(*convert.size))
                out = np.empty((len(indices), *picture_HWC.shape), np.uint8) if out is None else out
                out[places[wanted]] = picture_HWC
        except av.error.FFmpegError as e:
            if stream.codec_context.thread_count > 1:  # the error may be of a frame that is not needed
                return _seek(path, timeline, indices, view, threads=1)
            what = f"frames {indices.min()} to {indices.max()}"
            raise VideoError(path, f"the stream breaks while reading {what} ({describe(e)})") from e
    return out


def _frames_from(container: InputContainer, stream: VideoStream, key: int) -> Iterator[VideoFrame] | None:
    """Seek to the keyframe at time `key` in ticks and return the frames from there; None if it isn't reached."""
    container.seek(key, stream=stream)
    packets = container.demux(stream)
    start = next(packets)
    if not start.is_keyframe or start.pts is None or start.pts > key:
        return None
    return chain(start.decode(), chain.from_iterable(packet.decode() for packet in packets))


def window_indices(
    timestamps: np.ndarray, native_fps: float, path: str | Path, frames: int, fps: float | None, position: float
) -> np.ndarray:
    """Choose a window of consecutive frames.

    Args:
        timestamps: float64 [T], seconds.
        native_fps: frames per second of the video.
        path: the video, for errors.
        frames: number of frames in the window.
        fps: frames per second to resample to (see `read_video`); None, native.
        position: 0..1, position of the window between the first possible and the last possible one.

    Returns:
        Frame numbers, int64 [frames].

    Raises:
        VideoError: the video is shorter than the window.
    """
    if fps is None:
        starts = len(timestamps) - frames + 1
        if starts < 1:
            raise VideoError(path, f"{len(timestamps)} frames are too few for a window of {frames}")
        return min(int(position * starts), starts - 1) + np.arange(frames)
    room = timestamps[-1] + 1 / native_fps - frames / fps
    if room < -1e-3:
        duration = timestamps[-1] + 1 / native_fps
        raise VideoError(path, f"{duration:.2f} s are too short for a window of {frames} frames at {fps} fps")
    return resample_indices(timestamps, fps, start=position * max(room, 0.0), count=frames)
