"""Many samples, some at a time, each a function of the seed and its number.

Clips longer than the grid a model was trained on: it slides along, given the end of what is there as its prefix.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vidtok.generator.base import Generator


def generate_long(
    generator: Generator,
    batch: int,
    latents: int,
    overlap: int | None = None,
    *,
    label=None,
    prefix: Tensor | None = None,
    seed: int = 0,
    **settings,
) -> Tensor:
    """Ids of clips of any number of latent frames.

    Each window but the first is given the very first latent frame and then the last `overlap` ones. The first stays
    because a causal tokenizer's first latent is one frame of video and all others are several: a model that has
    always seen it in its first place misreads any other there.

    Args:
        batch, label, prefix, seed, settings: of `Generator.generate`.
        latents: frames of tokens in all, at least those of the grid; 1 + 4 (latents - 1) frames of video.
        overlap: 1 .. t - 2 latent frames; None, half the grid.

    Returns:
        int64 [batch, latents, h, w]. Its beginning, as long as the grid, is what `generate` gives.

    Raises:
        ValueError: for a model of fewer than 3 latent frames, another overlap, or fewer latents than the grid has.
    """
    t = generator.config.grid[0]
    overlap = t // 2 if overlap is None else overlap
    if latents > t and not 1 <= overlap <= t - 2:
        raise ValueError(f"windows of {t} latent frames overlap by 1 to {t - 2}, not {overlap}")
    if latents < t:
        raise ValueError(f"a model of {t} latent frames makes no fewer, not {latents}: cut the clip instead")
    ids = generator.generate(batch, label, prefix, seed=seed, **settings)
    window = 0
    while ids.shape[1] < latents:
        window += 1
        # Another seed for every window: the same draws would repeat the same choices.
        end = torch.cat([ids[:, :1], ids[:, -overlap:]], 1)
        more = generator.generate(batch, label, end, seed=seed + window * 1_000_003, **settings)
        ids = torch.cat([ids, more[:, 1 + overlap :]], 1)
    return ids[:, :latents]


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
