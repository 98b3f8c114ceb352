"""What all labelled datasets have in common: samples, failures, batches."""

import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from .error import VideoError
from .pool import DecodePool
from .sample import Batch, Sample, Transform, collate_samples

OnError = Literal["raise", "return", "resample"]
_ATTEMPTS = 100


class LabelledDataset(Dataset):
    """Videos with labels: `dataset[i]` is a `Sample`, a function of (seed, epoch, i) whatever the number of workers.

    classes: the name of each class number; empty where nothing is labelled. labels (class numbers, -1 where there is
    none), ids, paths (the files; empty where there are none): of all samples, in order. split: "train", "val", ... or
    None. flip_keeps_label: whether a mirrored video is still of its class.

    A subclass sets these and defines `_read`. on_error, what happens to a video that can't be read: "raise", its
    `VideoError` is raised; "return", it is returned in place of the sample, so that an evaluation goes on and counts
    it; "resample", for training alone: another one is taken, which is warned about and counted in `resampled`.
    """

    flip_keeps_label = True
    classes: list[str]
    labels: list[int]
    ids: list[str]
    split: str | None
    paths: Sequence[str] = ()

    def __init__(self, length: int, transform: Transform | None, seed: int, on_error: OnError):
        if on_error not in ("raise", "return", "resample"):
            raise ValueError(f"on_error={on_error!r} is not 'raise', 'return' or 'resample'")
        if getattr(transform, "flip", False) and not self.flip_keeps_label:
            name = type(self).__name__
            raise ValueError(f"{name} has classes that differ by left and right: give a transform with flip=False")
        self.transform, self.seed, self.on_error = transform, seed, on_error
        # Shared memory: workers that are already running see the next epoch, and what they count is counted here.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._resampled = torch.zeros(length, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample | VideoError:
        if not 0 <= index < len(self):
            raise IndexError(index)  # ends a plain `for` loop
        return self._take((index, 0))

    def set_epoch(self, epoch: int) -> None:
        """Draw anew what is random, in running workers too."""
        self._epoch[0] = epoch

    def draw(self, index: int, epoch: int) -> Sample | VideoError:
        """Sample `index` as it is in `epoch`, whatever `set_epoch` said: for batches that span epochs."""
        return self._take((index, 0), epoch)

    @property
    def resampled(self) -> int:
        """How often another video took the place of one that failed, so far and in all workers."""
        return int(self._resampled.sum())

    def loader(
        self, batch_size: int, workers: int = 0, shuffle: bool = False, drop_last: bool = False, time_limit: float = 60
    ) -> Iterator[Batch]:
        """Batches of one epoch; the samples and their order are the same for any number of workers.

        With workers, a video that takes longer than `time_limit` seconds, or crashes its decoder, has failed like any
        other; without, it hangs or crashes this process. shuffle: in an order drawn from (seed, epoch). drop_last:
        leave out a last batch that is smaller. (A DataLoader does as well, but for hanging videos: give it
        collate_fn=collate_samples and multiprocessing_context="forkserver"; forked, FFmpeg may hang.)
        """
        order = np.arange(len(self))
        if shuffle:
            np.random.default_rng([self.seed, int(self._epoch[0])]).shuffle(order)
        batch = []
        ahead = -(-2 * batch_size // max(workers, 1))  # two batches
        for sample in self._samples(order.tolist(), workers, time_limit, ahead):
            batch.append(sample)
            if len(batch) == batch_size:
                yield collate_samples(batch)
                batch = []
        if batch and not drop_last:
            yield collate_samples(batch)

    def _read(self, index: int, rng: np.random.Generator) -> Sample:
        """Sample `index`; raises `VideoError` where it can't be read."""
        raise NotImplementedError

    def _name(self, job: tuple[int, int]) -> str:
        """What a failure is reported as."""
        return self.ids[job[0]]

    def _samples(self, order: list[int], workers: int, time_limit: float, ahead: int) -> Iterator[Sample | VideoError]:
        if not workers:
            yield from map(self.__getitem__, order)
            return
        with DecodePool(self._take, workers, time_limit, path_of=self._name) as pool:
            for (index, _), sample in pool.imap(((index, 0) for index in order), ahead, ahead):
                if isinstance(sample, VideoError) and self.on_error == "resample":  # it took its process along
                    sample = self._replacement(index, sample, time_limit)
                elif isinstance(sample, VideoError) and self.on_error == "raise":
                    raise sample
                yield sample

    def _take(self, job: tuple[int, int], epoch: int | None = None) -> Sample | VideoError:
        """(index, number of the first attempt) -> the sample. Attempt 0 is the video itself, the others are random."""
        index, start = job
        epoch = int(self._epoch[0]) if epoch is None else epoch
        for attempt in itertools.count(start):
            rng = np.random.default_rng([self.seed, epoch, index, attempt])
            taken = index if attempt == 0 else int(rng.integers(len(self)))
            try:
                return self._read(taken, rng)
            except VideoError as e:
                if self.on_error == "return":
                    return e
                if self.on_error == "raise" or attempt == start + _ATTEMPTS:
                    raise
                self._note(index, e)
        raise AssertionError

    def _replacement(self, index: int, error: VideoError, time_limit: float) -> Sample:
        """For a video that took its process along. Nobody knows at which attempt: others have other numbers."""
        for start in range(1000, 1000 * _ATTEMPTS, 1000):
            self._note(index, error)
            with DecodePool(self._take, 1, time_limit, path_of=self._name) as spare:
                _, sample = next(spare.imap([(index, start)]))
            if not isinstance(sample, VideoError):
                return sample
        raise error

    def _note(self, index: int, error: VideoError) -> None:
        self._resampled[index] += 1
        warnings.warn(f"{error}; another video takes its place in this epoch", stacklevel=3)
