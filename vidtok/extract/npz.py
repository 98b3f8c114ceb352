"""The npz container: a file per video, readable without vidtok.

A NumPy `.npz` (a zip with a checksum for each entry) of deflated arrays:

    ids | codes | latents | hidden | embedding   the features, under the name of their kind, laid out as in
                                                 `vidtok.extract.record`; of clips stacked, [clips, ...]
    timestamps                                   float64 [frames]; of clips [clips, frames]
    meta                                         one string: a JSON object with "schema": "vidtok.features/1", id,
                                                 label, split and the fields of `RecordMeta` ("clip" is null)
"""

import io
import json
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vidtok.extract.record import Record, check_record, describe, make_record, parse_description, settings_of


def write_npz(path: str | os.PathLike, records: Sequence[Record]) -> None:
    """Writes the records of one video: one, or all its clips. The file appears complete or not at all."""
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(npz_bytes(records))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def npz_bytes(records: Sequence[Record]) -> bytes:
    """The content of the file. Raises ValueError where a record is none, or these are not all clips of one video."""
    for record in records:
        check_record(record)
    first = records[0]
    if [record.meta.clip for record in records] != ([None] if first.meta.clips is None else [*range(first.meta.clips)]):
        raise ValueError(f"{first.id}: {len(records)} records are not all of its {first.meta.clips or 1}")
    if first.meta.clips is None:
        return npz_of(first)
    features = np.stack([record.features for record in records])
    timestamps = np.stack([record.timestamps for record in records])
    return _pack(describe(first) | {"clip": None}, features, timestamps)


def npz_of(record: Record) -> bytes:
    """The same of one record, a clip or a whole video; here "clip" says which."""
    return _pack(describe(record), record.features, record.timestamps)


def _pack(description: dict, features: np.ndarray, timestamps: np.ndarray) -> bytes:
    file, meta = io.BytesIO(), np.array(json.dumps(description))
    np.savez_compressed(file, **{description["feature"]: features}, timestamps=timestamps, meta=meta)
    return file.getvalue()


def read_npz(path: str | os.PathLike) -> list[Record]:
    """The records of a file: one, or all clips of the video. All of it is read and its checksums are verified.

    Raises:
        ValueError: naming the file, where it holds no features, is damaged, or of another schema.
        FileNotFoundError: where there is none.
    """
    with damage_named(path), open(path, "rb") as file:
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
    """What a file says of its records (`vidtok.extract.record.describe`); the arrays aren't read. Raises as above."""
    with damage_named(path), open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        description = parse_description(str(arrays["meta"]))
        settings_of(description)
        return description


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
