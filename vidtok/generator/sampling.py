"""Settings of sampling, and the choice of a token."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vidtok.generator.draws import pick_by_share

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


def keep_likely(
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
