"""Opening a file with FFmpeg, and what is decided before a frame is decoded."""

from io import BytesIO
from pathlib import Path

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from .error import VideoError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv", ".asf",
    ".flv", ".3gp", ".ogv", ".vob", ".y4m", ".h264", ".264", ".hevc", ".265",
)  # fmt: skip
MEDIA_SUFFIXES = VIDEO_SUFFIXES + IMAGE_SUFFIXES
MAX_PIXELS = 1 << 27  # 16K UHD fits; a header that claims more is damage or an attack


def open_container(path: str | Path) -> tuple[InputContainer, VideoStream]:
    """Open `path` and pick the best video stream. Raises `VideoError`; the caller closes the container."""
    path = Path(path)
    if not path.exists():
        raise VideoError(path, "no such file")
    if not path.is_file():
        raise VideoError(path, "not a file")
    if path.stat().st_size == 0:
        raise VideoError(path, "the file is empty (0 bytes)")
    # "file:" keeps a colon in a name from being read as a protocol. An image goes in as bytes, or FFmpeg would take
    # a % in its name for a numbered sequence.
    source = BytesIO(path.read_bytes()) if path.suffix.lower() in IMAGE_SUFFIXES else f"file:{path}"
    try:
        # max_pixels reaches the decoders that probing starts, so an absurd header costs no memory there either.
        container = av.open(source, options={"max_pixels": str(MAX_PIXELS)}, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError) as e:
        raise VideoError(path, f"not a video or image that FFmpeg can read ({describe(e)})") from e
    try:
        return container, _video_stream(path, container)
    except VideoError:
        container.close()
        raise


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    if container.format.name == "tty":  # FFmpeg renders any .txt as a film of a terminal
        raise VideoError(path, "a text file, not a video")
    stream = container.streams.best("video")
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
        kinds = sorted({s.type for s in container.streams if s is not stream})
        raise VideoError(path, f"no video stream ({'only ' + ', '.join(kinds) if kinds else 'no streams'})")
    context = stream.codec_context
    if context is None:
        raise VideoError(path, "no decoder for its video stream")
    if context.width * context.height > MAX_PIXELS:
        raise VideoError(path, f"header claims {context.width}x{context.height} pixels, limit is {MAX_PIXELS} in all")
    context.options = {"max_pixels": str(MAX_PIXELS)}  # a stream may change its size later
    return stream


def stream_fps(stream: VideoStream) -> float:
    """Average frames per second of a stream; 25, FFmpeg's own default, where the container has no clue."""
    return float(stream.average_rate or stream.guessed_rate or 25)


def describe(e: Exception) -> str:
    """FFmpeg's words without PyAV's decoration: `[Errno 1094995529] Invalid data ...: 'file'` -> `Invalid data ...`."""
    return getattr(e, "strerror", None) or str(e)
