"""Random access to frames: timelines from packets, resampling in time, seeking, and a cache of decoded frames.

The cache holds decoded frames on disk, for training runs that read the same short videos repeatedly. Each video has two
files, named by a hash of its path, size and modification time: NAME.rgb, raw uint8 [T,H,W,3], and NAME.npz (timestamps
float64 [T] in seconds, shape int64 [T,H,W,3], fps float64). NAME.npz is written last: if it exists, both are complete.
144p takes about 110 KB per frame.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av import VideoFrame
from av.container import InputContainer
from av.video.stream import VideoStream

from vidtok.datasets.container import PacketTimes, describe, longest_gap, open_container
from vidtok.datasets.decode import Chunk, FrameConverter, PyAVReader, convert_pictures, places_of
from vidtok.datasets.frames import View, display_matrix
from vidtok.errors import VideoError
from vidtok.files import FileVersion, check_unchanged, file_version, replacing


@dataclass(frozen=True)
class Timeline:
    """Presentation times of all frames of a file, read from its packets without decoding.

    Attributes:
        pts: int64 [N], presentation times of all packets, ascending, in ticks.
        keys: int64 [K], presentation times of the keyframes, ascending, in ticks.
        tick: seconds per tick.
        fps: average frames per second, see `PacketTimes.fps`.
        unreliable: the reason why the packets do not determine the frames that a decoder presents; None if they do. It
            requires that no packet is discarded (edit lists) or corrupt, that times are complete, distinct, not
            negative and of one continuous clock, and that the header states the same number of frames.
        open_gop: whether a keyframe is followed by frames shown before it. Decoders that seek and then count frames, as
            decord does, return wrong frames there.
    """

    pts: np.ndarray
    keys: np.ndarray
    tick: float
    fps: float
    unreliable: str | None
    open_gop: bool

    @property
    def timestamps(self) -> np.ndarray:
        """float64 [N], seconds from the first frame."""
        return (self.pts - self.pts[0]) * self.tick


def read_timeline(path: str | Path) -> Timeline:
    """Read the timeline of a file by demuxing it to its end.

    Raises:
        VideoError: the file can't be opened.
    """
    container, stream = open_container(path)
    with container:
        pts, key_places, doubts, times = [], [], set(), PacketTimes()
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                times.add(packet)
                if packet.is_discard:
                    doubts.add("packets marked for discarding (an edit list)")
                if packet.is_corrupt:
                    doubts.add("packets marked corrupt")
                if packet.pts is None:
                    doubts.add("packets without a time")
                    continue
                if packet.is_keyframe:
                    key_places.append(len(pts))
                pts.append(packet.pts)
        except av.error.FFmpegError as e:
            doubts.add(f"demuxing ends in an error ({describe(e)})")
        pts = np.array(pts, dtype=np.int64)
        ascending, keys = np.sort(pts), pts[key_places]
        if not len(pts):
            doubts.add("no packets")
        elif ascending[0] < 0:
            doubts.add("times below zero")
        if (np.diff(ascending) == 0).any():
            doubts.add("two packets with one time")
        if times.breaks(longest_gap(container) / float(stream.time_base)):
            doubts.add("the clock restarts or jumps")
        if not len(keys) or keys[0] != ascending[0]:
            doubts.add("does not begin with a keyframe")
        if stream.frames and stream.frames != len(pts):
            doubts.add(f"{len(pts)} packets for {stream.frames} frames in the header")
        return Timeline(
            ascending,
            np.sort(keys),
            float(stream.time_base),
            times.fps(container, stream),
            "; ".join(sorted(doubts)) or None,
            open_gop=bool((np.searchsorted(ascending, keys) != key_places).any()),
        )


TOLERANCE = 1e-3  # seconds; containers with millisecond timestamps round 1/30 s to 33 or 34 ms


def resample_indices(timestamps: np.ndarray, fps: float, start: float = 0.0, count: int | None = None) -> np.ndarray:
    """Return int64 indices of the frames shown at start, start + 1/fps, ...: the latest frame not after each time.

    A time up to 1 ms before a frame counts as the time of that frame.

    Args:
        timestamps: float64 [N], seconds, ascending.
        fps: frames per second to resample to.
        start: seconds of the first frame.
        count: number of indices; None, up to the last timestamp plus one mean frame interval.
    """
    if count is None:
        gap = (timestamps[-1] - timestamps[0]) / max(len(timestamps) - 1, 1)
        count = max(1, int(np.ceil((timestamps[-1] + gap - start) * fps - TOLERANCE * fps)))
    return indices_at(timestamps, start + np.arange(count) / fps)


def indices_at(timestamps: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return int64 indices of the frames shown at `times` (seconds, any shape); before the first frame, index 0."""
    return np.maximum(np.searchsorted(timestamps, times + TOLERANCE, side="right") - 1, 0)


def resample_chunks(chunks: Iterator[Chunk], fps: float, last_display: float, size: int) -> Iterator[Chunk]:
    """Resample a stream of chunks as `resample_indices` does, with a delay of one frame.

    Args:
        chunks: the chunks to resample.
        fps: frames per second to resample to.
        last_display: display time of the last frame in seconds.
        size: frames per yielded chunk; the last one may be smaller.

    Yields:
        Chunks with timestamps j/fps.
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
    status = os.stat(path)
    key = f"{os.path.realpath(path)}:{status.st_size}:{status.st_mtime_ns}"
    name = hashlib.sha256(os.fsencode(key)).hexdigest()[:24]
    frames_file, facts_file = folder / f"{name}.rgb", folder / f"{name}.npz"
    if not facts_file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _decode(path, frames_file, facts_file)
    with np.load(facts_file, allow_pickle=False) as facts:
        shape, timestamps, fps = tuple(facts["shape"].tolist()), facts["timestamps"], float(facts["fps"])
    return np.memmap(frames_file, np.uint8, "r", shape=shape), timestamps, fps


def _decode(path: str | Path, frames_file: Path, facts_file: Path) -> None:
    """Decode a video into its two files, renamed into place: atomic, and safe with concurrent processes."""
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


def read_selection(
    path: str | Path, choose: Choose, cache: str | Path | None = None, view: ChooseView = lambda height, width: None
) -> Chunk:
    """Read selected frames, decoding from the nearest keyframes where the file allows it.

    Args:
        path: the video.
        choose: function of (timestamps, float64 [N] in seconds; fps) that returns int64 frame indices of any shape,
            repeats allowed.
        cache: folder for decoded frames, see `cached_frames`; None, no cache.
        view: function of (height, width) in pixels as shown that returns the region to read and its output size; None,
            the whole picture at native size. Called once, after `choose`.

    Returns:
        Frames uint8 [*shape,h,w,3] and timestamps float64 [*shape] in seconds.

    Raises:
        VideoError: the video can't be decoded.
    """
    if cache is not None:
        pictures, timestamps, fps = cached_frames(path, cache)
        indices = choose(timestamps, fps)
        return Chunk(convert_pictures(pictures[indices], view(*pictures.shape[1:3])), timestamps[indices])
    version = file_version(path)
    timeline, frames_NHWC = _timeline(version, str(path)), None
    if timeline.unreliable is None:
        timestamps = timeline.timestamps
        indices = choose(timestamps, timeline.fps)
        view = lru_cache(view)  # drawn once, also if seeking is given up
        try:
            frames_NHWC = _seek(path, timeline, indices.ravel(), view)
        except VideoError:
            check_unchanged(path, version)  # the better reason
            raise
    if frames_NHWC is None:
        with PyAVReader(path) as reader:
            timestamps = reader.timestamps
            indices = choose(timestamps, reader.fps)
            frames_NHWC = reader.frames(indices.ravel(), view(*reader.size))
    check_unchanged(path, version)
    return Chunk(frames_NHWC.reshape(*indices.shape, *frames_NHWC.shape[1:]), timestamps[indices])


AHEAD = 16  # frames; decoding so many is cheaper than a seek


@lru_cache(maxsize=20_000)
def _timeline(version: FileVersion, path: str) -> Timeline:
    return read_timeline(path)


def _seek(path: str | Path, timeline: Timeline, indices: np.ndarray, view: ChooseView) -> np.ndarray | None:
    """Decode frames in ascending order, seeking to a keyframe wherever that skips more than `AHEAD` frames.

    Return None if seeking leads elsewhere, as in containers without an index (MPEG-TS and -PS), or to frames that the
    decoder reports as corrupt.
    """
    places, out, convert = places_of(timeline.pts[indices]), None, None
    container, stream = open_container(path)
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
                convert = convert or FrameConverter((frame.width, frame.height), display_matrix(frame))
                picture_HWC = convert(frame, view(*convert.size))
                out = np.empty((len(indices), *picture_HWC.shape), np.uint8) if out is None else out
                out[places[wanted]] = picture_HWC
        except av.error.FFmpegError as e:
            what = f"frames {indices.min()} to {indices.max()}"
            raise VideoError(path, f"the stream breaks while reading {what} ({describe(e)})") from e
    return out


def _frames_from(container: InputContainer, stream: VideoStream, key: int) -> Iterator[VideoFrame] | None:
    """Seek to the keyframe at time `key` in ticks and return the frames from there; None if seeking leads elsewhere."""
    container.seek(key, stream=stream)
    packets = container.demux(stream)
    start = next(packets)
    if not start.is_keyframe or start.pts is None or start.pts > key:
        return None
    return chain(start.decode(), chain.from_iterable(packet.decode() for packet in packets))


def read_window(path: str | Path, frames: int, fps: float | None, position: float) -> np.ndarray:
    """Read a window of consecutive frames -> uint8 [T,H,W,3].

    Args:
        path: the video.
        frames: number of frames T.
        fps: frames per second to resample to (see `read_video`); None, native.
        position: 0..1, position of the window between the first possible and the last possible one.

    Raises:
        VideoError: the video is shorter than the window or can't be decoded.
    """
    choose = partial(window_indices, path=path, frames=frames, fps=fps, position=position)
    return read_selection(path, choose).frames


def window_indices(
    timestamps: np.ndarray, native_fps: float, path: str | Path, frames: int, fps: float | None, position: float
) -> np.ndarray:
    """Return the frame numbers of a window, int64 [frames], given timestamps float64 [T]; see `read_window`."""
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
