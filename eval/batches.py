"""Labelled training batches, each a pure function of (seed, number), as the training loop wants them."""

from collections.abc import Iterator
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vidtok.datasets import LabelledDataset
from vidtok.datasets.ahead import made_ahead
from vidtok.datasets.part import WHOLE, Part, rows_of

from .inputs import crop_cells


class Source(Protocol):
    """Labelled things. draw(index, epoch): one of them as training sees it in that epoch, a function of the two, and
    the label of what was drawn: another thing may stand in for one that can't be read."""

    labels: list[int] | np.ndarray

    def __len__(self) -> int: ...

    def draw(self, index: int, epoch: int) -> tuple[Tensor, int]: ...

    def summary(self) -> str: ...


class VideoSource:
    """Videos, decoded as they are needed."""

    def __init__(self, dataset: LabelledDataset):
        self.dataset, self.labels = dataset, dataset.labels

    def __len__(self) -> int:
        return len(self.dataset)

    def draw(self, index: int, epoch: int) -> tuple[Tensor, int]:
        sample = self.dataset.draw(index, epoch)
        several = len(sample.video) > 1  # that the head sees at once
        return sample.video if several else sample.video[0], sample.label

    def summary(self) -> str:
        count = self.dataset.resampled
        return f"{count} times another video took the place of a bad one" if count else ""


class MemorySource:
    """Inputs in memory, x [N,V,...]: a random one of the V views, and a random crop of `cells` x `cells` of the grid.

    unit: of the last two dimensions, values per cell: 8 for pixels, 1 for what lies on the token grid; so that all
    inputs are cropped alike. cells: None, no crop.
    """

    def __init__(self, x_NV: Tensor, labels: np.ndarray, cells: int | None = None, unit: int = 1, seed: int = 0):
        side = min(x_NV.shape[-2:]) // unit
        if cells is not None and not 1 <= cells <= side:
            raise ValueError(f"crops are 1 to {side} cells of the grid wide and high, not {cells}")
        self.x_NV, self.labels, self.cells, self.unit, self.seed = x_NV, labels, cells, unit, seed

    def __len__(self) -> int:
        return len(self.x_NV)

    def draw(self, index: int, epoch: int) -> tuple[Tensor, int]:
        rng = np.random.default_rng([self.seed, epoch, index])
        x = self.x_NV[index, rng.integers(self.x_NV.shape[1])]
        if self.cells is not None:
            places = [int(rng.integers(side // self.unit - self.cells, endpoint=True)) for side in x.shape[-2:]]
            x = crop_cells(x, *places, self.cells, self.unit)
        return x, int(self.labels[index])

    def summary(self) -> str:
        return ""


class LabelledBatches:
    """Batch i: (x [B,...], labels int64 [B]). Epochs follow each other without a gap, each in an order of its own.

    Raises ValueError for a batch size below 1 or an empty source.
    """

    def __init__(self, source: Source, batch_size: int, seed: int = 0):
        if batch_size < 1 or not len(source):
            raise ValueError(f"want a batch size of at least 1 and something to train on, got {batch_size}")
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        return self.part_of(number, WHOLE)

    def part_of(self, number: int, part: Part) -> tuple[Tensor, Tensor]:
        """The rows that are `part` of batch `number`. Raises ValueError where it doesn't divide into such parts."""
        places = [number * self.batch_size + row for row in rows_of(part, self.batch_size)]
        x, labels = zip(*(self.source.draw(*self._place(place)) for place in places), strict=True)
        return torch.stack(x), torch.tensor(labels)

    def loader(self, start: int = 0, workers: int = 0, part: Part = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        """That part of batches start, start + 1, ... for ever, made ahead by `workers` processes."""
        return made_ahead(partial(self.part_of, part=part), start, workers)

    def summary(self) -> str:
        return self.source.summary()

    def _place(self, place: int) -> tuple[int, int]:
        """(index, epoch) of one of an endless row of samples."""
        epoch, place = divmod(place, len(self.source))
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.source))
        return int(self._order[1][place]), epoch
