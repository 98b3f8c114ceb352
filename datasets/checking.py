"""Check before a run which videos can be decoded, and whether training and validation share files."""

import hashlib
import itertools
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from vidtok.datasets.backends import DecordReader, has_decord
from vidtok.datasets.clips import ClipFolder
from vidtok.datasets.decode import IMAGE_SUFFIXES, PyAVReader
from vidtok.datasets.labelled import LabelledDataset
from vidtok.datasets.loading import DecodePool
from vidtok.errors import VideoError

SHOWN = 20
Files = Iterable[str | Path] | LabelledDataset | ClipFolder


def check_video(path: str | Path, min_frames: int = 1) -> dict:
    """Decode a video to its end; return one row of the table of `vidtok check`.

    Args:
        path: the file.
        min_frames: a video with fewer frames is "too short".

    Returns:
        A dict with the keys `path`; `status`, one of "ok", "missing", "corrupt", "too short"; `reason`, why the status
        is not "ok", else ""; `guard`, why PyAV reads the file instead of decord, "" if decord does; `frames`, the
        number of decoded frames, in a corrupt file those before the break; `fps`; `height` and `width`, in pixels as
        shown; `duration`, in seconds. Unknown values are None.
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
    """Check many videos in worker processes; yield one row of `check_video` for each, in order.

    A video that takes longer than `time_limit` seconds, or crashes its decoder, has the status "corrupt".

    Args:
        paths: the files.
        min_frames: see `check_video`.
        workers: number of processes, at least 1.
        time_limit: seconds per video, above 0.
    """
    with DecodePool(partial(check_video, min_frames=min_frames), workers, time_limit) as pool:
        for path, row in pool.imap(paths, ahead=50):
            yield _row(path) | {"status": "corrupt", "reason": row.reason} if isinstance(row, VideoError) else row


def find_overlap(train: Files, val: Files) -> list[tuple[str, str]]:
    """Find pairs (path in train, path in val) of files with the same bytes. Missing files are ignored.

    Only files that agree in size and in their last 4 KB are read completely.

    Args:
        train, val: paths, or datasets with an attribute `paths`.

    Returns:
        The pairs, sorted.
    """
    sides = [dict.fromkeys(map(str, getattr(files, "paths", files))) for files in (train, val)]
    groups = {(): tuple([path for path in side if os.path.exists(path)] for side in sides)}
    for trait in (os.path.getsize, _tail, _digest):
        finer = defaultdict(lambda: ([], []))
        for key, group in groups.items():
            for side, paths in enumerate(group):
                for path in paths:
                    finer[key, trait(path)][side].append(path)
        groups = {key: group for key, group in finer.items() if all(group)}
    return sorted(pair for group in groups.values() for pair in itertools.product(*group))


def validate_disjoint(train: Files, val: Files) -> None:
    """Raise ValueError if training and validation share files; the message lists up to 20 pairs of `find_overlap`."""
    if pairs := find_overlap(train, val):
        listed = [f"{ours} = {theirs}" for ours, theirs in pairs[:SHOWN]]
        listed += [f"... and {len(pairs) - SHOWN} more"] * (len(pairs) > SHOWN)
        raise ValueError(f"{len(pairs)} files are in training and validation: {'; '.join(listed)}")


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


def _tail(path: str) -> bytes:
    with open(path, "rb") as handle:
        handle.seek(-min(os.path.getsize(path), 4096), os.SEEK_END)
        return handle.read()


def _digest(path: str) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.digest()
