"""Presentation times and frame rate of a file, from its packets.

A container may state no frame rate (browsers' WebM, GIF, ASF) or a wrong one (variable rate). Its clock may restart or
jump: two recordings joined with `cat`, a clock that was set while recording. The rules for clocks are those of ffmpeg's
`ts_discontinuity_detect`.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from av import Packet
from av.container import InputContainer
from av.video.stream import VideoStream

from vidtok.datasets.container import describe, open_container, tick_of
from vidtok.files import FileVersion

JUMP = 10  # seconds forward, in formats whose clock may jump: ffmpeg's -dts_delta_threshold
LONGEST_GAP = 108_000  # seconds forward, in all other formats: ffmpeg's -dts_error_threshold
_MAY_JUMP = 0x0200  # AVFMT_TS_DISCONT: MPEG-TS, MPEG-PS, Ogg

MEASURED = 10_000  # packets from which a rate is measured
PLAUSIBLE = 240  # frames per second; above it, a stated rate is often the tick of the container (1000 in WebM)
DEVIATION = 0.05  # between a stated and a measured rate that counts as rounding


def longest_gap(container: InputContainer) -> float:
    """Return the seconds from one frame to the next above which the clock of this container counts as jumped."""
    return JUMP if container.format.flags & _MAY_JUMP else LONGEST_GAP


@dataclass
class PacketTimes:
    """Times of the packets of a video stream, in the order of the file.

    Attributes:
        pts, dts: times in ticks; None where the container has none.
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
        """Return the frames per second of the stream that the packets are of, measured if its header is not reliable.

        The first `MEASURED` packets are measured, and the stated rate is kept where it agrees.
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
    """Return whether the rate in the header is computed from all frames (MP4), or the frames are spaced by it (AVI).

    Otherwise it was stated by whoever made the file, or estimated from the first frames.
    """
    rate = stream.average_rate
    return bool(stream.frames and rate and rate <= PLAUSIBLE and container.format.name != "gif")


def measure_rate(container: InputContainer, stream: VideoStream) -> float:
    """Return the frames per second of a stream by `PacketTimes.fps`.

    This reads the container: give it one that is opened for this.
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
