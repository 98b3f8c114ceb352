"""Presentation times of a file's frames, from its packets."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import av
import numpy as np

from vidtok.datasets.container import PacketTimes, describe, longest_gap, open_container, tick_of
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
