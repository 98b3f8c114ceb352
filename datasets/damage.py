"""Decode past damage: which frames of a damaged video are missing, and which may be wrong."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
from av import Packet, VideoFrame
from av.container import InputContainer
from av.video.stream import VideoStream

from vidtok.datasets.container import Decoding, describe, is_truncated, open_container
from vidtok.datasets.timeline import stated_rate


class Damage:
    """What a damaged video has lost, as far as it has been decoded. `str()` is one line, "" where nothing is lost.

    Attributes:
        reason: the first fault, in FFmpeg's words; "" without one.
        good: number of frames that are given out.
        is_complete: whether all of the video has been decoded.
    """

    def __init__(self):
        self.reason, self.good, self.is_complete = "", 0, False
        self._shown: set[float] = set()  # seconds; none in a stream without times
        self._start: float | None = None  # of the first frame, in seconds on the container's clock
        self._packets: list[tuple[float, bool]] = []  # (seconds, whether it is a keyframe), in the order of the file
        self._lost: set[float] = set()

    def add_packet(self, packet: Packet, rate: float) -> float:
        """Note a packet; return its time in seconds, by `rate` in a stream without times."""
        ticks = packet.dts if packet.pts is None else packet.pts
        time = round(len(self._packets) / rate if ticks is None else float(ticks * packet.time_base), 6)
        self._packets.append((time, packet.is_keyframe))
        return time

    def add_frame(self, frame: VideoFrame) -> None:
        """Note a frame that is given out."""
        self.good += 1
        if frame.time is not None:
            self._start = frame.time if self._start is None else self._start
            self._shown.add(round(frame.time, 6))

    def lose(self, reason: str, time: float | None = None) -> None:
        """Note a fault, and the time in seconds of the frame that it cost."""
        self.reason = self.reason or reason
        if time is not None:
            self._lost.add(round(time, 6))

    @property
    def missing(self) -> tuple[float, ...]:
        """Times of the frames that are left out: those that gave no picture, or that FFmpeg reports as corrupt.

        In seconds from the first frame that is there, as all times here.
        """
        end = math.inf if self.is_complete and self._shown else max(self._shown, default=0.0)
        return self._from_start(self._lost | {time for time in self._shadow() - self._shown if time < end})

    @property
    def suspect(self) -> tuple[float, ...]:
        """Times of the frames that may be predicted from a missing one: those up to the next keyframe in the file."""
        return self._from_start(self._shadow() & self._shown if self._shown else self._shadow() - self._lost)

    def _shadow(self) -> set[float]:
        """Times of the packets from a lost one up to the next keyframe."""
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
    """Yield the frames of a video, and go on after damage as the ffmpeg command does.

    Frames that FFmpeg reports as corrupt are left out, but for those before the first good one of a video that is not
    damaged before it. After the first fault the video is decoded again, in one thread (see `Decoding`).

    Args:
        path, container, stream: the video, see `open_container`.
        damage: what is lost; complete when the last frame has been yielded.
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
        if last is not None and is_truncated(path, container, stream, last + 1 / stated_rate(stream)):
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
        if last is not None and is_truncated(path, container, stream, last + 1 / stated_rate(stream)):
            damage.lose("the file is truncated")
    damage.is_complete = True


def _decode_packets(container: InputContainer, stream: VideoStream, damage: Damage) -> Iterator[VideoFrame]:
    """Yield the frames of all packets that FFmpeg decodes without a fault."""
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
