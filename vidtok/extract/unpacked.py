"""All arrays of a folder of features in one file that is memory-mapped.

Two files in a cache folder, named by a hash of the files they were made of: NAME.bin, the arrays and times as they are
stored, one after the other, and NAME.json, where each begins and what is known of it, written last: where it exists,
both are whole.
"""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

from vidtok.extract.container import entry_of
from vidtok.extract.open import open_reader
from vidtok.extract.record import Record, describe, make_record, settings_of

_ALIGNMENT = 64  # bytes


class UnpackedReader:
    """See `vidtok.extract.container.Reader`. Unpacks what lies below `path` on the first call."""

    def __init__(self, path: str | Path, cache: str | Path):
        name = _fingerprint(Path(path))
        self._arrays, table = Path(cache) / f"{name}.bin", Path(cache) / f"{name}.json"
        if not table.exists():
            Path(cache).mkdir(parents=True, exist_ok=True)
            _unpack(path, self._arrays, table)
        content = json.loads(table.read_text())
        self.settings = settings_of(content["settings"])
        self._common, self._rows = content["settings"], content["records"]
        self.entries = [entry_of(self._common | row["own"]) for row in self._rows]
        self._map: np.memmap | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_map": None}  # each process maps the file, nobody copies it

    def read(self, index: int) -> Record:
        if self._map is None:
            self._map = np.memmap(self._arrays, np.uint8, "r")
        row = self._rows[index]
        arrays = [self._array(*row[name]) for name in ("features", "timestamps")]
        return make_record(self._common | row["own"], *arrays)

    def _array(self, start: int, dtype: str, shape: list[int]) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self._map[start : start + size].view(dtype).reshape(shape)


def _fingerprint(path: Path) -> str:
    digest = hashlib.sha256(os.path.realpath(path).encode())
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in files:
        if not file.exists():
            raise ValueError(f"{file}: no such file or folder")
        status = file.stat()
        digest.update(f"{file}:{status.st_size}:{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]


def _unpack(path: str | Path, arrays: Path, table: Path) -> None:
    """Both files are renamed into place, so that several processes may be at it and a kill leaves nothing half done."""
    reader = open_reader(path)
    common, rows = asdict(reader.settings), []
    new_arrays, new_table = (file.with_suffix(f".{os.getpid()}.new{file.suffix}") for file in (arrays, table))
    try:
        with open(new_arrays, "wb") as file:
            for index in range(len(reader)):
                record = reader.read(index)
                own = {key: value for key, value in describe(record).items() if key not in common}
                places = []
                for array in (record.features, record.timestamps):
                    file.write(bytes(-file.tell() % _ALIGNMENT))
                    places.append((file.tell(), array.dtype.str, array.shape))
                    file.write(np.ascontiguousarray(array).data)
                rows.append({"own": own, "features": places[0], "timestamps": places[1]})
        new_table.write_text(json.dumps({"settings": common, "records": rows}))
        os.replace(new_arrays, arrays)
        os.replace(new_table, table)
    finally:
        new_arrays.unlink(missing_ok=True)
        new_table.unlink(missing_ok=True)
