"""Training batches that need no files."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .ahead import made_ahead
from .clip_size import check_clip, check_counts
from .digits import MovingDigits
from .part import WHOLE, Part, rows_of


class DigitClips:
    """Batches as `ClipFolder` gives them, of `MovingDigits`: batch i is a pure function of (seed, i).

    `dataset[i]` is float32 in [-1, 1], [batch_size, 3, frames, crop, crop], every tenth batch [image_batch_size, 3, 1,
    crop, crop]. split: "train" or "val". stride: of the tokenizer to train, which frames and crop
    must fit. Raises ValueError for bad arguments.
    """

    def __init__(
        self,
        frames: int = 17,
        crop: int = 64,
        batch_size: int = 8,
        image_batch_size: int | None = None,
        seed: int = 0,
        split: str = "train",
        stride: tuple[int, int, int] = (4, 8, 8),
    ):
        self.seed, self.batch_size, self.image_batch_size = seed, batch_size, image_batch_size or 4 * batch_size
        check_counts(batch_size=self.batch_size, image_batch_size=self.image_batch_size)
        check_clip(frames, crop, stride)
        self.videos, self.images = (MovingDigits(split, count, crop, seed) for count in (frames, 1))

    def __getitem__(self, index: int) -> Tensor:
        return self.part_of(index, WHOLE)

    def part_of(self, index: int, part: Part) -> Tensor:
        """The rows that are `part` of `dataset[index]`. Raises ValueError where it doesn't divide into such parts."""
        rng = np.random.default_rng([self.seed, index])
        images = index % 10 == 9
        digits, size = (self.images, self.image_batch_size) if images else (self.videos, self.batch_size)
        rows, chosen = rows_of(part, size), rng.integers(len(digits), size=size)
        return torch.cat([digits[int(chosen[row])].video for row in rows])

    def loader(self, start: int = 0, workers: int = 0, part: Part = WHOLE) -> Iterator[Tensor]:
        """That part of batches start, start + 1, ..., made ahead by `workers` processes if they are several: beside a
        CPU's step it costs so little that a single one isn't worth its start, but a GPU would wait for it."""
        for size in (self.batch_size, self.image_batch_size):
            rows_of(part, size)  # now, not when its turn comes
        return made_ahead(partial(self.part_of, part=part), start, workers if workers > 1 else 0)

    def summary(self) -> str:
        return ""
