"""Codebook usage and bit rate of a tokenizer."""

import math

import torch
from torch import Tensor


class CodebookUsage:
    """Streaming histogram of token ids; exact, and as large as the number of distinct ids seen.

    Args:
        size: number of codes, 2^bits for LFQ; ids are 0 <= id < size, size at most 2^62.

    Raises:
        ValueError: `size` out of range.
    """

    def __init__(self, size: int):
        if not 2 <= size <= 2**62:
            raise ValueError(f"a codebook has 2 to 2^62 codes, got {size}")
        self.size = size
        self.ids = torch.empty(0, dtype=torch.int64)  # distinct, ascending
        self.counts = torch.empty(0, dtype=torch.int64)

    def update(self, ids: Tensor) -> None:
        """Count int64 ids of any shape.

        Raises:
            ValueError: another dtype, or an id outside the codebook.
        """
        if ids.dtype != torch.int64:
            raise ValueError(f"ids are int64, got {ids.dtype}")
        new_ids, new_counts = ids.flatten().cpu().unique(return_counts=True)
        if len(new_ids) and not (new_ids[0] >= 0 and new_ids[-1] < self.size):
            raise ValueError(f"ids {new_ids[0]} to {new_ids[-1]} do not fit a codebook of {self.size} codes")
        self.ids, place = torch.cat([self.ids, new_ids]).unique(return_inverse=True)
        counts = torch.cat([self.counts, new_counts])
        self.counts = torch.zeros_like(self.ids).index_add_(0, place, counts)

    @property
    def tokens(self) -> int:
        """Number of ids counted."""
        return int(self.counts.sum())

    @property
    def distinct(self) -> int:
        """Number of codes that occurred at least once."""
        return len(self.ids)

    @property
    def entropy_bits(self) -> float:
        """Entropy of the empirical distribution, in bits; 0.0 before the first id.

        The plug-in estimate: never above log2(tokens), hence too low where tokens are few against codes.
        """
        p = self.counts.double() / max(self.tokens, 1)
        return -(p * p.log2()).sum().item() + 0.0  # + 0.0: not -0.0

    @property
    def bit_balance(self) -> Tensor:
        """Share of tokens in which bit i of the id is 1: float64 [bits], bit 0 first; 0.5 is balanced."""
        bits = torch.arange((self.size - 1).bit_length())
        ones = (self.ids[:, None] >> bits) & 1
        return (ones * self.counts[:, None]).sum(0).double() / max(self.tokens, 1)

    def summary(self) -> dict:
        """Return all of them as plain numbers, for JSON."""
        return {
            "size": self.size,
            "tokens": self.tokens,
            "distinct": self.distinct,
            "usage": self.distinct / self.size,
            "entropy_bits": self.entropy_bits,
            "bit_balance": self.bit_balance.tolist(),
        }


def bits_per_pixel(bits: float, stride: tuple[int, int, int], frames: int, height: int, width: int) -> float:
    """Compute the rate of a causal tokenizer in bits per pixel, where a pixel is one RGB triple of one frame.

    The first frame has a latent of its own: bits (1 + (T-1)/s_t) (H/s_h) (W/s_w) / (T H W). For 18 bits and stride
    (4, 8, 8): 0.0827 at 17 frames, 0.0703 for T to infinity, 0.28125 for an image.

    Raises:
        ValueError: T is not 1 + a multiple of s_t, or H or W no multiple of s_h or s_w.
    """
    s_t, s_h, s_w = stride
    if frames < 1 or (frames - 1) % s_t or height < 1 or height % s_h or width < 1 or width % s_w:
        raise ValueError(
            f"stride {s_t}x{s_h}x{s_w} needs 1+{s_t}k frames, height a multiple of {s_h}, width a multiple of {s_w}; "
            f"got {frames}x{height}x{width}"
        )
    tokens = (1 + (frames - 1) // s_t) * (height // s_h) * (width // s_w)
    return bits * tokens / math.prod((frames, height, width))
