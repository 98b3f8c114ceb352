"""Containers: `open_writer` and `open_reader`, and the shards of the parquet and webdataset containers.

A shard is a file that holds many videos. While it is written it is a hidden file, next to a lock file whose lock the
writing process holds. It is renamed when it is complete. Every process writes its own shards, under unique names.
"""

import os
import time
import uuid
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from filelock import FileLock, Timeout, UnixFileLock

from vidtok.codec.container import CodecError, ContainerReader
from vidtok.codec.entropy import entropy_model
from vidtok.codec.prior import prior_of
from vidtok.errors import nearest
from vidtok.extraction.npz import NpzReader, NpzWriter
from vidtok.extraction.record import (
    SCHEMA,
    Entry,
    Reader,
    Record,
    RecordMeta,
    Settings,
    Writer,
    check_record,
    describe,
    differences,
    entry_of,
    id_type,
    record_of,
    settings_of,
)
from vidtok.inputs import walk_files
from vidtok.names import escape_name
from vidtok.remote import as_address

VIDEOS, BYTES, SECONDS = 1000, 1 << 28, 300  # a shard is completed at the first limit: a kill loses at most that


class Shard(Protocol):
    """A shard that is being written. size: bytes so far."""

    size: int

    def add(self, record: Record) -> None: ...
    def finish(self) -> None:
        """Write the remaining data. The file stays open; the caller closes it."""


class Format(Protocol):
    """File format of shards. suffix: of their names."""

    suffix: str

    def create(self, file: BinaryIO, name: str) -> Shard: ...
    def index(self, path: Path, verify: bool) -> tuple[Settings, list[Entry]]:
        """Read the settings and the entries of a complete shard.

        Args:
            path: the shard.
            verify: read all of it and verify its checksums.

        Raises:
            ValueError: it is damaged.
        """

    def read(self, path: Path, row: int) -> Record:
        """Read and check record number `row`.

        Raises:
            ValueError: it is damaged.
        """


class ShardWriter:
    """`vidtok.extraction.record.Writer` of shards. Damaged shards are renamed to hidden files and extracted again."""

    def __init__(self, folder: Path, form: Format):
        self.folder, self.form, self.written = folder, form, 0
        self._name, self._count = f"part-{uuid.uuid4().hex[:12]}", 0
        self._known: set[str] = set()  # names of the shards whose videos are in _found
        self._found: dict[str, Entry] = {}
        self._looked = False  # whether the shards of earlier runs are in _found
        self._shard: Shard | None = None
        self._part: Path | None = None  # hidden file of the shard that is being written
        self._file: BinaryIO | None = None
        self._lock: FileLock | None = None
        _remove_abandoned(folder)

    def find(self, id: str) -> Entry | None:
        if id not in self._found:
            self._look()
        return self._found.get(id)

    def write(self, records: Sequence[Record]) -> list[str]:
        for record in records:
            check_record(record)
        shard = self._begin() if self._shard is None else self._shard
        self._shard = None  # so that after an interrupt here `close` doesn't complete half a video
        for record in records:
            shard.add(record)
        self._entries[records[0].id] = entry_of(describe(records[0]))
        self._shard = shard
        full = len(self._entries) >= VIDEOS or shard.size >= BYTES or time.monotonic() - self._since >= SECONDS
        return self.close() if full else []

    def place(self, id: str) -> str:
        return ""

    def adopt(self, entry: Entry, file: str, size: int) -> None:
        self._known.add(file)
        self._found[entry.id] = entry
        self.written += size

    def close(self) -> list[str]:
        if self._shard is None:
            return []
        assert self._part is not None and self._file is not None
        shard, self._shard = self._shard, None
        shard.finish()
        self._file.flush()
        os.fsync(self._file.fileno())
        self.written += self._file.tell()
        self._file.close()
        name = f"{self._name}-{self._count:05d}{self.form.suffix}"
        os.rename(self._part, self.folder / name)
        self.abandon()  # releases the lock; the hidden file has been renamed
        self._count += 1
        self._known.add(name)
        self._found |= self._entries
        return [*self._entries]

    def abandon(self) -> None:
        """Remove the incomplete shard and its lock, in whatever state an error or an interrupt has left them."""
        self._shard = None
        if self._file is not None:
            with suppress(OSError):  # a full disk
                self._file.close()
        if self._part is not None:
            self._part.unlink(missing_ok=True)
        if self._lock is not None:
            unlock(self._lock)
        self._part = self._file = self._lock = None

    def _begin(self) -> Shard:
        self._entries: dict[str, Entry] = {}
        name = f"{self._name}-{self._count:05d}"
        self._part = self.folder / f".{name}{self.form.suffix}.part"
        self._lock = _lock(self._part)
        self._lock.acquire()
        self._file = open(self._part, "wb")  # noqa: SIM115 - open as long as the shard is written
        self._since = time.monotonic()
        return self.form.create(self._file, name)

    def _look(self) -> None:
        """Index the shards that this process or others have completed since the last call."""
        for name in sorted(os.listdir(self.folder)):
            if name in self._known or name.startswith(".") or not name.endswith(self.form.suffix):
                continue
            path = self.folder / name
            try:
                # Shards that other processes complete during this run are verified by the next run.
                entries = self.form.index(path, verify=not self._looked)[1]
            except ValueError as error:
                warnings.warn(f"{error}; its videos are done again", stacklevel=2)
                os.replace(path, path.with_name(f".{name}.damaged"))
                continue
            self._known.add(name)
            for entry in entries:
                self._found.setdefault(entry.id, entry)
        self._looked = True


class ShardReader:
    """`vidtok.extraction.record.Reader` of shards of one format."""

    def __init__(self, files: Sequence[Path], form: Format):
        self.form = form
        self.entries: list[Entry] = []
        self._places: list[tuple[Path, int]] = []
        seen: set[tuple[str, int | None]] = set()
        for file in files:
            settings, entries = form.index(file, verify=False)
            if file == files[0]:
                self.settings = settings
            elif other := differences(self.settings, settings):
                raise ValueError(f"{file} is of other settings than {files[0]}: {other}")
            for row, entry in enumerate(entries):
                if (entry.id, entry.clip) not in seen:
                    seen.add((entry.id, entry.clip))
                    self.entries.append(entry)
                    self._places.append((file, row))

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, index: int) -> Record:
        return self.form.read(*self._places[index])


def _lock(part: Path) -> FileLock:
    """Return the lock of a shard that is being written. The system releases it when the process ends."""
    return FileLock(part.with_suffix(".lock"), thread_local=False)


def unlock(lock: FileLock) -> None:
    """Release a lock and remove its file."""
    if isinstance(lock, UnixFileLock):  # the locks of other systems remove their files themselves
        # Before the release, so that a process that waits for the lock sees that the file is gone.
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def _remove_abandoned(folder: Path) -> None:
    """Remove incomplete shards whose process has died: no process holds their lock."""
    for path in {file.with_suffix(".part") for suffix in ("part", "lock") for file in folder.glob(f".part-*.{suffix}")}:
        lock = _lock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        path.unlink(missing_ok=True)
        unlock(lock)


class CompressedReader:
    """`vidtok.extraction.record.Reader` of compressed videos (`vidtok.codec`), as records of their ids.

    The id of a record is the path of its file below `root`. Records have no label and no split, and their video reader
    is unknown.
    """

    def __init__(self, files: Sequence[Path], root: Path):
        self._files, self._root = files, root
        self.entries: list[Entry] = []
        for file in files:
            try:
                with file.open("rb") as opened:
                    description = self._describe(file, ContainerReader(opened, str(file)))
            except CodecError as error:
                raise ValueError(str(error)) from error
            settings = settings_of(description)
            if not self.entries:
                self.settings = settings
            elif other := differences(self.settings, settings):
                raise ValueError(f"{file} is of other settings than {files[0]}: {other}")
            self.entries.append(entry_of(description))

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, index: int) -> Record:
        file = self._files[index]
        ids, ticks = [], []
        try:
            with file.open("rb") as opened:
                reader = ContainerReader(opened, str(file))
                header = reader.header
                decode = entropy_model(header.entropy, prior_of(header)).decode
                for number in reader.entries:
                    chunk = reader.read(number)
                    try:
                        ids.append(decode(chunk.tokens, (chunk.latents, *header.grid), header.bits, header.levels))
                    except ValueError as error:
                        raise reader.bad_chunk(number, error) from error
                    ticks.append(chunk.ticks)
                description = self._describe(file, reader)
        except CodecError as error:
            raise ValueError(str(error)) from error
        times = np.concatenate(ticks)
        seconds = (times - times[0]) * (header.time_base[0] / header.time_base[1])
        return record_of(description, np.concatenate(ids).astype(description["dtype"]), seconds)

    def _describe(self, file: Path, reader: ContainerReader) -> dict:
        """Return the description of a file's record, see `vidtok.extraction.record.describe`."""
        header = reader.header
        dtype = id_type(header.bits)
        meta = RecordMeta(
            feature="ids",
            model=header.model,
            weight_hash=header.weight_hash,
            precision=header.precision,
            bits=header.bits,
            stride=header.stride,
            dtype=dtype.name,
            tile=header.tile,
            pixels="unknown",
            fps=header.fps,
            frames=sum(entry.frames for entry in reader.entries.values()),
            size=header.size,
            coded_size=(header.grid[0] * header.stride[1], header.grid[1] * header.stride[2]),
            native_size=header.source.get("size", header.size),
            native_fps=header.source.get("fps", header.fps),
            source=header.source.get("name", ""),
            source_bytes=None,
            reader="unknown",
            bytes_per_token=float(dtype.itemsize),
        )
        id = escape_name(file.relative_to(self._root).as_posix())
        return {"schema": SCHEMA, "id": id, "label": None, "split": None} | asdict(meta)


SUFFIXES = {"npz": ".npz", "parquet": ".parquet", "webdataset": ".tar"}
CONTAINERS = tuple(SUFFIXES)


def is_shard(path: Path) -> bool:
    """Return whether a file holds the features of many videos, by its suffix."""
    return path.suffix.lower() in SUFFIXES.values() and path.suffix.lower() != SUFFIXES["npz"]


def check_container(container: str) -> None:
    """Check the name of a container.

    Raises:
        ValueError: it is not one of `CONTAINERS`.
    """
    if container not in CONTAINERS:
        raise ValueError(f"unknown container {container!r}: {nearest(container, CONTAINERS)}")


def open_writer(folder: str | Path, container: str, names: Mapping[str, str] | None = None) -> Writer:
    """Open a folder of extracted features for writing.

    Args:
        folder: an existing folder.
        container: one of `CONTAINERS`.
        names: file names by id for the npz container, see `NpzWriter`.

    Raises:
        ValueError: an unknown container, or parquet without pyarrow.
    """
    check_container(container)
    return NpzWriter(Path(folder), names or {}) if container == "npz" else ShardWriter(Path(folder), _form(container))


def open_reader(path: str | Path) -> Reader:
    """Open extracted features for reading.

    Args:
        path: a folder in any container, or one of its files; or compressed videos (`.vtk`).

    Raises:
        ValueError: there are no features, or features of different settings.
    """
    if (url := as_address(path)) is not None:
        raise ValueError(f"{url}: features are read on this machine: download them first")
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    for container, suffix in SUFFIXES.items():
        in_folder = path.is_dir()
        if files := sorted(map(Path, walk_files(path, (suffix,)))) if in_folder else [path] * (path.suffix == suffix):
            return NpzReader(files) if container == "npz" else ShardReader(files, _form(container))
    if files := sorted(map(Path, walk_files(path, (".vtk",)))) if path.is_dir() else [path] * (path.suffix == ".vtk"):
        return CompressedReader(files, path if path.is_dir() else path.parent)
    raise ValueError(f"{path}: no features here ({', '.join([*SUFFIXES.values(), '.vtk'])})")


def _form(container: str):
    """Return the `Format` of a container. Only parquet needs pyarrow."""
    if container == "webdataset":
        from vidtok.extraction.webdataset import TarFormat

        return TarFormat()
    try:
        from vidtok.extraction.parquet import ParquetFormat
    except ImportError as error:
        raise ValueError("parquet needs pyarrow: pip install 'vidtok[parquet]'") from error
    return ParquetFormat()
