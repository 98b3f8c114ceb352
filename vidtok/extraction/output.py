"""The output folder of a run: settings, failures, and locks for several processes.

`Output` hands out the videos that are still to do and stores their records, in a folder with:

    settings.json   the settings of all features in the folder. A run with other settings is an error.
    failures.csv    the videos without features. Columns: id, path (as `vidtok.names.escape_name` writes it), split (of
                    the annotations), reason. UTF-8.
    .claims         locks of the videos that a process is working on, so that several processes can fill the folder
"""

import csv
import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from vidtok.datasets.annotations.table import canonical_split
from vidtok.errors import VideoError, one_line
from vidtok.extraction.containers import SUFFIXES, check_container, open_reader, open_writer
from vidtok.extraction.npz import NpzWriter
from vidtok.extraction.record import (
    SCHEMA,
    Entry,
    Record,
    RefusedName,
    Settings,
    Writer,
    differences,
    parse_description,
    settings_of,
)
from vidtok.extraction.sources import WorkItem
from vidtok.extraction.stats import ExtractionStats
from vidtok.files import replacing
from vidtok.inputs import file_version
from vidtok.names import escape_name, printable, result_names

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCKS_FILE = ".claims"


class VideoLocks(Protocol):
    """Locks of videos among the processes that fill a folder. They are released when the process ends."""

    def take(self, id: str) -> bool:
        """Lock a video; return False if another process has locked it."""

    def wait(self, id: str) -> None:
        """Lock a video as soon as no other process holds its lock."""

    def release(self, id: str) -> None: ...
    def close(self) -> None: ...


def video_locks(folder: Path) -> VideoLocks:
    """Open the locks of a folder."""
    return RecordLocks(folder) if fcntl else FileLocks(folder)


class RecordLocks:
    """`VideoLocks` on POSIX: each video is a lock on one byte of one file, at an offset that is a hash of its id.

    The file itself stays empty. The locks work between machines if the file system supports them (NFS, Lustre with
    -o flock). They belong to the process, which may open this file only once. A lock took 7 microseconds here, and 444
    with filelock, which also keeps a file open for each lock. A process may have 1024 open files, and a shard
    locks 1000 videos.
    """

    def __init__(self, folder: Path):
        self._file = os.open(folder / LOCKS_FILE, os.O_RDWR | os.O_CREAT, 0o666)

    def take(self, id: str) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(id))
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, depending on the system
            return False
        return True

    def wait(self, id: str) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, _place(id))

    def release(self, id: str) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _place(id))

    def close(self) -> None:
        os.close(self._file)


def _place(id: str) -> int:
    return int.from_bytes(hashlib.sha256(id.encode("utf-8", "surrogatepass")).digest()[:7], "big")


class FileLocks:
    """`VideoLocks` on systems without fcntl: each video has its own lock file."""

    def __init__(self, folder: Path):
        self._folder = folder / f"{LOCKS_FILE}.d"
        self._folder.mkdir(exist_ok=True)
        self._held: dict[str, FileLock] = {}

    def take(self, id: str) -> bool:
        try:
            self._acquire(id, 0)
        except Timeout:
            return False
        return True

    def wait(self, id: str) -> None:
        self._acquire(id, -1)

    def release(self, id: str) -> None:
        self._held.pop(id).release()

    def close(self) -> None:
        for id in [*self._held]:
            self.release(id)

    def _acquire(self, id: str, timeout: float) -> None:
        if id not in self._held:
            lock = FileLock(self._folder / f"{_place(id):x}.lock", thread_local=False)
            lock.acquire(timeout)
            self._held[id] = lock


SETTINGS_FILE = "settings.json"
SETTINGS_LOCK = f"\0{SETTINGS_FILE}"  # never the id of a video


def check_folder(folder: Path, settings: Settings, container: str, locks: VideoLocks) -> None:
    """Write the settings to a new folder, or compare them with those of an existing one.

    Raises:
        ValueError: the settings differ; the message names the differences. Or the folder holds features without a
            settings.json.
    """
    ours = {"schema": SCHEMA, "container": container, **asdict(settings)}
    locks.wait(SETTINGS_LOCK)
    try:
        if _validate_new(folder, container):
            with replacing(folder / SETTINGS_FILE, locked=True) as part:
                part.write_text(json.dumps(ours, indent=2) + "\n")
            return
    finally:
        locks.release(SETTINGS_LOCK)
    _validate_settings(folder, settings, container)


def _validate_new(folder: Path, container: str) -> bool:
    """Return whether a folder has no settings.

    Raises:
        ValueError: it has features, but no settings.
    """
    path = folder / SETTINGS_FILE
    if path.exists():
        return False
    if (file := next(filter(Path.is_file, folder.rglob(f"[!.]*{SUFFIXES[container]}")), None)) is not None:
        raise ValueError(f"{file} is there, but {path} isn't, which says what it is of: give another folder")
    return True


def _validate_settings(folder: Path, settings: Settings, container: str) -> None:
    theirs_container, theirs = read_settings(folder / SETTINGS_FILE)
    if theirs_container != container:
        raise ValueError(f"{folder} holds {theirs_container}, not {container}: give another folder")
    if other := differences(settings, theirs):
        raise ValueError(f"{folder} holds features of other settings: {other}. Give another folder")


def find_complete(
    folder: str | Path, settings: Settings, container: str, items: Sequence[WorkItem]
) -> Callable[[str], Entry | None]:
    """Find the complete videos of a folder without writing to it. The checksums of shards are not verified.

    Returns:
        A function that returns the first entry of a video by its id, or None if the video is not complete.

    Raises:
        ValueError: as `check_folder`.
    """
    folder = Path(folder)
    check_container(container)
    if _validate_new(folder, container):
        return lambda id: None
    _validate_settings(folder, settings, container)
    if container == "npz":
        return NpzWriter(folder, _names_of(items, container)).find
    found: dict[str, Entry] = {}
    for file in sorted(path for path in folder.glob(f"*{SUFFIXES[container]}") if not path.name.startswith(".")):
        with suppress(ValueError):  # damaged: its videos are extracted again
            found |= {entry.id: entry for entry in open_reader(file).entries}
    return found.get


def _names_of(items: Iterable[WorkItem], container: str) -> dict[str, str]:
    """Return the names of the files of the npz container, by id."""
    return result_names([(item.id, item.path) for item in items], SUFFIXES[container])


def read_settings(path: Path) -> tuple[str, Settings]:
    """Read a folder's settings.json as (container, settings).

    Raises:
        ValueError: the file is not one of settings.
    """
    try:
        description = parse_description(path.read_text())
        return description["container"], settings_of(description)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the settings of extracted features ({error})") from error


FAILURES_FILE = "failures.csv"
COLUMNS = ("id", "path", "split", "reason")
FAILURES_LOCK = f"\0{FAILURES_FILE}"  # never the id of a video


def read_failures(features: Path, split: str | None) -> list[dict[str, str]]:
    """Read the failures of a split (None: all splits) as [{"name", "reason"}].

    features: a folder that `vidtok extract` wrote, or one of its files.
    """
    file = (features if features.is_dir() else features.parent) / FAILURES_FILE
    if not file.exists():
        return []
    with open(file, newline="", encoding="utf-8") as rows:
        # A run that was killed may leave several rows for one video, or a truncated row.
        found = {row["id"]: row for row in csv.DictReader(rows) if row.get("reason") is not None}
    kept = [
        row
        for row in found.values()
        if split is None or canonical_split(row.get("split") or "") == canonical_split(split)
    ]
    return [{"name": row["id"], "reason": row["reason"]} for row in kept]


class Failures:
    """The failures.csv of a folder.

    Rows are appended immediately, so that a killed run has them. `tidy` removes the rows of videos that a later attempt
    has completed.
    """

    def __init__(self, folder: Path, locks: VideoLocks):
        self._path, self._locks = folder / FAILURES_FILE, locks

    def add(self, id: str, path: str, split: str, reason: str) -> None:
        self._locks.wait(FAILURES_LOCK)
        try:
            with open(self._path, "a+b") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(size - 1, 0))
                cut_short = file.read(1) not in (b"", b"\n")  # the disk was full at the last row
            with open(self._path, "a", newline="", encoding="utf-8", errors="backslashreplace") as file:
                file.write("\r\n" if cut_short else "")
                csv.writer(file).writerows([*([] if size else [COLUMNS]), [id, path, split, reason]])
        finally:
            self._locks.release(FAILURES_LOCK)

    def tidy(self, is_done: Callable[[str], bool]) -> None:
        """Keep the last row of each video, and none for videos with is_done(id)."""
        self._locks.wait(FAILURES_LOCK)
        try:
            if not self._path.exists():
                return
            with open(self._path, newline="", encoding="utf-8") as file:
                # The video of a truncated row is extracted again.
                last = {row[0]: row for row in csv.reader(file) if len(row) == len(COLUMNS)}
            last.pop(COLUMNS[0], None)
            rows = [row for id, row in last.items() if not is_done(id)]
            if not rows:
                self._path.unlink()
                return
            with replacing(self._path, locked=True) as part, open(part, "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([COLUMNS, *rows])
        finally:
            self._locks.release(FAILURES_LOCK)


class Output:
    """Work queue and store of a folder: hands out the videos to extract and writes their records.

    Every process that fills the folder has its own `Output`. A video is locked when it is handed out. The lock is
    released when its records are complete on disk, or when the process ends.

    Args:
        folder, settings, container: see `check_folder`.
        items: the videos.
        stats: skipped and failed videos, bytes and the time for writing are counted here.
        force: hand out complete videos, too.

    Attributes:
        writer: writes the container.

    Raises:
        ValueError: the folder has other settings, see `check_folder`.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        settings: Settings,
        container: str,
        items: Iterable[WorkItem],
        stats: ExtractionStats,
        force: bool = False,
    ):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._locks = video_locks(folder)
        self._todo, self._force = deque(items), force
        names = _names_of(self._todo, container) if container == "npz" else None
        self.writer: Writer = open_writer(folder, container, names)
        check_folder(folder, settings, container, self._locks)
        self._failures = Failures(folder, self._locks)
        self._elsewhere: deque[WorkItem] = deque()  # locked by another process
        self.stats = stats

    def next(self) -> WorkItem | None:
        """Return the next video to extract and lock it, or None if there is none for now."""
        with self._timing():
            while self._todo:
                item = self._todo.popleft()
                if not self._locks.take(item.id):
                    self._elsewhere.append(item)
                    continue
                try:
                    entry = None if self._force else self.writer.find(item.id)
                except OSError as error:  # the existing file can't be read
                    self.fail(item, one_line(error))
                    continue
                if entry is None:
                    return item
                self._locks.release(item.id)
                if (why := another(item, entry)) is not None:
                    self._note(item, why)
                else:
                    self.stats.skipped += 1
            return None

    def take(self, item: WorkItem, records: Sequence[Record]) -> bool:
        """Store all records of a video and return whether that was possible.

        Raises:
            OSError: the disk is full, for example.
        """
        try:
            with self._timing():
                self._release(self.writer.write(records))
        except RefusedName as error:
            self.fail(item, str(error))
            return False
        return True

    def fail(self, item: WorkItem, reason: str) -> None:
        """Record the failure of a video and release its lock."""
        self._note(item, reason)
        self._locks.release(item.id)

    def flush(self) -> bool:
        """Complete all records on disk; return whether videos are left that other processes had locked.

        `next` tries those again.
        """
        with self._timing():
            self._release(self.writer.close())
        self._todo, self._elsewhere = self._elsewhere, self._todo
        return bool(self._todo)

    def close(self) -> None:
        """End a run after a `flush`. From then on failures.csv lists the videos that have no features."""
        failed = {item.id for item, _ in self.stats.failures}  # features under their names may be of other files
        self._failures.tidy(lambda id: id not in failed and self._is_done(id))
        self._locks.close()

    def abandon(self) -> None:
        """End a run after an error, without its incomplete records."""
        self.writer.abandon()
        self._locks.close()

    @contextmanager
    def _timing(self) -> Iterator[None]:
        """Count the time of the block as time for writing."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stats.seconds["write"] += time.perf_counter() - start

    def _is_done(self, id: str) -> bool:
        try:
            return self.writer.find(id) is not None
        except OSError:
            return False

    def _note(self, item: WorkItem, reason: str) -> None:
        self._failures.add(item.id, escape_name(item.path or ""), item.split or "", printable(reason))
        self.stats.failures.append((item, reason))

    def _release(self, ids: Iterable[str]) -> None:
        self.stats.bytes = self.writer.written
        for id in ids:
            self._locks.release(id)


def another(item: WorkItem, entry: Entry) -> str | None:
    """Return why an entry under an item's id is not of this item, or None if it is."""
    try:
        size = None if item.path is None else file_version(item.path).size
    except VideoError:  # the video is gone; its features are kept
        size = None
    if size not in (None, entry.source_bytes):
        return f"under its name there are features of another file, of {entry.source_bytes} bytes: give another folder"
    if (item.label, item.split) != (entry.label, entry.split):
        return f"its features are there with label {entry.label} and split {entry.split}: give another folder"
    return None
