"""Random numbers that belong to a sample: not to its batch, nor (but for the last bit of a logarithm) to the device.

Legend: B samples.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

# SplitMix64 (Steele, Lea and Flood 2014): number i of a seed is a hash of seed + i x STEP. Whole numbers wrap alike
# everywhere, and all numbers of all samples are made at once, where they are needed: a torch.Generator for each sample
# would keep a GPU waiting for a loop over the batch. Constants as int64.
STEP = 0x9E3779B97F4A7C15 - (1 << 64)
MIX = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))
BITS = 23  # of a number, so that the middle between two of them is still exact in float32


class Draws:
    """A stream of random numbers for each sample, a function of its seed and of what was drawn before.

    Args:
        seeds_B: int64 [B], on the device where the numbers are made.
    """

    def __init__(self, seeds_B: Tensor):
        self.start_B, self.count = _hashed(seeds_B), 0

    def __len__(self) -> int:
        return len(self.start_B)

    def uniform(self, *shape: int) -> Tensor:
        """float32 [B, *shape], above 0 and below 1."""
        number = math.prod(shape)
        places = torch.arange(self.count + 1, self.count + 1 + number, device=self.start_B.device) * STEP
        self.count += number
        whole = _shifted(_hashed(self.start_B[:, None] + places), 64 - BITS)
        return ((whole.float() + 0.5) * 2.0**-BITS).view(-1, *shape)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal noise, float32 [B, *shape] (Box and Muller 1958)."""
        radius = (-2 * self.uniform(*shape).log()).sqrt()
        return radius * (2 * math.pi * self.uniform(*shape)).cos()

    def gumbel(self, *shape: int) -> Tensor:
        """Standard Gumbel noise, float32 [B, *shape]."""
        return -(-self.uniform(*shape).log()).log()

    def whole(self, low: int, high: int | Tensor) -> Tensor:
        """int64 [B], each from low to high (of each sample, [B], or of all), both included."""
        return low + (self.uniform() * (high + 1 - low)).long()

    def choice(self, weights: Sequence[float]) -> Tensor:
        """int64 [B], places in `weights`, with chances in proportion to them."""
        largest = max(weights)  # by which they are divided before they are rounded to float32
        weights_V = torch.tensor([weight / largest for weight in weights], device=self.start_B.device)
        return pick_by_share(weights_V.expand(len(self), -1), self.uniform())


def sample_draws(seed: int, first: int, batch: int, device: torch.device) -> Draws:
    """Those of the samples first, first + 1, ... of a seed."""
    seeds = [_digest(seed, first + i) for i in range(batch)]
    return Draws(torch.tensor(seeds, device=device))


def pick_by_share(weights_xV: Tensor, uniform_x: Tensor) -> Tensor:
    """int64 [...]: which of V weights [..., V] the numbers [...] in (0, 1) fall on, where the weights, not normalised,
    lie side by side and fill that range."""
    sums_xV = weights_xV.cumsum(-1)
    # The factor keeps the product below the last sum when it is rounded: what has no weight is never picked.
    target_x = sums_xV[..., -1] * (uniform_x * (1 - 2.0**-22))
    return (sums_xV <= target_x[..., None]).sum(-1)


def _hashed(x: Tensor) -> Tensor:
    for shift, factor in MIX:
        x = (x ^ _shifted(x, shift)) * factor
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """To the right, with zeros from the left: int64's own shift brings copies of the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _digest(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:8], "big", signed=True)
