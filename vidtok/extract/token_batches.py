"""Batches of extracted features, for heads and generators to be trained on."""

import itertools
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from vidtok.datasets import DecodePool, VideoError
from vidtok.datasets.part import WHOLE, Part, rows_of
from vidtok.extract.token_dataset import TokenDataset


class TokenBatches:
    """Batch i of an endless run over a `TokenDataset`, as a pure function of (seed, i).

    That is the whole state: any number of workers gives the same batches, and a run resumes at `loader(start=n)`. The
    records come epoch by epoch, each once, in an order drawn from (seed, epoch); `shuffle=False`: in that of the files.
    `batches[i]` is a dict of tensors:

        features    [batch_size, ...], see `TokenDataset`; with a window [batch_size, (C,) window, h, w]
        label       int64 [batch_size], -1 where there is none
        index       int64 [batch_size], number of the record in the dataset
        start       int64 [batch_size], where the window begins, in latents; 0 without one

    window: records of whole videos differ in length; of each, `window` latents from a random place. Latents are those
    of a causal stream: the first one of a video stands for 1 frame, all others for 4 (the stride in time), and each
    depends on the frames before it. So a window at 0 is what the video's first 1 + 4 (window - 1) frames are encoded
    to, and can be decoded; one from the middle (`start` > 0) stands for 4 window frames, was encoded with knowledge of
    what came before, and is no clip that the decoder could be given alone. Recognition may not mind; where whole clips
    are to be learned, `first_only` takes the windows at 0 alone, or extract clips instead of whole videos, which have
    many beginnings. Records shorter than a window are left out; `summary()` says how many.

    Raises ValueError for bad arguments, records of several sizes, and where no record is long enough.
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
        """Batches an epoch; an epoch may end in the middle of one."""
        return len(self._usable) / self.batch_size

    def summary(self) -> str:
        """What isn't used, as one line; "" where all of it is."""
        short = len(self.dataset) - len(self._usable)
        return f"{short} of {len(self.dataset)} records are shorter than {self.window} latents" if short else ""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self._batch(range(index * self.batch_size, (index + 1) * self.batch_size))

    def loader(
        self, start: int = 0, stop: int | None = None, workers: int = 0, part: Part = WHOLE
    ) -> Iterator[dict[str, Tensor]]:
        """Batches start, start+1, ... up to `stop` (None: for ever), read ahead by `workers` processes.

        part: of each batch, of which only those records are read. Raises ValueError where the batch size doesn't divide
        into such parts.
        """
        numbers = itertools.count(start) if stop is None else range(start, stop)
        rows = rows_of(part, self.batch_size)
        draws = (range(i * self.batch_size + rows.start, i * self.batch_size + rows.stop) for i in numbers)
        return self._load(draws, workers)

    def epoch(self, number: int = 0, workers: int = 0) -> Iterator[dict[str, Tensor]]:
        """The batches of one epoch, each record once; the last batch is what is left."""
        count = len(self._usable)
        draws = range(number * count, (number + 1) * count)
        return self._load((draws[i : i + self.batch_size] for i in range(0, count, self.batch_size)), workers)

    def _load(self, jobs: Iterator[range], workers: int) -> Iterator[dict[str, Tensor]]:
        if not workers:
            yield from map(self._batch, jobs)
            return
        with DecodePool(self._batch, workers, 600, lambda _: self.dataset.path) as pool:
            for _, batch in pool.imap(jobs):
                if isinstance(batch, VideoError):  # it crashed or hung; what is damaged is a ValueError
                    raise batch
                yield batch

    def _batch(self, draws: range) -> dict[str, Tensor]:
        """draws: numbers of records in the endless sequence of all epochs."""
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
    return np.random.default_rng([seed, epoch, count]).permutation(count)
