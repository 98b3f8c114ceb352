"""Many samples, some at a time, each a function of the seed and its number."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vidtok.generator.base import Generator
from vidtok.generator.slide import generate_long


def generate_samples(
    generator: Generator,
    number: int,
    labels: Sequence[int | str] | None = None,
    prefixes: Tensor | None = None,
    batch: int = 8,
    latents: int | None = None,
    **settings,
) -> Iterator[Tensor]:
    """Ids int64 [up to batch, t, h, w] until there are `number` of them.

    Args:
        labels: taken in turn; None, free samples.
        prefixes: int64 [n, latents, h, w], taken in turn; None, none.
        batch: at a time; the samples don't depend on it.
        latents: latent frames of each, where the generator's grid isn't long enough.
        settings: of `Generator.generate`: seed, steps, guidance, ...
    """
    for first in range(0, number, batch):
        numbers = range(first, min(first + batch, number))
        own = {
            "label": None if labels is None else [labels[i % len(labels)] for i in numbers],
            "prefix": None if prefixes is None else prefixes[torch.tensor([i % len(prefixes) for i in numbers])],
            "first": first,
        }
        if latents is None:
            yield generator.generate(len(numbers), **own, **settings)
        else:
            yield generate_long(generator, len(numbers), latents, **own, **settings)
