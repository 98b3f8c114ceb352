"""Presentation times of a file's frames, from its packets; and decoding past damage, with what it cost."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from av import Packet, VideoFrame
from av.container import InputContainer
from av.video.stream import VideoStream

from vidtok.datasets.container import (
    Decoding,
    PacketTimes,
    describe,
    is_truncated,
    longest_gap,
    open_container,
    stated_rate,
    tick_of,
)
from vidtok.files import FileVersion


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
            negative, of one continuous clock and those of presentation, that the header states the same number of
            frames, and that the decoder needs nothing but the packets since a keyframe.
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
        if times.breaks(longest_gap(container) / float(tick_of(stream))):
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
        )


@lru_cache(maxsize=20_000)
def cached_timeline(version: FileVersion, path: str) -> Timeline:
    """Return `read_timeline(path)`, read once for each version of the file."""
    return read_timeline(path)


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
