"""The parquet container: one row per record, for pandas, DuckDB, Polars, Ray and others.

    id, label, split   strings; clip: int32 or null; source_bytes: int64
    features           list of the array's values in C order; shape: list<int32>
    timestamps         list<double>
    meta               the JSON of `vidtok.extraction.npz`, "clip" included

The pages have checksums. A file without a footer is incomplete.
"""

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vidtok.extraction.npz import damage_named
from vidtok.extraction.record import (
    Entry,
    Record,
    Settings,
    describe,
    entry_of,
    parse_description,
    record_of,
    settings_of,
)
from vidtok.inputs import FileVersion, file_version

GROUP = 1 << 20  # bytes of features per row group; reading one record reads its whole group


class ParquetShard:
    """`vidtok.extraction.containers.Shard` of parquet."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._writer: pq.ParquetWriter | None = None
        self._rows: list[Record] = []
        self._waiting = 0  # bytes in _rows

    @property
    def size(self) -> int:
        return self._file.tell() + self._waiting

    def add(self, record: Record) -> None:
        self._rows.append(record)
        self._waiting += record.features.nbytes
        if self._waiting >= GROUP:
            self._write_group()

    def finish(self) -> None:
        self._write_group()
        assert self._writer is not None  # a shard has at least one record
        self._writer.close()

    def _write_group(self) -> None:
        if not self._rows:
            return
        table = _table(self._rows)
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._file, table.schema, compression="zstd", write_page_checksum=True, use_dictionary=False
            )
        self._writer.write_table(table)
        self._rows, self._waiting = [], 0


class ParquetFormat:
    """`vidtok.extraction.containers.Format` of parquet."""

    suffix = ".parquet"

    def __init__(self) -> None:
        self._starts: dict[Path, np.ndarray] = {}  # first row of each row group, and the number of rows

    def create(self, file: BinaryIO, name: str) -> ParquetShard:
        return ParquetShard(file)

    def index(self, path: Path, verify: bool) -> tuple[Settings, list[Entry]]:
        with damage_named(path), pq.ParquetFile(_open(path), page_checksum_verification=verify) as file:
            descriptions = []
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, None if verify else ["meta"])
                descriptions += [parse_description(text) for text in table["meta"].to_pylist()]
                if verify:
                    rows = _Rows(table)
                    for row in range(len(table)):
                        rows.record(row)
            return settings_of(descriptions[0]), [entry_of(description) for description in descriptions]

    def read(self, path: Path, row: int) -> Record:
        with damage_named(path):
            if path not in self._starts:
                with pq.ParquetFile(_open(path)) as file:
                    counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
                    self._starts[path] = np.cumsum([0, *counts])
            group = int(np.searchsorted(self._starts[path], row, side="right")) - 1
            return _read_group(file_version(path), path, group).record(row - int(self._starts[path][group]))


def _open(path: Path) -> pa.OSFile:
    return pa.OSFile(os.fsencode(path))  # as bytes, since the name of a folder may not be UTF-8


class _Rows:
    """A row group as NumPy arrays. Reading a row from pyarrow's columns takes several times as long."""

    def __init__(self, table: pa.Table):
        self._descriptions = table["meta"].to_pylist()
        self._lists = {name: _flat(table[name]) for name in ("features", "shape", "timestamps")}

    def record(self, row: int) -> Record:
        array, shape, times = (values[ends[row] : ends[row + 1]] for ends, values in self._lists.values())
        return record_of(parse_description(self._descriptions[row]), array.reshape(shape), times)


@lru_cache(maxsize=4)
def _read_group(version: FileVersion, path: Path, group: int) -> _Rows:
    with pq.ParquetFile(_open(path), page_checksum_verification=True) as file:
        return _Rows(file.read_row_group(group))


def _flat(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return a column of lists as (offsets [rows + 1], values of all rows)."""
    lists = column.combine_chunks()
    return lists.offsets.to_numpy(), lists.values.to_numpy(zero_copy_only=False)


def _table(records: list[Record]) -> pa.Table:
    texts = [pa.array([getattr(record, name) for record in records], pa.string()) for name in ("id", "label", "split")]
    return pa.table(
        [
            *texts,
            pa.array([record.meta.clip for record in records], pa.int32()),
            pa.array([record.meta.source_bytes for record in records], pa.int64()),
            _lists([record.features for record in records]),
            _lists([np.array(record.features.shape, np.int32) for record in records]),
            _lists([record.timestamps for record in records]),
            pa.array([json.dumps(describe(record)) for record in records], pa.string()),
        ],
        names=["id", "label", "split", "clip", "source_bytes", "features", "shape", "timestamps", "meta"],
    )


def _lists(arrays: list[np.ndarray]) -> pa.ListArray:
    offsets = np.cumsum([0, *(array.size for array in arrays)], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(np.concatenate([array.ravel() for array in arrays])))
