"""Extracted features as a torch dataset and as a pandas frame."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vidtok.extract.container import Entry
from vidtok.extract.open import open_reader
from vidtok.extract.record import Record
from vidtok.extract.unpacked import UnpackedReader
from vidtok.hints import nearest


class TokenDataset(Dataset):
    """The features below `path` (a folder that `vidtok extract` wrote, or one of its files), one item a record.

    `dataset[i]` is a dict:

        id          string; the clips of one video share it
        label       int: index into `classes`, -1 where there is none
        features    ids: int64 [t,h,w]; codes, latents, hidden: float32 [C,t,h,w], pooled [C]; embedding: float32 [C]
        timestamps  float64 [frames], seconds from the first frame of the video, of the frames that were coded

    Records are read when they are asked for. Going through in order streams the files, in memory that doesn't grow with
    them. cache: a folder in which all arrays are once unpacked into one file; that is memory-mapped, the quickest for
    random access, and shared by all processes. The dataset pickles: for DataLoader's workers, too.

    split: one of those in the files. labels: names of the classes to keep. ids: of the videos to keep. classes: names
    in the order of the numbers, where a model was trained with them; None, `labels` in their order, or else all names
    in the files, sorted, those of other splits included. What has a label that is no class is left out.

    Attributes:
        classes: names. labels: the class numbers of all items; ids: their ids. entries: what else is known of them
        without reading. feature: its kind. meta: dict of what all records have in common, see `Settings`.

    Raises:
        ValueError: where there are no features or none is left, for a split, label or id that isn't there, and, naming
        the file, when a damaged one is read.
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
        self._unpacked = cache is not None
        self._reader = UnpackedReader(path, cache) if self._unpacked else open_reader(path)
        self.meta = asdict(self._reader.settings)
        self.feature = self.meta["feature"]
        found = self._reader.entries
        names = sorted({entry.label for entry in found if entry.label is not None})
        self._refuse_unknown("label", labels, names)
        self._refuse_unknown("id", ids, {entry.id for entry in found} if ids is not None else ())
        self._refuse_unknown("split", None if split is None else [split], {e.split for e in found if e.split})
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

    def __getitem__(self, index: int) -> dict[str, str | int | Tensor]:
        record = self.read(index)
        return {
            "id": record.id,
            "label": self.labels[index],
            "features": self.tensor(record.features),
            "timestamps": torch.from_numpy(np.array(record.timestamps)),
        }

    def __iter__(self) -> Iterator[dict[str, str | int | Tensor]]:
        return map(self.__getitem__, range(len(self)))

    def read(self, index: int) -> Record:
        """Item `index` as the record it is."""
        return self._reader.read(self._row(index))

    def features(self, index: int) -> np.ndarray:
        """The array of item `index` as it is stored, to be read only. With a cache this costs next to nothing."""
        row = self._row(index)
        return self._reader.features(row) if self._unpacked else self._reader.read(row).features

    def _row(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"no item {index} of {len(self)}")
        return self._rows[index]

    def tensor(self, features: np.ndarray) -> Tensor:
        """An array as stored, in the type of `features` above; a copy."""
        return torch.from_numpy(features.astype(np.int64 if self.feature == "ids" else np.float32))

    def to_pandas(self, features: bool = True) -> pd.DataFrame:
        """A row per item: id, label, split (strings), clip, source_bytes, frames, coded_size; and where `features` are
        wanted, which reads them all, features (arrays as stored), timestamps, and the rest of `RecordMeta` that isn't
        common to all; what is, `meta`, is in its `attrs`."""
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

    def _refuse_unknown(self, what: str, asked: Sequence[str] | None, there) -> None:
        if isinstance(asked, str):
            raise ValueError(f"{what}s is a list of names, not {asked!r}")
        unknown = [name for name in asked or () if name not in there]
        if unknown:
            known = nearest(unknown[0], sorted(there)[:1000])
            raise ValueError(f"{self.path}: no {what} {unknown[0]!r} here: {known}")
