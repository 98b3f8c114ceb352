"""Validation of data sets before a run: which videos can be decoded, and whether splits share files."""

import hashlib
import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidtok import inputs
from vidtok.checks import count_cpus
from vidtok.datasets.backends import DecordReader, has_decord
from vidtok.datasets.clips import ClipFolder
from vidtok.datasets.decode import PyAVReader
from vidtok.datasets.labeled import LabeledDataset
from vidtok.datasets.loading import DecodePool
from vidtok.datasets.samplers import Segment, segment_error
from vidtok.datasets.sources import videos_by_split
from vidtok.errors import UserError, VideoError
from vidtok.files import replacing, validate_output
from vidtok.names import IMAGE_SUFFIXES, escape_name
from vidtok.remote import as_address

if TYPE_CHECKING:
    import pandas

SHOWN = 20
Files = Iterable[str | Path] | dict[str, list[Segment | None]] | LabeledDataset | ClipFolder


@dataclass(frozen=True)
class CheckResult:
    """Result of `check`.

    Attributes:
        table: DataFrame with a row for each video, see `check_video`, and a row for each segment of an annotation that
            is not within its video: status "bad segment", with its `start` and `end` in seconds.
        overlap: (split, path, other split, path there) of each file that is in two splits, under any name.
    """

    table: "pandas.DataFrame"
    overlap: list[tuple[str, str, str, str]]

    @property
    def bad(self) -> "pandas.DataFrame":
        """Rows of videos that are missing, corrupt or too short, and of bad segments."""
        return self.table[self.table["status"] != "ok"]

    @property
    def warned(self) -> "pandas.DataFrame":
        """Rows of good videos with a warning."""
        return self.table[(self.table["status"] == "ok") & (self.table["warning"] != "")]

    @property
    def ok(self) -> bool:
        """Whether there are neither bad rows nor files in two splits."""
        return not len(self.bad) and not self.overlap


def check(
    sources: str | Path | Iterable[str | Path],
    *,
    root: str | Path | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    frame_folders: float | None = None,
    min_frames: int = 1,
    workers: int | None = None,
    time_limit: float = 300,
    output: str | Path | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CheckResult:
    """Decode every video of a dataset once; find bad videos, and files that are in two splits.

    Args:
        sources: a folder, archive or annotation file, on this machine or at an address; or several.
        root: folder of the videos; None, the folder of the annotation file.
        path_column, label_column, split_column: column names in a csv; None, the usual ones.
        frame_folders: frames per second; folders of numbered images are then videos. None, images are videos.
        min_frames: videos with fewer frames are "too short".
        workers: number of decode processes; None, one per CPU.
        time_limit: seconds per video.
        output: csv file for the table, which datasets accept as `checked`; also an address. None, no file.
        force: overwrite `output`.
        progress: called with (number of checked videos, number of videos).

    Raises:
        UserError: no videos, or `output` exists.
        ValueError: a source is not a dataset.
    """
    import pandas as pd

    validate_output(None if output is None else str(output), force, remote=True)
    columns = {"path_column": path_column, "label_column": label_column, "split_column": split_column}
    sources = [sources] if isinstance(sources, str | Path) else list(sources)
    splits: dict[str, dict[str, list[Segment | None]]] = {}
    segments: dict[str, list[Segment]] = defaultdict(list)
    for source in sources:
        for split, found in videos_by_split(source, root, frame_folders, **columns).items():
            for path, segment in found:
                splits.setdefault(split, {}).setdefault(path, []).append(segment)
                segments[path] += [] if segment is None else [segment]
    videos = list(dict.fromkeys(itertools.chain(*splits.values())))
    if not videos:
        raise UserError(f"{', '.join(map(str, sources))}: no videos")
    inputs.index_archives(videos)
    rows = []
    for row in check_videos(videos, min_frames, workers or count_cpus(), time_limit):
        rows.append(row)
        progress(len(rows), len(videos))
    for path, row in list(zip(videos, rows, strict=True)):
        rows += _check_segments(path, row, segments[path]) if row["status"] == "ok" else []
    table = pd.DataFrame(rows).astype({"frames": "Int64", "height": "Int64", "width": "Int64"})
    if output is not None:
        with replacing(output) as part:
            table.to_csv(part, index=False)
    overlap = [
        (a, ours, b, theirs)
        for a, b in itertools.combinations(splits, 2)
        for ours, theirs in find_overlap(splits[a], splits[b])
    ]
    return CheckResult(table, overlap)


def check_video(path: str | Path, min_frames: int = 1) -> dict:
    """Decode a video to its end; return its row of the table of `vidtok check`.

    Args:
        path: the file.
        min_frames: a video with fewer frames is "too short".

    Returns:
        A dict with the keys `path` (escaped by `vidtok.names.escape_name`); `status` ("ok", "missing", "corrupt" or
        "too short"); `reason` (of a status other than "ok", else ""); `warning` (problems that are corrected, such as a
        clock that restarts, and unusual properties: sample aspect ratio, HDR, interlacing, rotation; else ""); `guard`
        (why PyAV reads the file instead of decord; "" if decord can); `frames` (number of decoded frames, in a corrupt
        file those before the break); `fps`; `height` and `width` (pixels as shown); `duration` (seconds). Unknown
        values are None.
    """
    row = _row(path)
    if not inputs.exists(path):
        return row | {"status": "missing", "reason": "no such file"}
    try:
        with PyAVReader(path) as reader:
            row |= {"fps": reader.fps, "height": reader.size[0], "width": reader.size[1]}
            row |= {"frames": reader.num_frames, "duration": reader.duration}
            traits = [f"{name} {what}" for name, what in reader.traits.rows().items()]
            row["warning"] = "; ".join(filter(None, [str(reader.clock), *traits]))
    except VideoError as e:
        return row | {"status": "corrupt", "reason": e.reason + _damage(path), "frames": e.good_frames}
    if has_decord() and not str(path).lower().endswith(IMAGE_SUFFIXES):
        try:
            DecordReader(path).close()
        except VideoError as e:
            row["guard"] = e.reason
    if row["frames"] < min_frames:
        row |= {"status": "too short", "reason": f"{row['frames']} frames, fewer than {min_frames}"}
    return row


def _damage(path: str | Path) -> str:
    """Describe the frames of a corrupt video that can still be decoded; "" if there are none."""
    try:
        with PyAVReader(path, "skip") as reader:
            return f"; with on_error=keep: {reader.damage}" if reader.num_frames else ""
    except VideoError:
        return ""


def _check_segments(path: str, row: dict, segments: Iterable[Segment]) -> Iterator[dict]:
    """Yield a row for each segment that is not within the video of `row`."""
    for segment in segments:
        if reason := segment_error(segment, row["duration"], row["fps"]):
            start, end = segment
            yield _row(path) | {"status": "bad segment", "reason": reason, "start": start, "end": end}


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
    """Find pairs (path in train, path in val) of files with the same bytes; ignore files that can't be read.

    Only files with the same size and the same last 4 KB are read completely. Files at addresses that are not in
    archives are not read: they are compared by their addresses.

    Args:
        train, val: paths, {path: segments}, or datasets with an attribute `paths`.

    Returns:
        The pairs, sorted.
    """
    sides = [_segments_of(files) for files in (train, val)]
    first, second = ([path for path in side if _is_file(path)] for side in sides)
    groups: dict[tuple, tuple[list[str], list[str]]] = {(): (first, second)}
    for trait in (_size, _tail, _digest):
        finer: dict[tuple, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
        for key, group in groups.items():
            for side, paths in enumerate(group):
                for path in paths:
                    with suppress(OSError, VideoError):  # unreadable, or deleted since
                        finer[key, trait(path)][side].append(path)
        groups = {key: group for key, group in finer.items() if all(group)}
    known = set(first)
    same = [path for path in sides[0] if path in sides[1] and path not in known and as_address(path)]
    read = (pair for left, right in groups.values() for pair in itertools.product(left, right))
    pairs = itertools.chain(read, zip(same, same, strict=True))
    return sorted((ours, theirs) for ours, theirs in pairs if _share_time(sides[0][ours], sides[1][theirs]))


def _segments_of(files: Any) -> dict[str, list[Segment | None]]:
    """Return the segments of each path; None is the whole file."""
    if isinstance(files, dict):
        return files
    found: dict[str, list[Segment | None]] = {}
    segments = getattr(files, "segments", None) or itertools.repeat(None)
    for path, segment in zip(getattr(files, "paths", files), segments, strict=False):
        found.setdefault(str(path), []).append(segment)
    return found


def _share_time(ours: list[Segment | None], theirs: list[Segment | None]) -> bool:
    """Return whether any two segments overlap; None is the whole video."""
    pairs = itertools.product(ours, theirs)
    return any(a is None or b is None or (a[0] < b[1] and b[0] < a[1]) for a, b in pairs)


def validate_disjoint(train: Files, val: Files) -> None:
    """Raise ValueError if training and validation share files; the message lists the pairs of `find_overlap`."""
    if pairs := find_overlap(train, val):
        listed = [f"{ours} = {theirs}" for ours, theirs in pairs[:SHOWN]]
        listed += [f"... and {len(pairs) - SHOWN} more"] * (len(pairs) > SHOWN)
        is_same = len(pairs) == len(_segments_of(train)) and all(ours == theirs for ours, theirs in pairs)
        hint = ", all there are (name their splits in a column, or give two sources)" if is_same else ""
        raise ValueError(f"{len(pairs)} files are in training and validation{hint}: {'; '.join(listed)}")


def _row(path: str | Path) -> dict:
    return {
        "path": escape_name(str(path)),
        "status": "ok",
        "reason": "",
        "warning": "",
        "guard": "",
        "frames": None,
        "fps": None,
        "height": None,
        "width": None,
        "duration": None,
        "start": None,
        "end": None,
    }


def _is_file(path: str) -> bool:
    """Return whether a path is that of a local file, an archive member or a folder of frames."""
    try:
        return os.path.isfile(path) or inputs.is_virtual(path)
    except VideoError:  # an unreadable archive
        return False


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.isfile(path) else inputs.file_version(path).size


def _tail(path: str) -> bytes:
    with inputs.open_binary(path) as handle:
        handle.seek(-min(_size(path), 4096), os.SEEK_END)
        return handle.read()


def _digest(path: str) -> bytes:
    digest = hashlib.sha256()
    with inputs.open_binary(path) as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.digest()
