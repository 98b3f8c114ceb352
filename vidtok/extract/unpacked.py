"""All arrays of a folder of features in one file that is memory-mapped.

Two files in a cache folder, named by a hash of the files they were made of: NAME.bin, the arrays and times as they are
stored, one after the other, and NAME.json, what is known of them, written last: where it exists, both are whole.
NAME.json is columns, as a dict for each record would take long to read: "common", what all records share, and
"columns", a list of as many values as there are records for each other key. The keys are those of
`vidtok.extract.record.describe`, and of features and of timestamps NAME_start (byte), NAME_dtype, NAME_shape.
"""

import hashlib
import json
import os
from itertools import repeat
from pathlib import Path

import numpy as np

from vidtok.extract.container import Entry
from vidtok.extract.open import open_reader
from vidtok.extract.record import Record, describe, make_record, settings_of

_ALIGNMENT = 64  # bytes
_ARRAYS = ("features", "timestamps")
_PLACES = {f"{array}_{fact}" for array in _ARRAYS for fact in ("start", "dtype", "shape")}


class UnpackedReader:
    """See `vidtok.extract.container.Reader`. Unpacks what lies below `path` on the first call."""

    def __init__(self, path: str | Path, cache: str | Path):
        name = _fingerprint(Path(path))
        self._file, table = Path(cache) / f"{name}.bin", Path(cache) / f"{name}.json"
        if not table.exists():
            Path(cache).mkdir(parents=True, exist_ok=True)
            _unpack(path, self._file, table)
        content = json.loads(table.read_text())
        self._common, self._columns, self._count = content["common"], content["columns"], content["count"]
        self.settings = settings_of(self._common)
        fields = {field: self._column(field) for field in Entry._fields}
        fields["coded_size"] = map(tuple, fields["coded_size"])
        self.entries = list(map(Entry, *fields.values()))
        self._map: np.ndarray | None = None

    def __len__(self) -> int:
        return self._count

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_map": None}  # each process maps the file, nobody copies it

    def read(self, index: int) -> Record:
        own = {name: values[index] for name, values in self._columns.items()}
        known = {name: value for name, value in (self._common | own).items() if name not in _PLACES}
        return make_record(known, *(self._array(name, index) for name in _ARRAYS))

    def features(self, index: int) -> np.ndarray:
        """The array of a record alone, which was checked when it was unpacked."""
        return self._array("features", index)

    def _column(self, name: str):
        return self._columns[name] if name in self._columns else repeat(self._common[name], self._count)

    def _array(self, name: str, index: int) -> np.ndarray:
        if self._map is None:
            self._map = np.asarray(np.memmap(self._file, np.uint8, "r"))  # the plain array: a memmap is slow to slice
        start, dtype, shape = (
            self._columns[key][index] if key in self._columns else self._common[key]
            for key in (f"{name}_start", f"{name}_dtype", f"{name}_shape")
        )
        return np.ndarray(shape, dtype, self._map, start)


def _fingerprint(path: Path) -> str:
    digest = hashlib.sha256(f"columns:{os.path.realpath(path)}".encode())
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in files:
        if not file.exists():
            raise ValueError(f"{file}: no such file or folder")
        status = file.stat()
        digest.update(f"{file}:{status.st_size}:{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]


def _unpack(path: str | Path, arrays: Path, table: Path) -> None:
    """Both files are renamed into place, so that several processes may be at it and a kill leaves nothing half done."""
    reader, columns = open_reader(path), {}
    new_arrays, new_table = (file.with_suffix(f".{os.getpid()}.new{file.suffix}") for file in (arrays, table))
    try:
        with open(new_arrays, "wb") as file:
            for index in range(len(reader)):
                record = reader.read(index)
                own = describe(record)
                for name, array in zip(_ARRAYS, (record.features, record.timestamps), strict=True):
                    file.write(bytes(-file.tell() % _ALIGNMENT))
                    own |= {f"{name}_start": file.tell(), f"{name}_dtype": array.dtype.str}
                    own[f"{name}_shape"] = list(array.shape)
                    file.write(np.ascontiguousarray(array).data)
                for key, value in own.items():
                    columns.setdefault(key, []).append(value)
        # Compared as text, since 30 == 30.0.
        common = {key: own[0] for key, own in columns.items() if len({json.dumps(value) for value in own}) == 1}
        own = {key: values for key, values in columns.items() if key not in common}
        new_table.write_text(json.dumps({"count": len(reader), "common": common, "columns": own}))
        os.replace(new_arrays, arrays)
        os.replace(new_table, table)
    finally:
        new_arrays.unlink(missing_ok=True)
        new_table.unlink(missing_ok=True)
