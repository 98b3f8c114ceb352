"""Frames of any number and size to what a tokenizer takes, and back.

The right and bottom edge are repeated up to a multiple of the stride, the last frame up to the next legal
length. Both are undone exactly by cutting.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

LATENTS = 4  # per chunk: small enough for large frames, and no slower than more


def coded_size(size: tuple[int, int], stride: tuple[int, int, int]) -> tuple[int, int]:
    """(height, width) rounded up to multiples of the stride."""
    return -(-size[0] // stride[1]) * stride[1], -(-size[1] // stride[2]) * stride[2]


def pad_chunks(chunks: Iterable[Tensor], stride: tuple[int, int, int]) -> Iterator[Tensor]:
    """[1, 3, any, H, W] chunks of one video to chunks of 1 + s_t n frames first, then s_t n, with padded sides.

    Every chunk that comes out completes as many latents as it has: `vidtok.cli.tiles` and `vidtok.extract` rely on it.
    """
    step = stride[0]
    first, pending = True, None
    for chunk in chunks:
        height, width = coded_size(chunk.shape[3:], stride)
        sides = (0, width - chunk.shape[4], 0, height - chunk.shape[3], 0, 0)
        chunk = F.pad(chunk, sides, mode="replicate") if any(sides) else chunk
        pending = chunk if pending is None else torch.cat([pending, chunk], 2)
        while pending.shape[2] >= (take := step * LATENTS + first):
            yield pending[:, :, :take]
            first, pending = False, pending[:, :, take:].clone()  # no view, which would keep the whole chunk
    if pending is not None and pending.shape[2]:
        missing = -(pending.shape[2] - first) % step
        yield F.pad(pending, (0, 0, 0, 0, 0, missing), mode="replicate") if missing else pending


def cut_chunks(chunks: Iterable[Tensor], frames: int, size: tuple[int, int]) -> Iterator[Tensor]:
    """The first `frames` frames of [1, 3, any, H, W] chunks, cut to `size` (height, width)."""
    for chunk in chunks:
        chunk = chunk[:, :, :frames, : size[0], : size[1]]
        frames -= chunk.shape[2]
        if chunk.shape[2]:
            yield chunk
