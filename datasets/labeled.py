"""Base classes of labeled datasets: samples, batches, and the handling of unreadable videos.

`LabeledDataset` is the base class of all of them, `LabeledVideos` of those that read files.
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

from vidtok.datasets.frames import normalize_video
from vidtok.datasets.loading import DecodePool
from vidtok.datasets.samplers import Segment, choose_at_times, choose_in_segment, describe_segment
from vidtok.datasets.seek import read_selection, whole_picture
from vidtok.datasets.transforms import ViewTransform
from vidtok.errors import VideoError
from vidtok.names import unescape_name

Sampler = Callable[[float, float, np.random.Generator], np.ndarray]
Transform = Callable[[Tensor, np.random.Generator], Tensor]


class Sample(NamedTuple):
    """Labeled video.

    Attributes:
        video: float32 [V,3,T,H,W] in [-1, 1], V views (clips x crops).
        label: class number; -1, unlabeled.
        id: name of the video in its annotation.
        timestamps: float64 [V,T], seconds from the first frame.
    """

    video: Tensor
    label: int
    id: str
    timestamps: Tensor


class Batch(NamedTuple):
    """Batch of samples of one shape.

    Attributes:
        video: float32 [B,V,3,T,H,W] in [-1, 1].
        label: int64 [B]; -1, unlabeled.
        id: B names.
        timestamps: float64 [B,V,T], seconds.
        failed: the error of each video that could not be read. Failed videos are left out, so that B may be less than
            the batch size, and even 0.
    """

    video: Tensor
    label: Tensor
    id: list[str]
    timestamps: Tensor
    failed: list[VideoError]


def collate_samples(samples: Sequence[Sample | VideoError]) -> Batch:
    """Collate samples of one shape into a batch (for DataLoader's collate_fn).

    Raises:
        ValueError: the samples differ in shape.
    """
    good = [sample for sample in samples if not isinstance(sample, VideoError)]
    if len(shapes := {tuple(sample.video.shape) for sample in good}) > 1:
        raise ValueError(
            f"videos of shapes {sorted(shapes)} in one batch: give a sampler and a transform, or batch_size=1"
        )
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


class LabeledDataset(Dataset):
    """Base class of labeled datasets: `dataset[i]` is a `Sample`, a function of (seed, epoch, i).

    Samples do not depend on the number of workers. A subclass sets the attributes and defines `draw`.

    Args:
        transform: see `LabeledVideos`.
        seed: seed of all random choices.

    Attributes:
        classes: the name of each class number; empty without labels.
        labels: class number of each sample; -1, unlabeled.
        ids: name of each sample.
        split: "train", "val", ... or None.
        paths: file of each sample; empty for a dataset without files.
        segments: (start, end) in seconds of each sample, or None for the whole video; empty for a dataset without
            files.
        flip_keeps_label: whether a mirrored video keeps its class.

    Raises:
        ValueError: a transform that flips although classes depend on the direction.
    """

    flip_keeps_label = True
    classes: list[str]
    labels: list[int]
    ids: list[str]
    split: str | None
    paths: Sequence[str] = ()
    segments: Sequence[Segment | None] = ()

    def __init__(self, transform: Transform | None, seed: int):
        if getattr(transform, "flip", False) and not self.flip_keeps_label:
            name = type(self).__name__
            raise ValueError(f"{name} has classes that depend on left and right: give a transform with flip=False")
        self.transform, self.seed = transform, seed
        # In shared memory, so that running workers see the next epoch.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample | VideoError:
        if not 0 <= index < len(self):
            raise IndexError(index)  # ends a plain `for` loop
        return self.draw(index)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which seeds the random choices; it applies to running workers too."""
        self._epoch[0] = epoch

    def draw(self, index: int, epoch: int | None = None) -> Sample | VideoError:
        """Return sample `index` of an epoch: None, the current epoch; others, for batches that span epochs."""
        raise NotImplementedError

    @property
    def resampled(self) -> int:
        """Number of times that an unreadable video was replaced by another one, so far and in all workers."""
        return 0

    def keep(self, chosen: slice | np.ndarray) -> None:
        """Keep only the samples at the indices `chosen`.

        Raises:
            ValueError: an empty slice.
        """
        if isinstance(chosen, slice) and chosen.stop is not None and chosen.stop < 1:
            raise ValueError(f"want at least one clip, not {chosen.stop}")
        places = np.arange(len(self.ids))[chosen]
        for name in ("ids", "labels", "paths", "segments"):
            if values := getattr(self, name):  # rendered samples have no paths
                setattr(self, name, [values[i] for i in places])

    def loader(
        self, batch_size: int, workers: int = 0, shuffle: bool = False, drop_last: bool = False, time_limit: float = 60
    ) -> Iterator[Batch]:
        """Yield the batches of one epoch; samples and their order do not depend on the number of workers.

        A DataLoader works too, except for videos that hang the decoder: use collate_fn=collate_samples and
        multiprocessing_context="forkserver" (FFmpeg may hang in a forked process).

        Args:
            batch_size: samples per batch.
            workers: number of processes; 0, this process decodes.
            shuffle: whether the order is drawn from (seed, epoch).
            drop_last: whether an incomplete last batch is dropped.
            time_limit: seconds per video, with workers. A video that takes longer or crashes its decoder counts as
                unreadable. Without workers it hangs or crashes this process.
        """
        order = np.arange(len(self.ids))
        if shuffle:
            np.random.default_rng([self.seed, int(self._epoch[0])]).shuffle(order)
        batch = []
        ahead = -(-2 * batch_size // max(workers, 1))  # two batches
        for sample in self.samples(order.tolist(), workers, time_limit, ahead):
            batch.append(sample)
            if len(batch) == batch_size:
                yield collate_samples(batch)
                batch = []
        if batch and not drop_last:
            yield collate_samples(batch)

    def samples(
        self, indices: list[int], workers: int = 0, time_limit: float = 60, ahead: int = 4
    ) -> Iterator[Sample | VideoError]:
        """Yield the samples of some indices in this order; they do not depend on the number of workers.

        Args:
            indices: numbers of the samples.
            workers, time_limit: see `loader`.
            ahead: samples that each worker prefetches.
        """
        return self._in_processes(indices, workers, time_limit, ahead) if workers else map(self.draw, indices)

    def _in_processes(
        self, order: list[int], workers: int, time_limit: float, ahead: int
    ) -> Iterator[Sample | VideoError]:
        with DecodePool(self.draw, workers, time_limit, path_of=self.ids.__getitem__) as pool:
            for _, sample in pool.imap(order, ahead, ahead):
                if isinstance(sample, VideoError):  # it crashed or hung its process
                    raise sample
                yield sample


def _normalized(sample: Sample | VideoError) -> Sample | VideoError:
    """Normalize pixels after transport: uint8 takes a quarter of the shared memory."""
    if isinstance(sample, VideoError) or sample.video.is_floating_point():
        return sample
    return sample._replace(video=normalize_video(sample.video))


class LabeledVideos(LabeledDataset):
    """Base class of labeled video files; see `LabeledDataset`. A subclass may override `_read`, which reads a sample.

    Subclasses take the arguments from `sampler` on as `**reading`.

    Args:
        paths, ids, labels: file, name and class number of each video.
        classes: the name of each class number.
        split: name of the split.
        sampler: selects timestamps, see `vidtok.datasets.samplers`; None, all frames of the video.
        transform: function of (float32 [V,3,T,H,W] in [-1, 1], rng) that returns [V',3,T,h,w], V' a multiple of V;
            None, frames at native size.
        seed: seed of all random choices.
        on_error: what happens if a video can't be read. "raise": its `VideoError` is raised. "return": the error is
            returned in place of the sample, so that an evaluation continues and counts it. "resample": another, random
            video is used, with a warning, and counted in `resampled`; for training only.
        checked: table of `vidtok check`, as DataFrame or csv file. Videos with another status than "ok" are left out,
            with a warning; `left_out` lists their paths.
        cache: folder for decoded frames, see `cached_frames`; None, no cache.
        reader: "auto", "pyav", "decord" or "torchcodec", see `vidtok.datasets.open_video`.
        segments: (start, end) in seconds of each video; a sample is drawn from the segment as if it were a whole video,
            but its timestamps are those of the video. None, also for single videos: the whole video.

    Raises:
        ValueError: no videos, or incompatible arguments.
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
        reader: str = "auto",
        segments: Sequence[Segment | None] | None = None,
    ):
        segments = [None] * len(paths) if segments is None else segments
        bad = set() if checked is None else _not_ok(checked)
        kept = [
            not bad or not {(os.path.abspath(path), None), (os.path.abspath(path), segment)} & bad
            for path, segment in zip(paths, segments, strict=True)
        ]
        self.paths, self.ids = [*itertools.compress(paths, kept)], [*itertools.compress(ids, kept)]
        self.labels, self.segments = [*itertools.compress(labels, kept)], [*itertools.compress(segments, kept)]
        self.left_out = [path for path, is_kept in zip(paths, kept, strict=True) if not is_kept]
        if self.left_out:
            warnings.warn(
                f"{len(self.left_out)} of {len(paths)} videos left out: their status in `checked` isn't ok",
                stacklevel=3,
            )
        if not self.paths:
            raise ValueError(f"no video{f' in split {split!r}' if split else ''}{' is left' if self.left_out else ''}")
        if on_error not in ("raise", "return", "resample"):
            raise ValueError(f"on_error={on_error!r} is not 'raise', 'return' or 'resample'")
        super().__init__(transform, seed)
        self.on_error = on_error
        # In shared memory, so that this process sees the counts of running workers.
        self._resampled = torch.zeros(len(self.paths), dtype=torch.int64).share_memory_()
        self.classes, self.split, self.sampler, self.cache = list(classes), split, sampler, cache
        self.reader = reader

    def draw(self, index: int, epoch: int | None = None) -> Sample | VideoError:
        return _normalized(self._take((index, 0), epoch))

    @property
    def resampled(self) -> int:
        return int(self._resampled.sum())

    def _in_processes(
        self, order: list[int], workers: int, time_limit: float, ahead: int
    ) -> Iterator[Sample | VideoError]:
        with DecodePool(self._take, workers, time_limit, path_of=self._name) as pool:
            for (index, _), sample in pool.imap(((index, 0) for index in order), ahead, ahead):
                if isinstance(sample, VideoError) and self.on_error == "resample":  # it crashed or hung its process
                    sample = self._replacement(index, sample, time_limit)
                elif isinstance(sample, VideoError) and self.on_error == "raise":
                    raise sample
                yield _normalized(sample)

    def _take(self, job: tuple[int, int], epoch: int | None = None) -> Sample | VideoError:
        """Return the sample of a job (index, number of the first attempt), pixels possibly still uint8.

        Attempt 0 reads the video itself, the others random ones.
        """
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
        """Return a replacement for a video that crashed or hung its process.

        It is unknown which attempt crashed, so that the new attempts use other numbers.
        """
        for start in range(1000, 1000 * _ATTEMPTS, 1000):
            self._note(index, error)
            with DecodePool(self._take, 1, time_limit, path_of=self._name) as spare:
                _, sample = next(spare.imap([(index, start)]))
            if not isinstance(sample, VideoError):
                return sample
        raise error

    def _note(self, index: int, error: VideoError) -> None:
        self._resampled[index] += 1
        warnings.warn(f"{error}; replaced by another video in this epoch", stacklevel=3)

    def _read(self, index: int, rng: np.random.Generator) -> Sample:
        path, segment = self.paths[index], self.segments[index]
        choose, sampler = _all_frames, self.sampler
        if sampler is not None:
            choose = partial(choose_at_times, times=lambda duration, fps: sampler(duration, fps, rng))
        choose = partial(choose_in_segment, path=path, segment=segment, choose=choose)
        view = partial(self.transform.view, rng=rng) if isinstance(self.transform, ViewTransform) else whole_picture
        try:
            frames_VTHWC, timestamps_VT = read_selection(path, choose, self.cache, view, self.reader)
        except VideoError as e:  # the message names the segment, since several samples may be of this file
            raise VideoError(self._name((index, 0)), e.reason, e.good_frames) from e
        video = torch.from_numpy(frames_VTHWC).permute(0, 4, 1, 2, 3)
        if isinstance(self.transform, ViewTransform):
            video = self.transform.finish(video, rng)
        elif self.transform is not None:
            video = self.transform(normalize_video(video), rng)
        times = torch.from_numpy(timestamps_VT)
        times = times.repeat_interleave(len(video) // len(times), dim=0)  # crops of one clip are consecutive
        return Sample(video, self.labels[index], self.ids[index], times)

    def _name(self, job: tuple[int, int]) -> str:
        return describe_segment(self.paths[job[0]], self.segments[job[0]])


def _all_frames(timestamps: np.ndarray, fps: float) -> np.ndarray:
    return np.arange(len(timestamps))[None]


def _not_ok(checked: pd.DataFrame | str | Path) -> set[tuple[str, Segment | None]]:
    """Return (absolute path, segment or None for the whole video) of all rows that are not "ok"."""
    table = checked if isinstance(checked, pd.DataFrame) else pd.read_csv(checked, dtype={"path": str})
    if not {"path", "status"} <= set(table):
        raise ValueError("checked is not a table of `vidtok check`: want columns path and status")
    bad = table[table["status"] != "ok"].reindex(columns=["path", "start", "end"])
    return {
        (os.path.abspath(unescape_name(path)), None if pd.isna(start) else (float(start), float(end)))
        for path, start, end in bad.itertuples(index=False)
    }
