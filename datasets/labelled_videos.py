"""Labelled videos in files: what Kinetics, Something-Something-v2, lists and folders have in common."""

import itertools
import os
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from .labelled import LabelledDataset, OnError
from .resample import indices_at
from .sample import Sample, Sampler, Transform
from .selection import read_selection
from .tensor import frames_to_video


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
