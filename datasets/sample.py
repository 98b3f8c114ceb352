"""What a labelled dataset hands out, one at a time and in batches."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .error import VideoError

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
