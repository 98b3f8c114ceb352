"""What a labelled dataset hands out, one at a time and in batches.

What all labelled datasets have in common: samples, failures, batches.

Labelled videos in files: what Kinetics, Something-Something-v2, lists and folders have in common.
"""

import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vidtok.datasets.frames import frames_to_video
from vidtok.datasets.loading import DecodePool
from vidtok.datasets.seek import indices_at, read_selection
from vidtok.errors import VideoError

Sampler = Callable[[float, float, np.random.Generator], np.ndarray]
Transform = Callable[[Tensor, np.random.Generator], Tensor]


class Sample(NamedTuple):
    """One video. video: float32 [V,3,T,H,W] in [-1, 1], V views (clips x crops). label: class number, -1 where there is
    none. id: what its annotation calls it. timestamps: float64 [V,T], seconds from the first frame."""

    video: Tensor
    label: int
    id: str
    timestamps: Tensor


class Batch(NamedTuple):
    """Several. video: [B,V,3,T,H,W]. label: int64 [B]. id: B strings. timestamps: [B,V,T]. failed: one error for each
    video that could not be read; nothing stands in its place, so B is less by so many, and may be 0."""

    video: Tensor
    label: Tensor
    id: list[str]
    timestamps: Tensor
    failed: list[VideoError]


def collate_samples(samples: Sequence[Sample | VideoError]) -> Batch:
    """A batch of samples of one shape (for DataLoader's collate_fn). Raises ValueError where the shapes differ."""
    good = [sample for sample in samples if not isinstance(sample, VideoError)]
    if len(shapes := {tuple(sample.video.shape) for sample in good}) > 1:
        raise ValueError(f"videos of {sorted(shapes)} in one batch: give a sampler and a transform, or batches of one")
    stack = torch.stack if good else lambda _: torch.empty(0)
    return Batch(
        stack([sample.video for sample in good]),
        torch.tensor([sample.label for sample in good], dtype=torch.int64),
        [sample.id for sample in good],
        stack([sample.timestamps for sample in good]),
        [sample for sample in samples if isinstance(sample, VideoError)],
    )


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


class LabelledVideos(LabelledDataset):
    """Files with labels; see `LabelledDataset` for what a dataset is.

    paths, ids, labels: of each video. classes: names of the class numbers. What the subclasses take as `**reading`:
      sampler    which moments are seen, see `vidtok.datasets.samplers`; None, all frames of the video
      transform  (video [V,3,T,H,W], rng) -> video [V',3,T,h,w], V' a multiple of V; None, as it is in the file
      seed       of everything that is random
      on_error   what happens to a video that can't be read: "raise", "return" or "resample", see `LabelledDataset`
      checked    table of `vidtok check`, DataFrame or csv file: videos that are not ok in it are left out, which is
                 warned about; `left_out` lists their paths
      cache      folder for decoded frames, see `cached_frames`

    Raises ValueError for arguments that don't fit each other.
    """

    def __init__(
        self,
        paths: Sequence[str],
        ids: Sequence[str],
        labels: Sequence[int],
        classes: Sequence[str],
        split: str | None = None,
        sampler: Sampler | None = None,
        transform: Transform | None = None,
        seed: int = 0,
        on_error: OnError = "raise",
        checked: pd.DataFrame | str | Path | None = None,
        cache: str | Path | None = None,
    ):
        bad = set() if checked is None else _not_ok(checked)
        kept = [not bad or os.path.abspath(path) not in bad for path in paths]
        self.paths, self.ids, self.labels = ([*itertools.compress(x, kept)] for x in (paths, ids, labels))
        self.left_out = [path for path, is_kept in zip(paths, kept, strict=True) if not is_kept]
        if self.left_out:
            warnings.warn(f"{len(self.left_out)} of {len(paths)} videos left out: not ok when checked", stacklevel=3)
        if not self.paths:
            raise ValueError(f"no video{f' in split {split!r}' if split else ''}{' is left' if self.left_out else ''}")
        super().__init__(len(self.paths), transform, seed, on_error)
        self.classes, self.split, self.sampler, self.cache = list(classes), split, sampler, cache

    def _read(self, index: int, rng: np.random.Generator) -> Sample:
        frames_VTHWC, timestamps_VT = read_selection(self.paths[index], partial(self._choose, rng=rng), self.cache)
        video = torch.stack([frames_to_video(frames_THWC) for frames_THWC in frames_VTHWC])
        if self.transform is not None:
            video = self.transform(video, rng)
        times = torch.from_numpy(timestamps_VT)
        times = times.repeat_interleave(len(video) // len(times), dim=0)  # crops of one clip stand together
        return Sample(video, self.labels[index], self.ids[index], times)

    def _choose(self, timestamps: np.ndarray, fps: float, rng: np.random.Generator) -> np.ndarray:
        """Indices [V,T]."""
        if self.sampler is None:
            return np.arange(len(timestamps))[None]
        return indices_at(timestamps, self.sampler(timestamps[-1] + 1 / fps, fps, rng))

    def _name(self, job: tuple[int, int]) -> str:
        return self.paths[job[0]]


def _not_ok(checked: pd.DataFrame | str | Path) -> set[str]:
    table = checked if isinstance(checked, pd.DataFrame) else pd.read_csv(checked, dtype={"path": str})
    if not {"path", "status"} <= set(table):
        raise ValueError("checked: not a table of `vidtok check` (it has columns path and status)")
    return {os.path.abspath(path) for path in table.loc[table["status"] != "ok", "path"]}
