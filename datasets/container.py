"""Open a media file, select its video stream, and tell a truncated file from a whole one."""

from io import BytesIO
from pathlib import Path

import av
import torch
from av.container import InputContainer
from av.video.stream import VideoStream

from vidtok.errors import VideoError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv", ".asf",
    ".flv", ".3gp", ".ogv", ".vob", ".y4m", ".h264", ".264", ".hevc", ".265",
)  # fmt: skip
MEDIA_SUFFIXES = VIDEO_SUFFIXES + IMAGE_SUFFIXES
MAX_PIXELS = 1 << 27  # per frame; 16K UHD fits, a header that claims more is damaged or an attack
LARGE = 1280 * 720  # pixels per frame from which several threads decode


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
    # Frame threads hold a picture each, and small pictures decode fast enough without them.
    if context.width * context.height >= LARGE:
        context.thread_type, context.thread_count = "FRAME", torch.get_num_threads()
    else:
        context.thread_count = 1
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
