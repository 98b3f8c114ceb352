"""Detect truncated files, and decode past damage: which frames are missing, and which may be wrong."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
from av import Packet, VideoFrame
from av.container import InputContainer
from av.video.stream import VideoStream

from vidtok.datasets.container import Decoding, describe, open_container, stated_rate, tick_of
from vidtok.inputs import HEAD, file_version, open_binary


class Damage:
    """Record of the damage of a video, as far as it has been decoded. `str()` is one line, "" without damage.

    Attributes:
        reason: the first error, in FFmpeg's words; "" without one.
        good: number of frames returned.
        is_complete: whether the whole video has been decoded.
    """

    def __init__(self):
        self.reason, self.good, self.is_complete = "", 0, False
        self._shown: set[float] = set()  # times of the returned frames in seconds; empty for a stream without times
        self._start: float | None = None  # time of the first frame on the container's clock in seconds
        self._packets: list[tuple[float, bool]] = []  # (seconds, whether it is a keyframe), in the order of the file
        self._lost: set[float] = set()

    def add_packet(self, packet: Packet, rate: float) -> float:
        """Record a packet; return its time in seconds, computed from `rate` in a stream without times."""
        ticks = packet.dts if packet.pts is None else packet.pts
        time = round(len(self._packets) / rate if ticks is None else float(ticks * packet.time_base), 6)
        self._packets.append((time, packet.is_keyframe))
        return time

    def add_frame(self, frame: VideoFrame) -> None:
        """Record a frame that is returned."""
        self.good += 1
        if frame.time is not None:
            self._start = frame.time if self._start is None else self._start
            self._shown.add(round(frame.time, 6))

    def lose(self, reason: str, time: float | None = None) -> None:
        """Record an error, and the time in seconds of the frame that is lost, if known."""
        self.reason = self.reason or reason
        if time is not None:
            self._lost.add(round(time, 6))

    @property
    def missing(self) -> tuple[float, ...]:
        """Times of the missing frames: those that were not decoded, or that FFmpeg reports as corrupt.

        All times are in seconds from the first returned frame.
        """
        end = math.inf if self.is_complete and self._shown else max(self._shown, default=0.0)
        return self._from_start(self._lost | {time for time in self._shadow() - self._shown if time < end})

    @property
    def suspect(self) -> tuple[float, ...]:
        """Times of the frames that may be predicted from a missing one: up to the next keyframe in the file."""
        return self._from_start(self._shadow() & self._shown if self._shown else self._shadow() - self._lost)

    def _shadow(self) -> set[float]:
        """Return the times of the packets from a lost one up to the next keyframe."""
        found, is_shadowed = set(), False
        for time, is_key in self._packets:
            is_shadowed = time in self._lost or (is_shadowed and not is_key)
            if is_shadowed:
                found.add(time)
        return found

    def _from_start(self, times: Iterable[float]) -> tuple[float, ...]:
        return tuple(round(time - (self._start or 0.0), 6) for time in sorted(times))

    def as_meta(self) -> dict:
        """Return the fields of `vidtok.extraction.record.RecordMeta` that are about damage."""
        return {"missing": self.missing, "suspect": self.suspect, "damage": str(self)} if self.reason else {}

    def __str__(self) -> str:
        if not self.reason:
            return ""
        lost, text = self.missing, f"{self.good} good frames"
        if lost:
            places = ", ".join(f"{time:.2f}" for time in lost[:3]) + (f" and {len(lost) - 3} more" if lost[3:] else "")
            text += f", missing at {places} s"
        if self.suspect:
            text += f", {len(self.suspect)} predicted from there may be wrong"
        return f"{text} ({self.reason})"


def decode_past_damage(
    path: Path, container: InputContainer, stream: VideoStream, damage: Damage
) -> Iterator[VideoFrame]:
    """Yield the frames of a video; continue after damage as the ffmpeg command does.

    Frames that FFmpeg reports as corrupt are left out, except those before the first good frame if there is no earlier
    damage. After the first error the video is decoded again in one thread (see `Decoding`).

    Args:
        path, container, stream: the video, see `open_container`.
        damage: updated with what is lost; complete after the last frame.
    """
    begun, last, decoding = False, None, Decoding(container, stream)
    try:
        for frame in decoding:
            if frame.is_corrupt and begun:
                damage.lose("a frame is damaged")
                break
            begun, last = begun or not frame.is_corrupt, frame.time
            damage.add_frame(frame)
            yield frame
    except (av.error.FFmpegError, MemoryError) as e:
        damage.lose(describe(e))
    if not damage.reason and not (decoding.is_threaded and decoding.is_short):
        if last is not None and is_truncated(path, container, stream, last):
            damage.lose("the file is truncated")
        damage.is_complete = True
        return
    given, last = damage.good, None
    container, stream = open_container(path, threads=1)
    with container:
        for number, frame in enumerate(_decode_packets(container, stream, damage)):
            last = frame.time
            if number >= given:
                damage.add_frame(frame)
                yield frame
        if last is not None and is_truncated(path, container, stream, last):
            damage.lose("the file is truncated")
    damage.is_complete = True


def _decode_packets(container: InputContainer, stream: VideoStream, damage: Damage) -> Iterator[VideoFrame]:
    """Yield the frames of all packets that FFmpeg decodes without an error."""
    rate, begun, faults = stated_rate(stream), False, 0
    packets = container.demux(stream)
    while True:
        time = None
        try:
            if (packet := next(packets, None)) is None:
                return
            time = damage.add_packet(packet, rate) if packet.size else None
            frames = packet.decode()
        except (av.error.FFmpegError, MemoryError) as e:
            damage.lose(describe(e), time)
            faults += 1
            continue
        for frame in frames:
            if frame.is_corrupt and (begun or faults):
                damage.lose("a frame is damaged", frame.time)
                faults += 1
            else:
                begun = begun or not frame.is_corrupt
                yield frame


_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def is_truncated(path: Path, container: InputContainer, stream: VideoStream, last: float) -> bool:
    """Return whether both the file and its video are shorter than the header states.

    Both are required, so that a good video with a wrong header, or without an index after the last frame, is accepted.

    Args:
        path, container, stream: the video, see `open_container`.
        last: time of the last decoded frame in seconds.
    """
    whole = {"matroska,webm": _segment_end, "avi": _riff_end}.get(container.format.name)
    if whole is None:
        return False
    with open_binary(path) as file:
        size = whole(file.read(HEAD))
    if size is None or size <= file_version(path).size:
        return False
    promised = _seconds(stream.metadata.get("DURATION"))
    if promised is None:
        promised = (container.duration or 0) / 1e6
        if stream.duration:
            promised = float(stream.duration * tick_of(stream))
    return last + 1 / stated_rate(stream) < promised - 1.5 / float(stream.average_rate or 25)


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
