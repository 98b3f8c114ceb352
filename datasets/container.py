"""Open a media file, select its video stream and iterate over its frames; presentation times and rate from packets.

A container may state no frame rate (browsers' WebM, GIF, ASF) or a wrong one (variable rate). Its clock may restart or
jump, for example in two recordings joined with `cat`, or if the clock was set while recording. The rules for clocks are
those of ffmpeg's `ts_discontinuity_detect`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from io import BytesIO
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO, cast

import av
import numpy as np
import torch
from av import Packet, VideoFrame
from av.container import InputContainer
from av.video.stream import VideoStream
from PIL import Image

from vidtok.errors import UserError, VideoError
from vidtok.inputs import FileVersion, open_binary, read_head
from vidtok.names import IMAGE_SUFFIXES

OLDEST_AV = 17  # older versions ignore color tags and convert BT.709 by the matrix of BT.601, up to 23 levels off
AV_MAJOR = int(av.__version__.partition(".")[0])
if AV_MAJOR < OLDEST_AV:
    raise UserError(f"vidtok needs av>={OLDEST_AV}, not {av.__version__}: pip install -U av")

MAX_PIXELS = 1 << 27  # per frame; 16K UHD fits, a header that states more is damaged or an attack
LARGE = 1280 * 720  # pixels per frame from which several threads decode
MAX_THREADS = 16  # per decoder, as in FFmpeg
PIXELS_IN_THREADS = 1 << 26  # 8 threads at 4K, whose frames take 200 MB at 10 bits

# Formats that only refer to other files or addresses, which FFmpeg would open.
_REFERRING = {
    "concat", "dash", "hls", "imf", "ipmovie", "lavfi", "mlv", "rtp", "rtsp", "sap", "sdp", "vobsub",
    "webm_dash_manifest",
}  # fmt: skip
_FORMATS = ",".join(sorted(name for name in av.formats_available if not _REFERRING & set(name.split(","))))
# max_pixels also applies to the decoders that probing starts, so that an absurd header costs no memory there.
# A % in a file name must not be read as a pattern of numbered images.
_OPTIONS = {
    "max_pixels": str(MAX_PIXELS),
    "format_whitelist": _FORMATS,
    "protocol_whitelist": "file",
    "pattern_type": "none",
}
# Tags that aren't UTF-8 are no reason to reject a file. From version 19 on av agrees and has no such option.
_TAGS: dict[str, Any] = {} if AV_MAJOR >= 19 else {"metadata_errors": "replace"}
# Detected as FFmpeg does: by the first bytes, or by the first lines.
_SCRIPTS = (
    (re.compile(rb"\W*#EXTM3U"), "an HLS playlist"),
    (re.compile(rb"\s*ffconcat version"), "an ffconcat script"),
    (re.compile(rb"\W*(?=<).*<MPD\s", re.DOTALL), "a DASH manifest"),
    (re.compile(rb"v=0\r?\n.*^(c=IN IP|m=)", re.DOTALL | re.MULTILINE), "an SDP session description"),
)


def open_container(path: str | Path, threads: int = MAX_THREADS) -> tuple[InputContainer, VideoStream]:
    """Open `path` and select the best video stream. The caller closes the container.

    FFmpeg opens no other files and no addresses: playlists and similar formats are rejected, whatever their suffix.

    Args:
        path: the file.
        threads: maximal number of decoder threads, see also `LARGE` and `PIXELS_IN_THREADS`.

    Raises:
        VideoError: the file is missing or empty, or has no video that FFmpeg can decode.
    """
    path = Path(path)
    try:
        head = read_head(path)
        for pattern, what in _SCRIPTS:
            if pattern.match(head):
                raise VideoError(path, f"{what}, not a video: give the video files that it names")
        # "file:" keeps a colon in a name from being read as a protocol. An image is passed as bytes, because FFmpeg
        # would read a % in its name as a pattern.
        source: str | BinaryIO
        if path.suffix.lower() in IMAGE_SUFFIXES:
            source = _image_data(path)
        else:
            source = f"file:{path}" if path.is_file() else open_binary(path)
    except OSError as e:  # not readable, deleted since, or a name that is too long
        raise VideoError(path, e.strerror or str(e)) from e
    try:
        container = av.open(source, "r", options=_OPTIONS, **_TAGS)
    except (av.error.FFmpegError, ValueError) as e:
        raise VideoError(path, f"not a video or image that FFmpeg can read ({describe(e)})") from e
    try:
        return container, _video_stream(path, container, threads)
    except VideoError:
        container.close()
        raise


def _image_data(path: Path) -> BytesIO:
    """Return the bytes of an image file; for an animated WebP, which FFmpeg can't read, those of a lossless video."""
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
    """Write the frames of an animated image to a lossless video, with times in milliseconds."""
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
    # Each frame thread holds a frame in memory, and small frames are decoded fast enough without threads.
    if (pixels := context.width * context.height) >= LARGE:
        context.thread_type = "FRAME"
        context.thread_count = max(1, min(torch.get_num_threads(), threads, PIXELS_IN_THREADS // pixels))
    else:
        context.thread_count = 1
    return stream


class Decoding:
    """Iterator over the frames of a video after the first `skip` frames.

    Attributes:
        is_threaded: whether several threads decode. FFmpeg then neither says which packet an error is about nor returns
            the good frames before it, and drops errors of the last packets.
        is_short: whether several threads have returned fewer frames than packets so far.
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
    """Return the time base of a stream: seconds per tick."""
    base = stream.time_base
    assert base is not None  # FFmpeg sets it for every stream
    return Fraction(base.numerator, base.denominator)


def describe(e: Exception) -> str:
    """Return FFmpeg's message without PyAV's prefix: `[Errno 1094995529] Invalid data ...` -> `Invalid data ...`."""
    return getattr(e, "strerror", None) or str(e)


JUMP = 10  # seconds forward, in formats whose clock may jump: ffmpeg's -dts_delta_threshold
LONGEST_GAP = 108_000  # seconds forward, in all other formats: ffmpeg's -dts_error_threshold
_MAY_JUMP = 0x0200  # AVFMT_TS_DISCONT: MPEG-TS, MPEG-PS, Ogg

MEASURED = 10_000  # packets from which a rate is measured
PLAUSIBLE = 240  # frames per second; above it, a stated rate is often the tick of the container (1000 in WebM)
DEVIATION = 0.05  # relative deviation of stated and measured rate that counts as rounding


def longest_gap(container: InputContainer) -> float:
    """Return the number of seconds between two frames above which the clock of this container has jumped."""
    return JUMP if container.format.flags & _MAY_JUMP else LONGEST_GAP


@dataclass
class PacketTimes:
    """Times of the packets of a video stream, in the order of the file.

    Attributes:
        pts, dts: times in ticks; None if the container has none.
        keys: whether each packet holds a keyframe.
        duration: display time of the last packet in ticks; 0, unknown.
    """

    pts: list[int | None] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    keys: list[bool] = field(default_factory=list)
    duration: int = 0

    def add(self, packet: Packet) -> None:
        self.pts.append(packet.pts)
        self.dts.append(packet.dts)
        self.keys.append(packet.is_keyframe)
        self.duration = packet.duration or 0

    def breaks(self, limit: float) -> list[int]:
        """Return the numbers of the packets at which the clock restarts, or jumps by more than `limit` ticks."""
        found, last, highest = [], None, None
        for number, (pts, dts, is_key) in enumerate(zip(self.pts, self.dts, self.keys, strict=True)):
            # Frames shown before a keyframe may follow it in the file, but nothing before it is shown after it.
            is_late = is_key and pts is not None and highest is not None and pts < highest
            if is_late or (last is not None and dts is not None and not 0 <= dts - last <= limit):
                found.append(number)
                highest = None
            last = last if dts is None else dts
            highest = max((t for t in (pts, highest) if t is not None), default=None)
        return found

    def fps(self, container: InputContainer, stream: VideoStream) -> float:
        """Return the frames per second of the packets' stream; measure them if the header is not reliable.

        The first `MEASURED` packets are measured. The stated rate is kept if it agrees.
        """
        stated, tick = stated_rate(stream), float(tick_of(stream))
        if is_rate_reliable(container, stream):
            return stated
        first = PacketTimes(self.pts[:MEASURED], self.dts[:MEASURED], self.keys[:MEASURED])
        limit = longest_gap(container) / tick
        edges = [0, *first.breaks(limit), len(first.pts)]
        sections = [[t for t in first.pts[start:stop] if t is not None] for start, stop in pairwise(edges)]
        steps = np.concatenate([np.diff(np.sort(np.array(section, dtype=np.int64))) for section in sections])
        steps = steps[steps <= limit]
        if steps.sum() > 0:
            measured = 1 / float(steps.mean() * tick)
            return stated if abs(measured / stated - 1) <= DEVIATION else measured
        return 1 / (self.duration * tick) if len(self.pts) == 1 and self.duration > 0 else stated


def stated_rate(stream: VideoStream) -> float:
    """Return the frames per second according to the header; 25, FFmpeg's default, if it states none."""
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    return rate if rate < 1000 else 25.0


def is_rate_reliable(container: InputContainer, stream: VideoStream) -> bool:
    """Return whether the header's rate is computed from all frames (MP4), or determines their spacing (AVI).

    Otherwise it was set by the encoder of the file, or estimated from the first frames.
    """
    rate = stream.average_rate
    return bool(stream.frames and rate and rate <= PLAUSIBLE and container.format.name != "gif")


def measure_rate(container: InputContainer, stream: VideoStream) -> float:
    """Measure the frames per second of a stream by `PacketTimes.fps`.

    This consumes the container: open one for this purpose.
    """
    times = PacketTimes()
    for packet in container.demux(stream):
        if not packet.size or len(times.pts) == MEASURED:
            break
        times.add(packet)
    return times.fps(container, stream)


@dataclass(frozen=True)
class Timeline:
    """Presentation times of all frames of a file, read from its packets without decoding.

    Attributes:
        pts: int64 [N], presentation times of all packets, ascending, in ticks.
        keys: int64 [K], presentation times of the keyframes, ascending, in ticks.
        tick: seconds per tick.
        fps: average frames per second, see `PacketTimes.fps`.
        unreliable: the reason why the packets do not determine the frames that a decoder presents; None if they do.
            They do if no packet is discarded (edit lists) or corrupt; if times are complete, distinct, not negative, on
            one continuous clock, and presentation times; if the header states the same number of frames; and if the
            decoder needs only the packets since a keyframe.
        has_breaks: whether the clock restarts or jumps.
        open_gop: whether a keyframe is followed by frames shown before it. Decoders that seek and then count frames, as
            decord does, return wrong frames there.
    """

    pts: np.ndarray
    keys: np.ndarray
    tick: float
    fps: float
    unreliable: str | None
    open_gop: bool
    has_breaks: bool

    @property
    def timestamps(self) -> np.ndarray:
        """Timestamps of the frames, float64 [N], in seconds from the first frame."""
        return (self.pts - self.pts[0]) * self.tick


def read_timeline(path: str | Path) -> Timeline:
    """Read the timeline of a file by demuxing it to its end.

    Raises:
        VideoError: the file can't be opened.
    """
    container, stream = open_container(path)
    with container:
        context = stream.codec_context
        ticks: list[int] = []
        key_places: list[int] = []
        doubts: set[str] = set()
        times = PacketTimes()
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
                    key_places.append(len(ticks))
                ticks.append(packet.pts)
        except av.error.FFmpegError as e:
            doubts.add(f"demuxing ends in an error ({describe(e)})")
        pts = np.array(ticks, dtype=np.int64)
        ascending, keys = np.sort(pts), pts[key_places]
        if not len(pts):
            doubts.add("no packets")
        elif ascending[0] < 0:
            doubts.add("times below zero")
        if (np.diff(ascending) == 0).any():
            doubts.add("two packets with one time")
        if has_breaks := bool(times.breaks(longest_gap(container) / float(tick_of(stream)))):
            doubts.add("the clock restarts or jumps")
        # FFmpeg numbers H.264 in AVI, and MP4 without composition offsets, as the packets come.
        no_offsets = container.format.name == "avi" or times.pts == times.dts
        if context.has_b_frames and len(pts) > 2 and no_offsets and (pts == ascending).all():
            doubts.add("no presentation times of frames that may be out of order")
        if context.pix_fmt == "pal8":
            doubts.add("a palette, which comes with the first packet alone")
        if not len(keys) or keys[0] != ascending[0]:
            doubts.add("does not begin with a keyframe")
        if stream.frames and stream.frames != len(pts):
            doubts.add(f"{len(pts)} packets for {stream.frames} frames in the header")
        return Timeline(
            ascending,
            np.sort(keys),
            float(tick_of(stream)),
            times.fps(container, stream),
            "; ".join(sorted(doubts)) or None,
            open_gop=bool((np.searchsorted(ascending, keys) != key_places).any()),
            has_breaks=has_breaks,
        )


@lru_cache(maxsize=20_000)
def cached_timeline(version: FileVersion, path: str) -> Timeline:
    """Return `read_timeline(path)`, read once for each version of the file."""
    return read_timeline(path)
