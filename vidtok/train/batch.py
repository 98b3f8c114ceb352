"""Batches of any structure: a tensor, or a nested dict, list or tuple of tensors with the samples along dimension 0."""

import torch
from accelerate.utils import find_batch_size, recursively_apply, send_to_device

from vidtok.train.task import Batch


def samples(batch: Batch) -> int:
    """How many there are."""
    return find_batch_size(batch)


def part_of(batch: Batch, index: int, count: int) -> Batch:
    """Part `index` of `count` equal ones. Raises ValueError where `count` doesn't divide the batch."""
    rows, rest = divmod(samples(batch), count)
    if rest:
        raise ValueError(f"a batch of {samples(batch)} doesn't divide into {count} equal parts: change the batch size")
    return recursively_apply(lambda tensor: tensor[index * rows : (index + 1) * rows], batch)


def to_device(batch: Batch, device: torch.device) -> Batch:
    return send_to_device(batch, device, non_blocking=True)
