"""Open a media file, select its video stream, iterate over its frames, and detect files that are cut off."""

import re
from collections.abc import Iterator
from fractions import Fraction
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import BinaryIO, cast

import av
import numpy as np
import torch
from av import VideoFrame
from av.container import InputContainer
from av.video.stream import VideoStream
from PIL import Image

from vidtok.archives import open_binary, validate_no_archive
from vidtok.errors import UserError, VideoError
from vidtok.files import file_version
from vidtok.names import IMAGE_SUFFIXES

OLDEST_AV = 17  # older versions ignore the color tags: BT.709 is read with the matrix of BT.601, up to 23 levels off
if int(av.__version__.partition(".")[0]) < OLDEST_AV:
    raise UserError(f"vidtok needs av>={OLDEST_AV}, not {av.__version__}: pip install -U av")

MAX_PIXELS = 1 << 27  # per frame; 16K UHD fits, a header that claims more is damaged or an attack
LARGE = 1280 * 720  # pixels per frame from which several threads decode
MAX_THREADS = 16  # of one decoder, as in FFmpeg
PIXELS_IN_THREADS = 1 << 26  # 8 threads at 4K, whose pictures take 200 MB at 10 bits

# Formats whose files only name others, which FFmpeg would open: files of this machine, or addresses.
_REFERRING = {
    "concat", "dash", "hls", "imf", "ipmovie", "lavfi", "mlv", "rtp", "rtsp", "sap", "sdp", "vobsub",
    "webm_dash_manifest",
}  # fmt: skip
_FORMATS = ",".join(sorted(name for name in av.formats_available if not _REFERRING & set(name.split(","))))
# max_pixels also applies to the decoders that probing starts, so that an absurd header costs no memory there.
# A % in the name of a file is no pattern of numbered images.
_OPTIONS = {
    "max_pixels": str(MAX_PIXELS),
    "format_whitelist": _FORMATS,
    "protocol_whitelist": "file",
    "pattern_type": "none",
}
HEAD = 4096  # bytes of a file by which it is told what it is
# As FFmpeg tells them: by the first bytes, or by what the first lines hold.
_SCRIPTS = (
    (re.compile(rb"\W*#EXTM3U"), "an HLS playlist"),
    (re.compile(rb"\s*ffconcat version"), "an ffconcat script"),
    (re.compile(rb"\W*(?=<).*<MPD\s", re.DOTALL), "a DASH manifest"),
    (re.compile(rb"v=0\r?\n.*^(c=IN IP|m=)", re.DOTALL | re.MULTILINE), "an SDP session description"),
)


def open_container(path: str | Path, threads: int = MAX_THREADS) -> tuple[InputContainer, VideoStream]:
    """Open `path` and select the best video stream. The caller closes the container.

    FFmpeg opens no other file and no address: playlists and the like are refused, whatever their suffix.

    Args:
        path: the file.
        threads: at most so many decode it, see also `LARGE` and `PIXELS_IN_THREADS`.

    Raises:
        VideoError: the file is missing or empty, or has no video that FFmpeg can decode.
    """
    path = Path(path)
    try:
        if not path.is_file() and path.exists():
            raise VideoError(path, "not a file")
        if file_version(path).size == 0:
            raise VideoError(path, "the file is empty (0 bytes)")
        validate_no_archive(path)
        # "file:" keeps a colon in a name from being read as a protocol. An image is passed as bytes, or FFmpeg would
        # take a % in its name for a numbered sequence.
        _refuse_script(path)
        source: str | BinaryIO
        if path.suffix.lower() in IMAGE_SUFFIXES:
            source = _image_data(path)
        else:
            source = f"file:{path}" if path.is_file() else open_binary(path)
    except OSError as e:  # not readable, gone by now, or a name that is too long
        raise VideoError(path, e.strerror or str(e)) from e
    try:
        container = av.open(source, "r", options=_OPTIONS, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError) as e:
        raise VideoError(path, f"not a video or image that FFmpeg can read ({describe(e)})") from e
    try:
        return container, _video_stream(path, container, threads)
    except VideoError:
        container.close()
        raise


def _refuse_script(path: Path) -> None:
    """Raise VideoError for a text that tells FFmpeg which other files to open."""
    with open_binary(path) as file:
        head = file.read(HEAD)
    for pattern, what in _SCRIPTS:
        if pattern.match(head):
            raise VideoError(path, f"{what}, not a video: give the video files that it names")


def _image_data(path: Path) -> BytesIO:
    """Return the bytes of an image file, or for an animated WebP, which FFmpeg can't read, of a video of its frames."""
    with open_binary(path) as file:
        data = BytesIO(file.read())
    if path.suffix.lower() != ".webp":
        return data
    try:
        with Image.open(data) as image:
            if getattr(image, "is_animated", False):
                return _webp_frames(image)
    except (OSError, SyntaxError, ValueError) as e:
        raise VideoError(path, f"not an image that Pillow can read ({e})") from e
    data.seek(0)
    return data


def _webp_frames(image: Image.Image) -> BytesIO:
    """Write the frames of an animated image without loss, with their times in milliseconds."""
    frames, times = [], [0]
    for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        frames.append(np.asarray(image.convert("RGB")))
        times.append(times[-1] + image.info["duration"])
    data = BytesIO()
    with av.open(data, "w", format="matroska") as container:
        rate = Fraction(1000 * len(frames), max(times[-1], 1)).limit_denominator(1001)
        stream = container.add_stream("ffv1", rate=rate, options={"level": "3"})
        stream.width, stream.height, stream.pix_fmt = *image.size, "bgr0"
        stream.codec_context.time_base = Fraction(1, 1000)
        for picture_HWC, time in zip(frames, times, strict=False):
            frame = av.VideoFrame.from_ndarray(picture_HWC, format="rgb24").reformat(format="bgr0")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data.seek(0)
    return data


def _video_stream(path: Path, container: InputContainer, threads: int) -> VideoStream:
    if container.format.name == "tty":  # FFmpeg renders any .txt as a video of a terminal
        raise VideoError(path, "a text file, not a video")
    stream = cast("VideoStream | None", container.streams.best("video"))
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
    if (pixels := context.width * context.height) >= LARGE:
        context.thread_type = "FRAME"
        context.thread_count = max(1, min(torch.get_num_threads(), threads, PIXELS_IN_THREADS // pixels))
    else:
        context.thread_count = 1
    return stream


class Decoding:
    """Iterate over the frames of a video, `skip` of them left out.

    Attributes:
        is_threaded: whether several threads decode. Then FFmpeg tells neither which packet an error is about nor what
            is good before it, and drops errors of the last packets.
        is_short: whether several threads gave fewer frames than packets, so far.
    """

    def __init__(self, container: InputContainer, stream: VideoStream, skip: int = 0):
        self.is_threaded = stream.codec_context.thread_count > 1
        self._balance, self._skip = 0, skip
        self._frames = self._count(container, stream) if self.is_threaded else container.decode(stream)

    @property
    def is_short(self) -> bool:
        return self._balance > 0

    def __iter__(self) -> Iterator[VideoFrame]:
        return islice(self._frames, self._skip, None)

    def _count(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        for packet in container.demux(stream):
            self._balance += bool(packet.size) and not packet.is_discard
            for frame in packet.decode():
                self._balance -= 1
                yield frame


def tick_of(stream: VideoStream) -> Fraction:
    """Return the seconds per unit of the stream's times."""
    assert stream.time_base is not None  # FFmpeg sets it for every stream
    return stream.time_base


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
    with open_binary(path) as file:
        size = whole(file.read(HEAD))
    if size is None or size <= file_version(path).size:
        return False
    promised = _seconds(stream.metadata.get("DURATION"))
    if promised is None:
        promised = (container.duration or 0) / 1e6
        if stream.duration:
            promised = float(stream.duration * tick_of(stream))
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
        hours, minutes, seconds = (text or "").split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        return None
