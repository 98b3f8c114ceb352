"""Training batches that need no files."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .digits import MovingDigits


class DigitClips:
    """Batches as `ClipFolder` gives them, of `MovingDigits`: batch i is a pure function of (seed, i).

    `dataset[i]` is float32 in [-1, 1], [batch_size, 3, frames, crop, crop], every tenth batch [image_batch_size, 3, 1,
    crop, crop]. split: "train" or "val".
    """

    def __init__(
        self,
        frames: int = 17,
        crop: int = 64,
        batch_size: int = 8,
        image_batch_size: int | None = None,
        seed: int = 0,
        split: str = "train",
    ):
        self.seed, self.batch_size, self.image_batch_size = seed, batch_size, image_batch_size or 4 * batch_size
        self.videos, self.images = (MovingDigits(split, count, crop, seed) for count in (frames, 1))

    def __getitem__(self, index: int) -> Tensor:
        rng = np.random.default_rng([self.seed, index])
        images = index % 10 == 9
        digits, size = (self.images, self.image_batch_size) if images else (self.videos, self.batch_size)
        return torch.cat([digits[int(i)].video for i in rng.integers(len(digits), size=size)])

    def loader(self, start: int = 0, workers: int = 0) -> Iterator[Tensor]:
        """Batches start, start + 1, ..., made here whatever `workers` says: they cost next to nothing."""
        return map(self.__getitem__, itertools.count(start))

    def summary(self) -> str:
        return ""
