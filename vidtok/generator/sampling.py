"""Settings of sampling, and the choice of a token.

How much is masked, and how strong the guidance is, over the course of sampling.

Random numbers that belong to a sample: not to its batch, nor (but for the last bit of a logarithm) to the device.

Legend: B samples.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from vidtok.errors import nearest

# SplitMix64 (Steele, Lea and Flood 2014): number i of a seed is a hash of seed + i x STEP. Whole numbers wrap alike
# everywhere, and all numbers of all samples are made at once, where they are needed: a torch.Generator for each sample
# would keep a GPU waiting for a loop over the batch. Constants as int64.
STEP = 0x9E3779B97F4A7C15 - (1 << 64)
MIX = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))
BITS = 23  # of a number, so that the middle between two of them is still exact in float32


class PerSampleRNG:
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


def sample_rngs(seed: int, first: int, batch: int, device: torch.device) -> PerSampleRNG:
    """Those of the samples first, first + 1, ... of a seed."""
    seeds = [_digest(seed, first + i) for i in range(batch)]
    return PerSampleRNG(torch.tensor(seeds, device=device))


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


LEGAL: dict[str, tuple[Callable[[float], bool], str]] = {
    "steps": (lambda value: value >= 1, "at least 1"),
    "guidance": (lambda value: value >= 0, "at least 0"),
    "temperature": (lambda value: value >= 0, "at least 0"),
    "choice_temperature": (lambda value: value >= 0, "at least 0"),
    "top_k": (lambda value: value >= 1, "at least 1"),
    "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
}


def check_numbers(settings: Mapping[str, object]) -> None:
    """Raises ValueError for a setting of sampling that is out of its range; None is none."""
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
    """One of V for every token, int64 [B, N], drawn from softmax(logits / temperature) by a uniform random number each;
    0 takes the likeliest."""
    if temperature == 0:
        return logits_BNV.argmax(-1)
    # In float32 whatever the model is: sums of half floats lose the small weights.
    return pick_by_share((logits_BNV.float() / temperature).softmax(-1), uniform_BN)


def top_k_top_p_filter(
    logits_BNV: Tensor, top_k: int | None = None, top_p: float | None = None, temperature: float = 1.0
) -> Tensor:
    """Logits with -inf outside the `top_k` likeliest, and outside the smallest set that holds `top_p` of the mass of
    softmax(logits / temperature)."""
    if top_k is not None and top_k < logits_BNV.shape[-1]:
        least = logits_BNV.topk(top_k, -1).values[..., -1:]
        logits_BNV = logits_BNV.masked_fill(logits_BNV < least, -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits_BNV.sort(-1, descending=True)
        probabilities = (ordered / max(temperature, 1e-6)).softmax(-1)
        outside = probabilities.cumsum(-1) - probabilities >= top_p  # the likeliest always stays
        logits_BNV = logits_BNV.masked_fill(outside.scatter(-1, order, outside), -torch.inf)
    return logits_BNV


MASK_SCHEDULES: dict[str, Callable] = {
    "cosine": lambda u: (torch.cos if isinstance(u, Tensor) else math.cos)(math.pi / 2 * u),  # MaskGIT, section 3.3
    "uniform": lambda u: 1 - u,  # MAGVIT's for K600
}
MEAN_MASK_RATIOS = {"cosine": 2 / math.pi, "uniform": 0.5}  # over u
GUIDANCE_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda u: 1.0,
    "linear": lambda u: u,
    "cosine": lambda u: (1 - math.cos(math.pi * u)) / 2,  # the power-cosine of MDT (Gao et al. 2023) with power 1
}


def mask_ratio(schedule: str, u: float | Tensor) -> float | Tensor:
    """Share of the unknown tokens that is masked at u in [0, 1]: 1 at the beginning, 0 at the end."""
    return _pick(MASK_SCHEDULES, "mask schedule", schedule)(u)


def guidance_scale(schedule: str, scale: float, u: float) -> float:
    """1 (no guidance) + (scale - 1) x the schedule at u in [0, 1], the share of the sampling that is done."""
    return 1 + (scale - 1) * _pick(GUIDANCE_SCHEDULES, "guidance schedule", schedule)(u)


def _pick(table: dict, what: str, name: str):
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}: {nearest(name, table)}")
    return table[name]
