"""The npz container: a file per video, readable without vidtok.

A NumPy `.npz` (a zip with a checksum for each entry) of deflated arrays:

    ids | codes | latents | hidden | embedding   the features, under the name of their kind, laid out as in
                                                 `vidtok.extraction.record`; of clips stacked, [clips, ...]
    timestamps                                   float64 [frames]; of clips [clips, frames]
    meta                                         one string: a JSON object with "schema": "vidtok.features/1", id,
                                                 label, split and the fields of `RecordMeta` ("clip" is null)

A folder of npz files, one per video, in the tree of their ids, named as `vidtok.names` says.
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
    make_record,
    parse_description,
    settings_of,
)
from vidtok.files import replacing
from vidtok.names import result_candidates


def write_npz(path: str | os.PathLike, records: Sequence[Record]) -> None:
    """Writes the records of one video: one, or all its clips. The file appears complete or not at all."""
    content = npz_bytes(records)
    with replacing(path, locked=True) as part:
        part.write_bytes(content)


def npz_bytes(records: Sequence[Record]) -> bytes:
    """The content of the file. Raises ValueError where a record is none, or these are not all clips of one video."""
    for record in records:
        check_record(record)
    first, description = records[0], describe(records[0])
    if [record.meta.clip for record in records] != ([None] if first.meta.clips is None else [*range(first.meta.clips)]):
        raise ValueError(f"{first.id}: {len(records)} records are not all of its {first.meta.clips or 1}")
    if first.meta.clips is None:
        return _pack(description, first.features, first.timestamps)
    features = np.stack([record.features for record in records])
    timestamps = np.stack([record.timestamps for record in records])
    return _pack(description | {"clip": None}, features, timestamps)


def npz_of(record: Record) -> bytes:
    """The same of one record, a clip or a whole video; here "clip" says which."""
    return _pack(describe(record), record.features, record.timestamps)


def _pack(description: dict, features: np.ndarray, timestamps: np.ndarray) -> bytes:
    file = io.BytesIO()
    arrays: dict[str, Any] = {description["feature"]: features, "timestamps": timestamps}
    np.savez_compressed(file, **arrays, meta=np.array(json.dumps(description)))
    return file.getvalue()


def read_npz(path: str | os.PathLike) -> list[Record]:
    """The records of a file: one, or all clips of the video. All of it is read and its checksums are verified.

    Raises:
        ValueError: naming the file, where it holds no features, is damaged, or of another schema.
        FileNotFoundError: where there is none.
    """
    with damage_named(path), _open(path) as file:
        return parse_npz(file)


def parse_npz(file: BinaryIO) -> list[Record]:
    """`read_npz` of an open file; raises whatever damage leads to."""
    with np.load(file, allow_pickle=False) as arrays:
        description = parse_description(str(arrays["meta"]))
        features, timestamps, clips = arrays[description["feature"]], arrays["timestamps"], description["clips"]
    if clips is None or description["clip"] is not None:
        return [make_record(description, features, timestamps)]
    if len(features) != clips or len(timestamps) != clips:
        raise ValueError(f"{len(features)} arrays and {len(timestamps)} timestamps of {clips} clips")
    return [make_record(description | {"clip": i}, features[i], timestamps[i]) for i in range(clips)]


def read_description(path: str | os.PathLike) -> dict:
    """What a file says of its records (`record.describe`); the arrays aren't read. Raises as above."""
    with damage_named(path), _open(path) as file, np.load(file, allow_pickle=False) as arrays:
        description = parse_description(str(arrays["meta"]))
        settings_of(description)
        return description


def _open(path: str | os.PathLike) -> BinaryIO:
    if not os.path.isfile(path) and os.path.exists(path) and not os.path.isdir(path):
        raise ValueError("no regular file")  # opening a FIFO would wait for its other end
    return open(path, "rb")


@contextmanager
def damage_named(path: str | os.PathLike) -> Iterator[None]:
    """What bytes that are not what they should be lead to becomes a ValueError that names the file."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except _DAMAGE as error:
        raise ValueError(f"{path}: not a file of features that can be read ({_reason(error)})") from error


# What zipfile, zlib, tarfile, numpy and json raise on bytes that are not what they should be.
_DAMAGE = (
    ValueError, KeyError, TypeError, AttributeError, EOFError, OSError, MemoryError, NotImplementedError, RuntimeError,
    zipfile.BadZipFile, tarfile.TarError, zlib.error, SyntaxError, OverflowError, IndexError,
)  # fmt: skip


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "allow_pickle" in text:  # numpy takes whatever it doesn't know for a pickle
        return "no .npz"
    return f"no {error}" if isinstance(error, KeyError) else text or type(error).__name__


# What the system says of a name that it doesn't take, or that is a folder's or below a file's.
_REFUSED = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)


class NpzWriter:
    """See `vidtok.extraction.record.Writer`. A file that is damaged counts as none and is written anew.

    names: of the files below the folder, by id, see `vidtok.names.result_names`. A file that an earlier run has written
    under another of the `result_candidates` is found there; one that is another video's is left alone.
    """

    def __init__(self, folder: Path, names: Mapping[str, str]):
        self.folder, self.written, self._names = folder, 0, names
        self._places: dict[str, Path] = {}  # of the files of videos that were not found

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
            if error.errno not in _REFUSED:
                raise
            raise RefusedName(one_line(error)) from error
        self.written += path.stat().st_size
        return [id]

    def close(self) -> list[str]:
        return []

    def abandon(self) -> None:
        pass

    def _look(self, id: str) -> tuple[Path, Entry | None]:
        """Where the file of a video is, or belongs, and the first record in it."""
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
                if error.errno not in _REFUSED:
                    raise
                continue
            if entry.id == id:
                return path, entry
        return free or paths[0], None


class NpzReader:
    """See `vidtok.extraction.record.Reader`."""

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
