"""The npz container: one file per video, readable without vidtok.

A file is a NumPy `.npz` (a zip with a checksum for each entry) of deflated arrays:

    ids | codes | latents | hidden | embedding   the features, under the name of their kind, laid out as in
                                                 `vidtok.extraction.record`; clips are stacked, [clips, ...]
    timestamps                                   float64 [frames]; with clips [clips, frames]
    meta                                         one string: a JSON object with "schema": "vidtok.features/1", id,
                                                 label, split and the fields of `RecordMeta` ("clip" is null)

A folder holds one file per video. Its path in the folder follows from the id of the video, see `vidtok.names`.
"""

import errno
import io
import json
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vidtok.errors import one_line
from vidtok.extraction.record import (
    Entry,
    Record,
    RefusedName,
    check_record,
    describe,
    differences,
    entry_of,
    parse_description,
    record_of,
    settings_of,
)
from vidtok.files import replacing
from vidtok.names import result_candidates


def write_npz(path: str | os.PathLike, records: Sequence[Record]) -> None:
    """Write the records of one video: one, or those of all its clips. The file appears complete or not at all.

    Raises:
        ValueError: an invalid record, or records that are not all clips of one video.
    """
    numbers, shapes = [], set()
    for record in records:
        check_record(record)
        numbers.append(record.meta.clip)
        shapes.add(record.features.shape)
    first, description = records[0], describe(records[0])
    if numbers != ([None] if first.meta.clips is None else [*range(first.meta.clips)]):
        raise ValueError(f"{first.id}: {len(records)} records are not all of its {first.meta.clips or 1}")
    if len(shapes) > 1:
        raise ValueError(f"{first.id}: its clips have features of several shapes")
    content = _pack(description, first) if first.meta.clips is None else b""
    with replacing(path, locked=True) as part, open(part, "wb") as file:
        file.write(content)
        if first.meta.clips is not None:
            _pack_clips(file, description | {"clip": None}, records)


def npz_of(record: Record) -> bytes:
    """Return the content of an npz file of one record; for a clip, "clip" in its meta is the number of the clip."""
    return _pack(describe(record), record)


def _pack(description: dict, record: Record) -> bytes:
    file = io.BytesIO()
    arrays: dict[str, Any] = {description["feature"]: record.features, "timestamps": record.timestamps}
    np.savez_compressed(file, **arrays, meta=np.array(json.dumps(description)))
    return file.getvalue()


def _pack_clips(file: BinaryIO, description: dict, records: Sequence[Record]) -> None:
    """Write the npz file of all clips of a video, with one record in memory at a time."""
    shape, timestamps = (len(records), *records[0].features.shape), np.stack([record.timestamps for record in records])
    header = {"descr": np.lib.format.dtype_to_descr(records[0].features.dtype), "fortran_order": False, "shape": shape}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open(f"{description['feature']}.npy", "w", force_zip64=True) as entry:
            np.lib.format.write_array_header_1_0(entry, header)
            for record in records:
                entry.write(record.features.tobytes())
        for name, array in (("timestamps", timestamps), ("meta", np.array(json.dumps(description)))):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def read_npz(path: str | os.PathLike) -> list[Record]:
    """Read the records of a file: one, or those of all clips of the video.

    The whole file is read and its checksums are verified.

    Raises:
        ValueError: the file holds no features, is damaged, or has another schema. The message names it.
        FileNotFoundError: there is no such file.
    """
    with damage_named(path), _open(path) as file:
        return parse_npz(file)


def parse_npz(file: BinaryIO) -> list[Record]:
    """Read the records of an open npz file. Errors of damaged files are as zipfile and numpy raise them."""
    with np.load(file, allow_pickle=False) as arrays:
        description = _description_in(arrays)
        features, timestamps, clips = arrays[description["feature"]], arrays["timestamps"], description["clips"]
    if clips is None or description["clip"] is not None:
        return [record_of(description, features, timestamps)]
    if len(features) != clips or len(timestamps) != clips:
        raise ValueError(f"{len(features)} arrays and {len(timestamps)} timestamps of {clips} clips")
    return [record_of(description | {"clip": i}, features[i], timestamps[i]) for i in range(clips)]


def read_description(path: str | os.PathLike) -> dict:
    """Read the description of a file's records (see `record.describe`) without the arrays. Raises as `read_npz`."""
    with damage_named(path), _open(path) as file, np.load(file, allow_pickle=False) as arrays:
        description = _description_in(arrays)
        settings_of(description)
        return description


def _description_in(arrays: Mapping) -> dict:
    if "meta" not in arrays:
        raise ValueError("it has no description, as files of vidtok extract have")
    return parse_description(str(arrays["meta"]))


def _open(path: str | os.PathLike) -> BinaryIO:
    if not os.path.isfile(path) and os.path.exists(path) and not os.path.isdir(path):
        raise ValueError("no regular file")  # opening a FIFO would wait for its other end
    return open(path, "rb")


@contextmanager
def damage_named(path: str | os.PathLike) -> Iterator[None]:
    """Turn the errors that damaged files cause into a ValueError that names the file."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except _DAMAGE as error:
        raise ValueError(f"{path}: not a file of features that can be read ({_reason(error)})") from error


# What zipfile, zlib, tarfile, numpy and json raise for damaged files.
_DAMAGE = (
    ValueError, KeyError, TypeError, AttributeError, EOFError, OSError, MemoryError, NotImplementedError, RuntimeError,
    zipfile.BadZipFile, tarfile.TarError, zlib.error, SyntaxError, OverflowError, IndexError,
)  # fmt: skip


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "allow_pickle" in text:  # numpy takes any unknown format for a pickle
        return "no .npz"
    if isinstance(error, KeyError):  # numpy and zipfile raise sentences, json's dicts a key alone
        sentence = str(error.args[0])
        return sentence if " " in sentence else f"no {error}"
    return text or type(error).__name__


# Errors for a file name that the system refuses, that belongs to a folder, or that lies below a file.
REFUSED = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)


class NpzWriter:
    """`vidtok.extraction.record.Writer` of npz files. A damaged file is treated as missing and overwritten.

    A file that an earlier run has written under another of the `result_candidates` is found there. A file of another
    video is left alone.

    Args:
        folder: where the files are written.
        names: file names below the folder by id, see `vidtok.names.result_names`.
    """

    def __init__(self, folder: Path, names: Mapping[str, str]):
        self.folder, self.written, self._names = folder, 0, names
        self._places: dict[str, Path] = {}  # where to write videos that were not found, by id

    def find(self, id: str) -> Entry | None:
        path, entry = self._look(id)
        if entry is None:
            self._places[id] = path
        return entry

    def write(self, records: Sequence[Record]) -> list[str]:
        id = records[0].id
        path = self._places.pop(id) if id in self._places else self._look(id)[0]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_npz(path, records)
        except OSError as error:
            if error.errno not in REFUSED:
                raise
            raise RefusedName(one_line(error)) from error
        self.written += path.stat().st_size
        return [id]

    def place(self, id: str) -> str:
        path = self._places[id] if id in self._places else self._look(id)[0]
        return path.relative_to(self.folder).as_posix()

    def adopt(self, entry: Entry, file: str, size: int) -> None:
        self._places.pop(entry.id, None)
        self.written += size

    def close(self) -> list[str]:
        return []

    def abandon(self) -> None:
        pass

    def _look(self, id: str) -> tuple[Path, Entry | None]:
        """Return the path of a video's file and its first entry; without a file, the path to write it to and None."""
        candidates = result_candidates(id, ".npz")
        paths = [self.folder / name for name in dict.fromkeys((self._names.get(id, candidates[0]), *candidates))]
        free = None
        for path in paths:
            try:
                entry = entry_of(describe(read_npz(path)[0]))
            except (FileNotFoundError, NotADirectoryError, ValueError):
                free = free or path
                continue
            except OSError as error:
                if error.errno not in REFUSED:
                    raise
                continue
            if entry.id == id:
                return path, entry
        return free or paths[0], None


class NpzReader:
    """`vidtok.extraction.record.Reader` of npz files."""

    def __init__(self, files: Sequence[Path]):
        self.entries: list[Entry] = []
        self._places: list[tuple[Path, int]] = []
        for file in files:
            description = read_description(file)
            settings = settings_of(description)
            if not self.entries:
                self.settings = settings
            elif other := differences(self.settings, settings):
                raise ValueError(f"{file} is of other settings than {files[0]}: {other}")
            for i in range(description["clips"] or 1):
                clip = None if description["clips"] is None else i
                self.entries.append(entry_of(description | {"clip": clip}))
                self._places.append((file, i))

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, index: int) -> Record:
        path, clip = self._places[index]
        return read_npz(path)[clip]
