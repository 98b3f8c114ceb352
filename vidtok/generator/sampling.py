"""Sampling: per-sample random numbers, token sampling, mask and guidance schedules, validation of settings.

The random numbers of a sample depend neither on its batch nor (except for the last bit of a logarithm) on the device.

Legend: B samples.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from vidtok.errors import nearest

# SplitMix64 (Steele, Lea and Flood 2014): number i of a seed is a hash of seed + i x STEP. Integer arithmetic wraps
# alike on all devices, and the numbers of all samples are computed at once on the device: a torch.Generator per sample
# would need a loop over the batch, for which a GPU would wait. Constants as int64.
STEP = 0x9E3779B97F4A7C15 - (1 << 64)
MIX = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))
BITS = 23  # per number, so that the midpoint between two numbers is exact in float32


class PerSampleRNG:
    """Random number generator with an independent stream for each sample, determined by the sample's seed.

    Args:
        seeds_B: int64 [B], on the device on which the numbers are computed.
    """

    def __init__(self, seeds_B: Tensor):
        self.start_B, self.count = _hashed(seeds_B), 0

    def __len__(self) -> int:
        return len(self.start_B)

    def uniform(self, *shape: int) -> Tensor:
        """Draw uniform numbers, float32 [B, *shape], above 0 and below 1."""
        number = math.prod(shape)
        places = torch.arange(self.count + 1, self.count + 1 + number, device=self.start_B.device) * STEP
        self.count += number
        whole = _shifted(_hashed(self.start_B[:, None] + places), 64 - BITS)
        return ((whole.float() + 0.5) * 2.0**-BITS).view(-1, *shape)

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal noise, float32 [B, *shape] (Box and Muller 1958)."""
        radius = (-2 * self.uniform(*shape).log()).sqrt()
        return radius * (2 * math.pi * self.uniform(*shape)).cos()

    def gumbel(self, *shape: int) -> Tensor:
        """Draw standard Gumbel noise, float32 [B, *shape]."""
        return -(-self.uniform(*shape).log()).log()

    def whole(self, low: int, high: int | Tensor) -> Tensor:
        """Draw integers from low to high (a number, or int64 [B]), both included -> int64 [B]."""
        return low + (self.uniform() * (high + 1 - low)).long()

    def choice(self, weights: Sequence[float]) -> Tensor:
        """Draw indices of `weights` with probabilities proportional to them -> int64 [B]."""
        largest = max(weights)  # normalizes the weights before they are rounded to float32
        weights_V = torch.tensor([weight / largest for weight in weights], device=self.start_B.device)
        return pick_by_share(weights_V.expand(len(self), -1), self.uniform())


def sample_rngs(seed: int, first: int, batch: int, device: torch.device) -> PerSampleRNG:
    """Make the generators of the samples first, first + 1, ... of a seed."""
    seeds = [_digest(seed, first + i) for i in range(batch)]
    return PerSampleRNG(torch.tensor(seeds, device=device))


def pick_by_share(weights_xV: Tensor, uniform_x: Tensor) -> Tensor:
    """Sample from unnormalized weights by inverting their cumulative sum.

    Args:
        weights_xV: [..., V], not negative.
        uniform_x: uniform random numbers [...] in (0, 1).

    Returns:
        int64 indices [...] in 0 .. V - 1.
    """
    sums_xV = weights_xV.cumsum(-1)
    # The factor keeps the rounded product below the last sum, so that an index of weight 0 is never picked.
    target_x = sums_xV[..., -1] * (uniform_x * (1 - 2.0**-22))
    return (sums_xV <= target_x[..., None]).sum(-1)


def _hashed(x: Tensor) -> Tensor:
    for shift, factor in MIX:
        x = (x ^ _shifted(x, shift)) * factor
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shift logically to the right (int64's own shift is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _digest(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:8], "big", signed=True)


LEGAL: dict[str, tuple[Callable[[float], bool], str]] = {
    "steps": (lambda value: value >= 1, "at least 1"),
    "guidance": (lambda value: value >= 0, "at least 0"),
    "temperature": (lambda value: value >= 0, "at least 0"),
    "choice_temperature": (lambda value: value >= 0, "at least 0"),
    "top_k": (lambda value: value >= 1, "at least 1"),
    "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
}


def check_numbers(settings: Mapping[str, object]) -> None:
    """Raise ValueError for a sampling setting that is out of range; None stands for the default."""
    for name, (legal, words) in LEGAL.items():
        value = settings.get(name)
        if value is None:
            continue
        whole = name in ("steps", "top_k")
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise ValueError(f"{name} is a {'whole ' if whole else ''}number, not {value!r}")
        if not (math.isfinite(value) and legal(value)):
            raise ValueError(f"{name} is {words}, not {value}")


def pick(logits_BNV: Tensor, uniform_BN: Tensor, temperature: float = 1.0) -> Tensor:
    """Sample from softmax(logits / temperature) -> int64 [B, N].

    Args:
        logits_BNV: the logits.
        uniform_BN: uniform random numbers in (0, 1).
        temperature: at least 0; 0 takes the argmax.
    """
    if temperature == 0:
        return logits_BNV.argmax(-1)
    # In float32 for every model: cumulative sums in half precision lose small weights.
    return pick_by_share((logits_BNV.float() / temperature).softmax(-1), uniform_BN)


def top_k_top_p_filter(
    logits_BNV: Tensor, top_k: int | None = None, top_p: float | None = None, temperature: float = 1.0
) -> Tensor:
    """Set logits to -inf outside the `top_k` largest, and outside the nucleus of probability `top_p`.

    The nucleus is the smallest set of values with probability `top_p` under softmax(logits / temperature).
    """
    if top_k is not None and top_k < logits_BNV.shape[-1]:
        least = logits_BNV.topk(top_k, -1).values[..., -1:]
        logits_BNV = logits_BNV.masked_fill(logits_BNV < least, -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits_BNV.sort(-1, descending=True)
        probabilities = (ordered / max(temperature, 1e-6)).softmax(-1)
        outside = probabilities.cumsum(-1) - probabilities >= top_p  # the likeliest value is always inside
        logits_BNV = logits_BNV.masked_fill(outside.scatter(-1, order, outside), -torch.inf)
    return logits_BNV


MASK_SCHEDULES: dict[str, Callable] = {
    "cosine": lambda u: (torch.cos if isinstance(u, Tensor) else math.cos)(math.pi / 2 * u),  # MaskGIT, section 3.3
    "uniform": lambda u: 1 - u,  # MAGVIT, for K600
}
MEAN_MASK_RATIOS = {"cosine": 2 / math.pi, "uniform": 0.5}  # means over u in [0, 1]
GUIDANCE_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda u: 1.0,
    "linear": lambda u: u,
    "cosine": lambda u: (1 - math.cos(math.pi * u)) / 2,  # power-cosine of MDT (Gao et al. 2023) with power 1
}


def mask_ratio(schedule: str, u: float | Tensor) -> float | Tensor:
    """Return the share of unknown tokens that is masked at progress u in [0, 1]; it falls from 1 to 0.

    Raises:
        ValueError: an unknown schedule.
    """
    return _pick(MASK_SCHEDULES, "mask schedule", schedule)(u)


def guidance_scale(schedule: str, scale: float, u: float) -> float:
    """Return the guidance scale at progress u in [0, 1]: 1 (no guidance) + (scale - 1) x schedule(u).

    Raises:
        ValueError: an unknown schedule.
    """
    return 1 + (scale - 1) * _pick(GUIDANCE_SCHEDULES, "guidance schedule", schedule)(u)


def _pick(table: dict, what: str, name: str):
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}: {nearest(name, table)}")
    return table[name]
