"""Datasets of extracted features: `TokenDataset` for torch and pandas, `TokenBatches` to train heads and generators.

With a cache all arrays of a folder are unpacked into one memory-mapped file. The cache folder then holds two files,
whose name is a hash of the paths, sizes and modification times of the source files:

    NAME.bin    the features and timestamps of all records as stored, one after the other
    NAME.json   their metadata. It is written last: if it exists, both files are complete.

NAME.json is stored by column, since a dict per record would be slow to read. "common" holds the values that all records
share, and "columns" a list with one value per record for each other key. The keys are those of
`vidtok.extraction.record.describe`, and X_start (offset in bytes), X_dtype and X_shape for features and timestamps.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from typing import TypedDict

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vidtok.datasets import DecodePool, VideoError
from vidtok.datasets.annotations.table import canonical_split
from vidtok.datasets.loading import WHOLE, Shard, shard_rows
from vidtok.errors import nearest
from vidtok.extraction.containers import open_reader
from vidtok.extraction.record import Entry, Reader, Record, describe, record_of, settings_of
from vidtok.files import replacing
from vidtok.inputs import walk_files

_ALIGNMENT = 64  # bytes
_ARRAYS = ("features", "timestamps")
_PLACES = {
    "features_start", "features_dtype", "features_shape", "timestamps_start", "timestamps_dtype", "timestamps_shape",
}  # fmt: skip


class UnpackedReader:
    """`vidtok.extraction.record.Reader` of a cache, which is filled from the features below `path` on first use."""

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
        return self.__dict__ | {"_map": None}  # each process maps the file itself; the map is not pickled

    def read(self, index: int) -> Record:
        own = {name: values[index] for name, values in self._columns.items()}
        known = {name: value for name, value in (self._common | own).items() if name not in _PLACES}
        return record_of(known, *(self._array(name, index) for name in _ARRAYS))

    def features(self, index: int) -> np.ndarray:
        """Return the array of a record, unchecked: it was checked when it was unpacked."""
        return self._array("features", index)

    def _column(self, name: str):
        return self._columns[name] if name in self._columns else repeat(self._common[name], self._count)

    def _array(self, name: str, index: int) -> np.ndarray:
        if self._map is None:
            self._map = np.asarray(np.memmap(self._file, np.uint8, "r"))  # a plain array: a memmap is slow to slice
        start, dtype, shape = (
            self._columns[key][index] if key in self._columns else self._common[key]
            for key in (f"{name}_start", f"{name}_dtype", f"{name}_shape")
        )
        return np.ndarray(shape, dtype, self._map, start)


def _fingerprint(path: Path) -> str:
    """Return a hash of the paths, sizes and modification times of the files below a path."""
    digest = hashlib.sha256(os.fsencode(f"columns:{os.path.realpath(path)}"))
    files = sorted(map(Path, walk_files(path, ("",)))) if path.is_dir() else [path]
    for file in files:
        if not file.exists():
            raise ValueError(f"{file}: no such file or folder")
        status = file.stat()
        digest.update(os.fsencode(f"{file}:{status.st_size}:{status.st_mtime_ns}\n"))
    return digest.hexdigest()[:24]


def _unpack(path: str | Path, arrays: Path, table: Path) -> None:
    """Write the two files of a cache.

    Both are renamed into place when complete, so that several processes can do this and a kill leaves no partial file.
    """
    reader = open_reader(path)
    columns: dict[str, list] = {}
    with replacing(table) as new_table:
        with replacing(arrays) as new_arrays, open(new_arrays, "wb") as file:
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
        # Compared as JSON, since 30 == 30.0.
        common = {key: own[0] for key, own in columns.items() if len({json.dumps(value) for value in own}) == 1}
        own = {key: values for key, values in columns.items() if key not in common}
        new_table.write_text(json.dumps({"count": len(reader), "common": common, "columns": own}))


class TokenSample(TypedDict):
    """One item of a `TokenDataset`, which documents its keys."""

    id: str
    label: int
    features: Tensor
    timestamps: Tensor


class TokenDataset(Dataset):
    """Dataset of extracted features, one item per record.

    Compressed videos (`.vtk`) are a dataset of their ids without labels.

    `dataset[i]` is a dict:

        id          string; the clips of one video share it
        label       int: index into `classes`, -1 for none
        features    ids: int64 [t,h,w]; codes, latents, hidden: float32 [C,t,h,w], pooled [C]; embedding: float32 [C]
        timestamps  float64 [frames], times of the coded frames in seconds from the first frame of the video

    Records are read on access. Iterating in order streams the files in bounded memory. The dataset can be pickled, as
    for the workers of a DataLoader.

    Args:
        path: a folder that `vidtok extract` wrote, or one of its files; or compressed videos.
        split: one of the splits in the files; None, all.
        labels: names of the classes to keep; None, all.
        ids: of the videos to keep; None, all.
        classes: class names in the order of their numbers, as a model was trained with them. None: `labels` in their
            order, or else the sorted names of all splits in the files. Records with any other label are left out.
        cache: folder in which all arrays are unpacked once into one file. The file is memory-mapped, which is fastest
            for random access, and shared by all processes.

    Attributes:
        classes: class names. labels: class numbers of all items. ids: ids of all items.
        entries: other metadata of all items, known without reading the arrays.
        feature: kind of the features. meta: dict of the settings that all records share, see `Settings`.

    Raises:
        ValueError: there are no features, or none is left; or an unknown split, label or id. Reading an item raises it
            for a damaged file, which the message names.
    """

    def __init__(
        self,
        path: str | Path,
        split: str | None = None,
        labels: Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
        cache: str | Path | None = None,
    ):
        self.path, self.split = Path(path), split
        self._reader: Reader = open_reader(path) if cache is None else UnpackedReader(path, cache)
        self.meta = asdict(self._reader.settings)
        self.feature = self.meta["feature"]
        found = self._reader.entries
        names = sorted({entry.label for entry in found if entry.label is not None})
        self._validate_names("label", labels, names)
        self._validate_names("id", ids, {entry.id for entry in found} if ids is not None else ())
        splits = {e.split for e in found if e.split}
        if split is not None and split not in splits:
            split = next((name for name in splits if canonical_split(name) == canonical_split(split)), split)
        self._validate_names("split", None if split is None else [split], splits)
        self.classes = list(classes if classes is not None else names if labels is None else labels)
        kept_labels = {*self.classes, None} if labels is None else set(labels)
        kept_ids = None if ids is None else set(ids)
        self._rows = [
            row
            for row, entry in enumerate(found)
            if (split is None or entry.split == split)
            and entry.label in kept_labels
            and (kept_ids is None or entry.id in kept_ids)
        ]
        if not self._rows:
            raise ValueError(f"{path}: none of the {len(found)} records is of that split, label and id")
        numbers = {name: number for number, name in enumerate(self.classes)} | {None: -1}
        self.entries: list[Entry] = [found[row] for row in self._rows]
        self.labels: list[int] = [numbers[entry.label] for entry in self.entries]
        self.ids: list[str] = [entry.id for entry in self.entries]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> TokenSample:
        record = self.read(index)
        return {
            "id": record.id,
            "label": self.labels[index],
            "features": self.tensor(record.features),
            "timestamps": torch.from_numpy(np.array(record.timestamps)),
        }

    def __iter__(self) -> Iterator[TokenSample]:
        return map(self.__getitem__, range(len(self)))

    def read(self, index: int) -> Record:
        """Read item `index` as a `Record`."""
        return self._reader.read(self._row(index))

    def features(self, index: int) -> np.ndarray:
        """Return the array of item `index` as stored; don't write to it. With a cache it is a view of the file."""
        row, reader = self._row(index), self._reader
        return reader.features(row) if isinstance(reader, UnpackedReader) else reader.read(row).features

    def _row(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"no item {index} of {len(self)}")
        return self._rows[index]

    def tensor(self, features: np.ndarray) -> Tensor:
        """Copy an array as stored to a tensor of the dtype of `features` in an item: int64 for ids, else float32."""
        return torch.from_numpy(features.astype(np.int64 if self.feature == "ids" else np.float32))

    def to_pandas(self, features: bool = True) -> pd.DataFrame:
        """Make a table with one row per item. Its `attrs` are `meta`.

        Args:
            features: read all records and add their columns.

        Returns:
            Columns id, label, split (strings), clip, source_bytes, frames, coded_size. With `features` also features
            (arrays as stored), timestamps, and the fields of `RecordMeta` that are not in `meta`.
        """
        table = pd.DataFrame(self.entries, columns=list(Entry._fields))
        table = table.astype({"clip": "Int64", "source_bytes": "Int64"})
        if not features:
            table.attrs = dict(self.meta)
            return table
        records = [self.read(index) for index in range(len(self))]
        own = pd.DataFrame([asdict(record.meta) for record in records])
        own = own.drop(columns=[name for name in own if name in table or name in self.meta])
        own.insert(0, "features", pd.Series([np.array(record.features) for record in records], dtype=object))
        own.insert(1, "timestamps", pd.Series([np.array(record.timestamps) for record in records], dtype=object))
        table = pd.concat([table, own], axis=1)
        table.attrs = dict(self.meta)
        return table

    def _validate_names(self, what: str, asked: Sequence[str] | None, there) -> None:
        if isinstance(asked, str):
            raise ValueError(f"{what}s is a list of names, not {asked!r}")
        unknown = [name for name in asked or () if name not in there]
        if unknown:
            known = nearest(unknown[0], sorted(there)[:1000])
            raise ValueError(f"{self.path}: no {what} {unknown[0]!r} here: {known}")


class TokenBatches:
    """Endless sequence of batches of a `TokenDataset`; batch i is a pure function of (seed, i).

    There is no other state: any number of workers gives the same batches, and a run resumes at `loader(start=n)`. Every
    epoch has each record once. `batches[i]` is a dict of tensors:

        features    [batch_size, ...], see `TokenDataset`; with a window [batch_size, (C,) window, h, w]
        label       int64 [batch_size], -1 for none
        index       int64 [batch_size], number of the record in the dataset
        start       int64 [batch_size], first latent of the window; 0 without a window

    Latents are those of a causal stream: the first latent of a video stands for 1 frame, every other one for s_t frames
    (the stride in time, often 4), and each depends on the frames before it. So a window at 0 is the encoding of the
    first 1 + s_t (window - 1) frames of the video, and can be decoded. A window from the middle (`start` > 0) is of
    s_t window frames, depends on the frames before it, and can't be decoded alone. This may not matter for recognition.
    To learn whole clips, use `first_only`, or extract clips instead of whole videos: each clip has a beginning.

    Args:
        dataset: the records.
        batch_size: records per batch.
        window: latents per record, since whole videos differ in length: `window` consecutive latents from a random
            position. Shorter records are left out; `summary()` tells how many. None, whole records.
        first_only: take only windows at 0.
        seed: of the order and the positions.
        shuffle: draw the order of each epoch from (seed, epoch); False, keep the order of the files.

    Raises:
        ValueError: illegal arguments, records of different sizes, or no record that is long enough.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        batch_size: int,
        window: int | None = None,
        first_only: bool = False,
        seed: int = 0,
        shuffle: bool = True,
    ):
        if batch_size < 1 or (window is not None and window < 1):
            raise ValueError(f"{batch_size=} and {window=} must be at least 1")
        if pooled := dataset.meta["pool"] is not None or dataset.feature == "embedding":
            if window is not None:
                raise ValueError(f"window={window}: these features are pooled over time")
        elif len(sizes := {entry.coded_size for entry in dataset.entries}) > 1:
            raise ValueError(f"{dataset.path}: frames of {min(sizes)} to {max(sizes)} don't make batches")
        self.dataset, self.batch_size, self.window, self.first_only = dataset, batch_size, window, first_only
        self.seed, self.shuffle = seed, shuffle
        stride = dataset.meta["stride"][0]
        self._lengths = np.array([1 + -(-(entry.frames - 1) // stride) for entry in dataset.entries])
        self._usable = np.flatnonzero(self._lengths >= (window or 1))
        if not len(self._usable):
            raise ValueError(f"window={window}: the longest record has {self._lengths.max()} latents")
        if window is None and not pooled and len(lengths := np.unique(self._lengths)) > 1:
            raise ValueError(f"records of {lengths[0]} to {lengths[-1]} latents don't make batches: give a window")

    @property
    def epoch_length(self) -> float:
        """Batches per epoch, a float: an epoch may end within a batch."""
        return len(self._usable) / self.batch_size

    def summary(self) -> str:
        """Return the number of unused records as one line; "" if all are used."""
        short = len(self.dataset) - len(self._usable)
        return f"{short} of {len(self.dataset)} records are shorter than {self.window} latents" if short else ""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self._batch(range(index * self.batch_size, (index + 1) * self.batch_size))

    def loader(
        self, start: int = 0, stop: int | None = None, workers: int = 0, shard: Shard = WHOLE
    ) -> Iterator[dict[str, Tensor]]:
        """Yield batches start, start + 1, ...

        Args:
            start: number of the first batch.
            stop: number after the last batch; None, endless.
            workers: processes that read ahead; 0, none.
            shard: part of each batch to read, such as that of one rank.

        Raises:
            ValueError: the batch size is not a multiple of the number of shards.
        """
        numbers = itertools.count(start) if stop is None else range(start, stop)
        rows = shard_rows(shard, self.batch_size)
        draws = (range(i * self.batch_size + rows.start, i * self.batch_size + rows.stop) for i in numbers)
        return self._load(draws, workers)

    def epoch(self, number: int = 0, workers: int = 0) -> Iterator[dict[str, Tensor]]:
        """Yield the batches of one epoch, with each record once; the last batch may be smaller."""
        count = len(self._usable)
        draws = range(number * count, (number + 1) * count)
        return self._load((draws[i : i + self.batch_size] for i in range(0, count, self.batch_size)), workers)

    def _load(self, jobs: Iterator[range], workers: int) -> Iterator[dict[str, Tensor]]:
        if not workers:
            yield from map(self._batch, jobs)
            return
        with DecodePool(self._batch, workers, 600, lambda _: self.dataset.path) as pool:
            for _, batch in pool.imap(jobs):
                if isinstance(batch, VideoError):  # the worker crashed or hung; damaged files raise ValueError
                    raise batch
                yield batch

    def _batch(self, draws: range) -> dict[str, Tensor]:
        """Read a batch. draws: positions in the endless sequence of records of all epochs."""
        records, starts, features = [], [], []
        for draw in draws:
            epoch, place = divmod(draw, len(self._usable))
            record = int(self._usable[_order(self.seed, epoch, len(self._usable))[place] if self.shuffle else place])
            array, start = self.dataset.features(record), 0
            if self.window is not None:
                if not self.first_only:
                    room = int(self._lengths[record]) - self.window
                    start = int(np.random.default_rng([self.seed, draw]).integers(room, endpoint=True))
                array = array[..., start : start + self.window, :, :]
            records.append(record)
            starts.append(start)
            features.append(self.dataset.tensor(array))
        return {
            "features": torch.stack(features),
            "label": torch.tensor([self.dataset.labels[record] for record in records]),
            "index": torch.tensor(records),
            "start": torch.tensor(starts),
        }


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Draw the order of `count` records in an epoch."""
    return np.random.default_rng([seed, epoch, count]).permutation(count)
