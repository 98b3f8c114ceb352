"""A head's probabilities for labelled videos.

Legend: B batch, V views of one video, N videos, K classes.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vidtok.datasets import LabelledDataset

from .inputs import join_segments, shuffle_frames


class Views(NamedTuple):
    """A batch to be tested: x [B,V,...], labels int64 [B], ids, and what could not be read: [{name, reason}]."""

    x: Tensor
    labels: Tensor
    ids: list[str]
    failures: list[dict]


@dataclass
class Predictions:
    """probabilities: float64 [N,K]; labels: int [N]; ids; failures: [{name, reason}]."""

    probabilities: np.ndarray
    labels: np.ndarray
    ids: list[str]
    failures: list[dict] = field(default_factory=list)

    @property
    def correct_N(self) -> np.ndarray:
        return self.probabilities.argmax(1) == self.labels


def views_of_dataset(
    dataset: LabelledDataset, batch_size: int, workers: int = 0, shuffle: bool = False, joined: int = 1
) -> Iterator[Views]:
    """Videos as they are read; a failed one (on_error="return") is counted, nothing takes its place. shuffle: their
    frames in random order, see `shuffle_frames`. joined: clips that the head sees at once, see `join_segments`."""
    for batch in dataset.loader(batch_size, workers):
        failures = [{"name": str(error.path), "reason": error.reason} for error in batch.failed]
        x = shuffle_frames(batch.video, batch.id) if shuffle and batch.id else batch.video
        yield Views(join_segments(x, joined) if batch.id else x, batch.label, batch.id, failures)


def views_in_memory(x_NV: Tensor, labels: np.ndarray, ids: list[str], batch_size: int) -> Iterator[Views]:
    for start in range(0, len(ids), batch_size):
        part = slice(start, start + batch_size)
        yield Views(x_NV[part], torch.from_numpy(labels[part]), ids[part], [])


@torch.no_grad()
def predict(head: nn.Module, batches: Iterable[Views], encode: Callable[[Tensor], Tensor] | None = None) -> Predictions:
    """Softmax of the head's logits, averaged over the views of each video.

    head: in evaluation mode. encode: what stands between the videos and the head, see `InputEncoder`. The result does
    not depend on how the videos are batched, but for the rounding of float32.

    Raises ValueError where nothing could be read, FloatingPointError where the logits are not finite.
    """
    device = next(head.parameters()).device
    rows, labels, ids, failures = [], [], [], []
    for batch in batches:
        failures += batch.failures
        if not batch.ids:
            continue
        x = batch.x.flatten(0, 1).to(device)
        logits = head(x if encode is None else encode(x)).double()
        if not logits.isfinite().all():
            raise FloatingPointError(f"the head's logits are not finite, first for {batch.ids[0]}")
        rows.append(logits.softmax(1).unflatten(0, batch.x.shape[:2]).mean(1).cpu().numpy())
        labels += batch.labels.tolist()
        ids += batch.ids
    if not ids:
        reason = f"{failures[0]['name']}: {failures[0]['reason']}" if failures else "the split is empty"
        raise ValueError(f"no video could be classified: {reason}")
    return Predictions(np.concatenate(rows), np.array(labels), ids, failures)
