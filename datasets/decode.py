"""The `VideoReader` protocol, and sequential decoding by PyAV.

`PyAVReader` is the reference implementation and the fallback for files on which no seeking backend can be verified. It
also detects truncated Matroska, WebM and AVI files, whose end FFmpeg takes for the end of the video.
"""

from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import av
import numpy as np
from av import VideoFrame
from av.container import InputContainer
from av.video.stream import VideoStream

from vidtok.datasets.frames import display_matrix, exif_matrix, swaps_sides, to_rgb
from vidtok.errors import VideoError

OnError = Literal["raise", "keep"]


class Chunk(NamedTuple):
    """Consecutive frames of a video.

    Attributes:
        frames: uint8 [T,H,W,3], RGB.
        timestamps: float64 [T], seconds from the first frame of the video.
    """

    frames: np.ndarray
    timestamps: np.ndarray


class VideoReader(Protocol):
    """Protocol of the video readers: the frames of one video as FFmpeg presents them.

    Edit lists and rotation are applied; frames are in presentation order. A reader belongs to the process that opened
    it. Close it, or use it as a context manager.

    Attributes:
        backend: "pyav", "decord" or "torchcodec".
        path: the file.
        num_frames: number of presented frames.
        fps: average frames per second.
        duration: seconds, including the display time of the last frame.
        timestamps: float64 [num_frames], seconds from the first presented frame.
        start_time: time of the first presented frame on the container's clock, in seconds.
    """

    backend: str
    path: Path

    @property
    def num_frames(self) -> int: ...
    @property
    def fps(self) -> float: ...
    @property
    def duration(self) -> float: ...
    @property
    def timestamps(self) -> np.ndarray: ...
    @property
    def start_time(self) -> float: ...

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """Return the frames at `indices` (any order, repeats allowed) as uint8 [T,H,W,3] RGB.

        Raises:
            ValueError: an index outside 0..num_frames-1.
            VideoError: the stream breaks.
        """
        ...

    def iter_frames(self, chunk: int = 16) -> Iterator[Chunk]:
        """Yield all frames in presentation order, `chunk` at a time, in memory independent of the video's length."""
        ...

    def close(self) -> None: ...
    def __enter__(self) -> "VideoReader": ...
    def __exit__(self, *exc: object) -> None: ...


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv", ".asf",
    ".flv", ".3gp", ".ogv", ".vob", ".y4m", ".h264", ".264", ".hevc", ".265",
)  # fmt: skip
MEDIA_SUFFIXES = VIDEO_SUFFIXES + IMAGE_SUFFIXES
MAX_PIXELS = 1 << 27  # per frame; 16K UHD fits, a header that claims more is damaged or an attack


def open_container(path: str | Path) -> tuple[InputContainer, VideoStream]:
    """Open `path` and select the best video stream. The caller closes the container.

    Raises:
        VideoError: the file is missing or empty, or has no video that FFmpeg can decode.
    """
    path = Path(path)
    if not path.exists():
        raise VideoError(path, "no such file")
    if not path.is_file():
        raise VideoError(path, "not a file")
    if path.stat().st_size == 0:
        raise VideoError(path, "the file is empty (0 bytes)")
    # "file:" keeps a colon in a name from being read as a protocol. An image is passed as bytes, or FFmpeg would take
    # a % in its name for a numbered sequence.
    source = BytesIO(path.read_bytes()) if path.suffix.lower() in IMAGE_SUFFIXES else f"file:{path}"
    try:
        # max_pixels also applies to the decoders that probing starts, so that an absurd header costs no memory there.
        container = av.open(source, options={"max_pixels": str(MAX_PIXELS)}, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError) as e:
        raise VideoError(path, f"not a video or image that FFmpeg can read ({describe(e)})") from e
    try:
        return container, _video_stream(path, container)
    except VideoError:
        container.close()
        raise


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    if container.format.name == "tty":  # FFmpeg renders any .txt as a video of a terminal
        raise VideoError(path, "a text file, not a video")
    stream = container.streams.best("video")
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
        kinds = sorted({s.type for s in container.streams if s is not stream})
        raise VideoError(path, f"no video stream ({'only ' + ', '.join(kinds) if kinds else 'no streams'})")
    context = stream.codec_context
    if context is None:
        raise VideoError(path, "no decoder for its video stream")
    if context.width * context.height > MAX_PIXELS:
        raise VideoError(
            path, f"its header claims {context.width}x{context.height} pixels per frame, the limit is {MAX_PIXELS}"
        )
    context.options = {"max_pixels": str(MAX_PIXELS)}  # a stream may change its size later
    return stream


def stream_fps(stream: VideoStream) -> float:
    """Return the average frames per second of a stream; 25, FFmpeg's default, if the container states none."""
    return float(stream.average_rate or stream.guessed_rate or 25)


def describe(e: Exception) -> str:
    """Return FFmpeg's message without PyAV's prefix: `[Errno 1094995529] Invalid data ...` -> `Invalid data ...`."""
    return getattr(e, "strerror", None) or str(e)


_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def is_truncated(path: Path, container: InputContainer, stream: VideoStream, end: float) -> bool:
    """Return whether both the file and its video are shorter than the header says.

    Both are required, so that neither a wrong header nor a missing index after the last frame fails a good video.

    Args:
        end: end of the decoded video in seconds.
    """
    whole = {"matroska,webm": _segment_end, "avi": _riff_end}.get(container.format.name, lambda head: None)
    with open(path, "rb") as file:
        size = whole(file.read(4096))
    if size is None or size <= path.stat().st_size:
        return False
    promised = _seconds(stream.metadata.get("DURATION"))
    if promised is None:
        promised = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
    return end < promised - 1.5 / float(stream.average_rate or 25)


def _riff_end(head: bytes) -> int | None:
    """Return the file size in bytes according to the RIFF header; None without one."""
    return 8 + int.from_bytes(head[4:8], "little") if head.startswith(b"RIFF") else None


def _segment_end(head: bytes) -> int | None:
    """Return the file size in bytes according to the Matroska header; None if it is unknown (live streams)."""
    if not head.startswith(_EBML):
        return None
    size, place = _number(head, 4)
    if size is None or head[place + size : place + size + 4] != _SEGMENT:
        return None
    size, place = _number(head, place + size + 4)
    return None if size is None else place + size


def _number(data: bytes, place: int) -> tuple[int | None, int]:
    """Decode the EBML variable-length integer at `place`; return (value or None, position after it).

    A value whose bits are all ones means "unknown" and is returned as None.
    """
    if place >= len(data) or not data[place]:
        return None, place
    length = 9 - data[place].bit_length()
    bits = int.from_bytes(data[place : place + length], "big") & ((1 << 7 * length) - 1)
    return (None if bits == (1 << 7 * length) - 1 else bits), place + length


def _seconds(text: str | None) -> float | None:
    """Convert "00:01:02.500000000" to 62.5 seconds; None if the text is not a time."""
    try:
        hours, minutes, seconds = text.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except (AttributeError, ValueError):
        return None


class PyAVReader:
    """Decode sequentially with PyAV; a request for an earlier frame restarts from the beginning. See `VideoReader`.

    `num_frames` and `timestamps` decode the whole video once, since only the decoder knows which frames are presented;
    `iter_frames` needs no count. A frame that differs in size from the first is scaled to it (as ffmpeg does).

    Args:
        path: the file.
        on_error: "raise", or "keep": a video that breaks in the middle ends at its last good frame.

    Attributes:
        size: (height, width) in pixels as shown.
        coded_size: (width, height) in pixels before the rotation of the metadata.
        turned: whether the metadata rotate or mirror the picture.
        error: the `VideoError` that ended the video early with on_error="keep", after decoding has reached it.

    Raises:
        VideoError: no frame can be decoded.
    """

    backend = "pyav"

    def __init__(self, path: str | Path, on_error: OnError = "raise"):
        self.path, self._on_error = Path(path), on_error
        self.error: VideoError | None = None
        self._timestamps: np.ndarray | None = None
        self._container, stream = open_container(path)
        self._decoder = self._decode(self._container, stream)
        first = next(self._decoder, None)
        if first is None:
            reason = self.error.reason if self.error else "the stream is empty"
            if not stream.codec_context.width:
                reason += f"; damaged, or above the limit of {MAX_PIXELS} pixels a frame"
            self.close()
            raise VideoError(path, f"no frame could be decoded ({reason})", 0)
        self.fps = stream_fps(stream) if first.time is not None else float(stream.guessed_rate or 25)
        self._ahead, self._next = chain([first], self._decoder), 0  # the frames to come, and the index of the next
        self.start_time = self._time(first, 0)
        self.coded_size, matrix = (first.width, first.height), display_matrix(first)
        self._exif = exif_matrix(self.path) if self.path.suffix.lower() in IMAGE_SUFFIXES else None
        matrix = self._exif or matrix
        self.turned = matrix is not None
        self.size = (first.width, first.height) if swaps_sides(matrix) else (first.height, first.width)

    @property
    def num_frames(self) -> int:
        return len(self.timestamps)

    @property
    def duration(self) -> float:
        return float(self.timestamps[-1]) + 1 / self.fps

    @property
    def timestamps(self) -> np.ndarray:
        if self._timestamps is None:
            with PyAVReader(self.path, self._on_error) as other:  # keeps the position of this reader
                self._timestamps = np.array([t for t, _ in other._forward()])
                self.error = other.error
        return self._timestamps

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.ndim != 1 or not wanted.size or wanted.min() < 0:
            raise ValueError(f"indices must be a non-empty list of frame numbers from 0 on, got {indices!r}")
        if wanted.min() < self._next:
            self._restart()
        missing, pictures = set(wanted.tolist()), {}
        while missing and (entry := next(self._forward(), None)) is not None:
            index = self._next - 1
            if index in missing:
                missing.remove(index)
                pictures[index] = to_rgb(entry[1], *self.coded_size, self._exif)
        if missing:
            raise ValueError(f"{self.path} has frames 0 to {self._next - 1}, not {max(missing)}")
        return np.stack([pictures[i] for i in wanted.tolist()])

    def iter_frames(self, chunk: int = 16) -> Iterator[Chunk]:
        if chunk < 1:
            raise ValueError(f"chunk={chunk} must be at least 1")
        times, pictures = [], []
        for time, frame in self.iter_decoded():
            times.append(time)
            pictures.append(to_rgb(frame, *self.coded_size, self._exif))
            if len(times) == chunk:
                yield Chunk(np.stack(pictures), np.array(times))
                times, pictures = [], []
        if times:
            yield Chunk(np.stack(pictures), np.array(times))

    def iter_decoded(self) -> Iterator[tuple[float, VideoFrame]]:
        """Yield (timestamp, frame as decoded: not converted, scaled or rotated) in presentation order."""
        if self._next:
            self._restart()
        yield from self._forward()

    def close(self) -> None:
        self._decoder.close()
        self._container.close()

    def __enter__(self) -> "PyAVReader":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _forward(self) -> Iterator[tuple[float, VideoFrame]]:
        """Yield (timestamp, frame) from the current position on."""
        for frame in self._ahead:
            self._next += 1
            yield self._time(frame, self._next - 1) - self.start_time, frame

    def _decode(self, container, stream) -> Iterator[VideoFrame]:
        """Yield the presented frames from the start, up to the first that FFmpeg can't decode or reports as corrupt.

        The failure is raised or kept in `error`. Corrupt frames before the first good one are passed through. Frames
        that are shown before a damaged one but predicted from it (B-frames) count as good, since FFmpeg does not
        report them.
        """
        good, begun, last, cause = 0, False, None, None
        frames, why = container.decode(stream), None
        while why is None:
            try:
                frame = next(frames, None)
            except (av.error.FFmpegError, MemoryError) as e:
                cause, why = e, describe(e)
                # Frames decoded before the break and buffered for presentation.
                waiting = stream.codec_context.decode(None)
            else:
                waiting = [] if frame is None else [frame]
                if frame is None:
                    break
            for frame in waiting:
                if frame.is_corrupt and begun:
                    why = why or "the next one is damaged"
                    break
                begun = begun or not frame.is_corrupt
                good, last = good + 1, frame.time
                yield frame
        if (
            why is None
            and last is not None
            and is_truncated(self.path, container, stream, last + 1 / stream_fps(stream))
        ):
            why = "the file is truncated"
        if why is not None:
            words = f"the stream breaks after {good} good frames ({why})" if good else why
            self.error = VideoError(self.path, words, good)
            if good and self._on_error == "raise":
                raise self.error from cause

    def _restart(self) -> None:
        self.close()
        self._container, stream = open_container(self.path)
        self._decoder = self._decode(self._container, stream)
        self._ahead, self._next = self._decoder, 0

    def _time(self, frame: VideoFrame, index: int) -> float:
        return index / self.fps if frame.time is None else frame.time  # raw streams carry no timestamps
