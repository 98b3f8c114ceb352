"""A file's frames by its packets alone: no decoding, and a proof that this is enough."""

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from .container import describe, open_container, stream_fps


@dataclass(frozen=True)
class Timeline:
    """pts: int64 [N], presentation times of all packets, ascending, in ticks of `tick` seconds. keys: int64 [K], those
    of the keyframes. fps: average frames per second. doubt: why the packets do not prove what a decoder will present,
    or None where they do: no packet is discarded (edit lists) or corrupt, times are all there, distinct and from 0 on,
    and there are as many packets as the header says frames. open_gop: whether a keyframe is followed by frames shown
    before it; a decoder that seeks and then counts, as decord does, goes wrong there."""

    pts: np.ndarray
    keys: np.ndarray
    tick: float
    fps: float
    doubt: str | None
    open_gop: bool

    @property
    def timestamps(self) -> np.ndarray:
        """float64 [N], seconds from the first frame."""
        return (self.pts - self.pts[0]) * self.tick


def read_timeline(path: str | Path) -> Timeline:
    """Demux `path` to its end. Raises `VideoError` where it can't be opened."""
    container, stream = open_container(path)
    with container:
        pts, key_places, doubts = [], [], set()
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                if packet.is_discard:
                    doubts.add("packets marked for discarding (an edit list)")
                if packet.is_corrupt:
                    doubts.add("packets marked corrupt")
                if packet.pts is None:
                    doubts.add("packets without a time")
                    continue
                if packet.is_keyframe:
                    key_places.append(len(pts))
                pts.append(packet.pts)
        except av.error.FFmpegError as e:
            doubts.add(f"demuxing ends in an error ({describe(e)})")
        pts = np.array(pts, dtype=np.int64)
        ascending, keys = np.sort(pts), pts[key_places]
        if not len(pts):
            doubts.add("no packets")
        elif ascending[0] < 0:
            doubts.add("times below zero")
        if (np.diff(ascending) == 0).any():
            doubts.add("two packets with one time")
        if not len(keys) or keys[0] != ascending[0]:
            doubts.add("does not begin with a keyframe")
        if stream.frames and stream.frames != len(pts):
            doubts.add(f"{len(pts)} packets for {stream.frames} frames in the header")
        return Timeline(
            ascending,
            np.sort(keys),
            float(stream.time_base),
            stream_fps(stream),
            "; ".join(sorted(doubts)) or None,
            open_gop=bool((np.searchsorted(ascending, keys) != key_places).any()),
        )
