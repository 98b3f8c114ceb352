"""Batches of any structure: a tensor, or a nested dict, list or tuple of tensors with the samples along dimension 0."""

import torch
from accelerate.utils import find_batch_size, recursively_apply, send_to_device

from vidtok.datasets.part import Part, rows_of
from vidtok.train.task import Batch


def samples(batch: Batch) -> int:
    """How many there are."""
    return find_batch_size(batch)


def part_of(batch: Batch, part: Part) -> Batch:
    """One of several equal parts. Raises ValueError where the batch doesn't divide into these."""
    rows = rows_of(part, samples(batch))
    return recursively_apply(lambda tensor: tensor[rows.start : rows.stop], batch)


def to_device(batch: Batch, device: torch.device) -> Batch:
    return send_to_device(batch, device, non_blocking=True)
