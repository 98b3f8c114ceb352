"""Finding out before a run which files can be read, and whether training and validation share any."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from .container import IMAGE_SUFFIXES
from .error import VideoError
from .pool import DecodePool
from .reader_decord import DecordReader, has_decord
from .reader_pyav import PyAVReader


def check_video(path: str | Path, min_frames: int = 1) -> dict:
    """Decode a video to its end -> one row of the table:

    path; status: "ok", "missing", "corrupt" or "too short" (fewer than `min_frames`); reason: why it is not ok; guard:
    why decord is not trusted with it and PyAV reads it ("" where decord is); frames: decoded, those before the break in
    a corrupt one; fps; height, width: pixels as shown; duration: seconds. What is not known is None.
    """
    row = _row(path)
    if not os.path.exists(path):
        return row | {"status": "missing", "reason": "no such file"}
    try:
        with PyAVReader(path) as reader:
            row |= {"fps": reader.fps, "height": reader.size[0], "width": reader.size[1]}
            row |= {"frames": reader.num_frames, "duration": reader.duration}
    except VideoError as e:
        return row | {"status": "corrupt", "reason": e.reason, "frames": e.good_frames}
    if has_decord() and not str(path).lower().endswith(IMAGE_SUFFIXES):
        try:
            DecordReader(path).close()
        except VideoError as e:
            row["guard"] = e.reason
    if row["frames"] < min_frames:
        row |= {"status": "too short", "reason": f"{row['frames']} frames, fewer than {min_frames}"}
    return row


def check_videos(
    paths: Iterable[str], min_frames: int = 1, workers: int = 1, time_limit: float = 300
) -> Iterator[dict]:
    """`check_video` of each, in order, in processes that can be killed: what hangs for `time_limit` seconds or crashes
    its decoder is corrupt, too."""
    with DecodePool(partial(check_video, min_frames=min_frames), workers, time_limit) as pool:
        for path, row in pool.imap(paths, ahead=50):
            yield _row(path) | {"status": "corrupt", "reason": row.reason} if isinstance(row, VideoError) else row


def find_overlap(train: Iterable[str], val: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs (path in train, path in val) that are one file, or two with the same bytes. Missing files have no pair."""
    by_size = defaultdict(lambda: ([], []))
    for side, paths in enumerate((train, val)):
        for path in dict.fromkeys(paths):
            if os.path.exists(path):
                by_size[os.path.getsize(path)][side].append(path)
    digest = {path: _digest(path) for sides in by_size.values() if all(sides) for side in sides for path in side}
    pairs = []
    for ours, theirs in by_size.values():
        twins = defaultdict(list)
        for path in theirs if ours else ():
            twins[digest[path]].append(path)
        pairs += [(path, twin) for path in ours if theirs for twin in twins[digest[path]]]
    return sorted(pairs)


def refuse_overlap(train: Iterable[str], val: Iterable[str]) -> None:
    """Raises ValueError that lists the pairs of `find_overlap`, where there are any."""
    if pairs := find_overlap(train, val):
        listed = "; ".join(f"{ours} = {theirs}" for ours, theirs in pairs)
        raise ValueError(f"{len(pairs)} files are in training and validation: {listed}")


def _row(path: str | Path) -> dict:
    return {
        "path": str(path),
        "status": "ok",
        "reason": "",
        "guard": "",
        "frames": None,
        "fps": None,
        "height": None,
        "width": None,
        "duration": None,
    }


def _digest(path: str) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.digest()
