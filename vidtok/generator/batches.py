"""Training batches for generators, each a pure function of (seed, number).

A batch is a dict of tensors with the samples along dimension 0: label int64 [B], -1 for none; seed int64 [B], of each
sample's random draws; and ids int64 [B, t, h, w], latents float32 [B, K, t, h, w], whose signs are the ids, or video
float32 [B, 3, T, H, W], which the task encodes.
"""

import itertools
from collections.abc import Iterator
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from vidtok.datasets import LabelledDataset
from vidtok.datasets.ahead import made_ahead
from vidtok.datasets.part import WHOLE, Part, rows_of
from vidtok.extract.token_batches import TokenBatches

Batch = dict[str, Tensor]


class StoredBatches:
    """Extracted ids or latents.

    Raises ValueError for other features.
    """

    def __init__(self, tokens: TokenBatches, seed: int = 0):
        if tokens.dataset.feature not in ("ids", "latents"):
            raise ValueError(f"generators are trained on ids or latents, not on {tokens.dataset.feature}")
        self.tokens, self.seed = tokens, seed

    def __getitem__(self, number: int) -> Batch:
        return self._complete(number, self.tokens[number], WHOLE)

    def first(self, count: int) -> Batch:
        """The first `count` samples of the first batch."""
        return {name: values[:count] for name, values in self[0].items()}

    def loader(self, start: int = 0, workers: int = 0, part: Part = WHOLE) -> Iterator[Batch]:
        """That part of batches start, start + 1, ... for ever, read ahead by `workers` processes."""
        read = self.tokens.loader(start, workers=workers, part=part)
        return map(partial(self._complete, part=part), itertools.count(start), read)

    def summary(self) -> str:
        return self.tokens.summary()

    def _complete(self, number: int, read: Batch, part: Part) -> Batch:
        features = read["features"]
        batch = {"label": read["label"], "seed": seeds(self.seed, number, self.tokens.batch_size, part)}
        return {self.tokens.dataset.feature: features, **batch}


class ClipBatches:
    """Clips of a labelled dataset, decoded as they are needed.

    Raises ValueError for a batch size below 1 or an empty dataset.
    """

    def __init__(self, dataset: LabelledDataset, batch_size: int, seed: int = 0):
        if batch_size < 1 or not len(dataset):
            raise ValueError(f"want a batch size of at least 1 and something to train on, got {batch_size}")
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed

    def __getitem__(self, number: int) -> Batch:
        return self.part_of(number, WHOLE)

    def part_of(self, number: int, part: Part) -> Batch:
        """The rows that are `part` of batch `number`. Raises ValueError where it doesn't divide into such parts."""
        samples = []
        for row in rows_of(part, self.batch_size):
            epoch, place = divmod(number * self.batch_size + row, len(self.dataset))
            samples.append(self.dataset.draw(int(_order(self.seed, epoch, len(self.dataset))[place]), epoch))
        return {
            "video": torch.stack([sample.video[0] for sample in samples]),
            "label": torch.tensor([sample.label for sample in samples]),
            "seed": seeds(self.seed, number, self.batch_size, part),
        }

    def first(self, count: int) -> Batch:
        """The first `count` samples of the first batch, of which the others aren't decoded."""
        return ClipBatches(self.dataset, count, self.seed)[0]

    def loader(self, start: int = 0, workers: int = 0, part: Part = WHOLE) -> Iterator[Batch]:
        """That part of batches start, start + 1, ... for ever, made ahead by `workers` processes."""
        return made_ahead(partial(self.part_of, part=part), start, workers)

    def summary(self) -> str:
        count = self.dataset.resampled
        return f"{count} times another video took the place of a bad one" if count else ""


def seeds(seed: int, number: int, size: int, part: Part) -> Tensor:
    """int64, of the random draws of the samples in a part of batch `number`, which has `size`."""
    rows = rows_of(part, size)
    return torch.from_numpy(np.random.default_rng([seed, number]).integers(2**62, size=size)[rows.start : rows.stop])


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, count]).permutation(count)
