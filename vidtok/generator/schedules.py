"""How much is masked, and how strong the guidance is, over the course of sampling."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vidtok.hints import nearest

MASK_SCHEDULES: dict[str, Callable] = {
    "cosine": lambda u: (torch.cos if isinstance(u, Tensor) else math.cos)(math.pi / 2 * u),  # MaskGIT, section 3.3
    "uniform": lambda u: 1 - u,  # MAGVIT's for K600
}
MEAN_SHARES = {"cosine": 2 / math.pi, "uniform": 0.5}  # over u
GUIDANCE_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda u: 1.0,
    "linear": lambda u: u,
    "cosine": lambda u: (1 - math.cos(math.pi * u)) / 2,  # the power-cosine of MDT (Gao et al. 2023) with power 1
}


def mask_share(schedule: str, u: float | Tensor) -> float | Tensor:
    """Share of the unknown tokens that is masked at u in [0, 1]: 1 at the beginning, 0 at the end."""
    return _pick(MASK_SCHEDULES, "mask schedule", schedule)(u)


def guidance_scale(schedule: str, scale: float, u: float) -> float:
    """1 (no guidance) + (scale - 1) x the schedule at u in [0, 1], the share of the sampling that is done."""
    return 1 + (scale - 1) * _pick(GUIDANCE_SCHEDULES, "guidance schedule", schedule)(u)


def _pick(table: dict, what: str, name: str):
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}: {nearest(name, table)}")
    return table[name]
