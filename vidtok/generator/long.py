"""Sample many clips in batches, and clips longer than the model's grid with a sliding window."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
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
    known: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
    **settings,
) -> Tensor:
    """Sample clips of any number of latent frames with a sliding window.

    The prefix of each window after the first is the very first latent frame of the clip and the last `overlap` latent
    frames. The very first latent frame is kept because the first latent of a causal tokenizer is a single frame of
    video, while all others are several frames. The model has only been trained with such a latent at its first
    position.

    Args:
        generator: the generator, with a grid of t latent frames.
        batch, label, prefix, seed, settings: see `Generator.generate`. Here the prefix may be longer than the grid.
        latents: latent frames per clip, at least t; the clip has 1 + 4 (latents - 1) frames.
        known: instead of a prefix, (ids int64 [batch or 1, latents, h, w], mask bool [latents, h, w]). A window sees
            the known tokens of its own latent frames.
        overlap: latent frames of overlap between windows, 1 to t - 2; None, half of t.

    Returns:
        int64 [batch, latents, h, w]. The first t latent frames are those of `generate`.

    Raises:
        ValueError: overlap or latents out of range, or a grid of fewer than 3 latent frames.
    """
    t = generator.config.grid[0]
    overlap = t // 2 if overlap is None else overlap
    validate_length(t, latents, overlap)
    if prefix is not None and prefix.shape[1] >= t:
        ids = prefix.expand(batch, -1, -1, -1).to(generator.device)
    elif known is None:
        ids = generator.generate(batch, label, prefix, seed=seed, **settings)
    else:
        source, mask = known[0].expand(batch, -1, -1, -1).to(generator.device), known[1].to(generator.device)
        ids = _fill(generator, source[:, :t], mask[:t], label=label, prefix=prefix, seed=seed, **settings)
    window = 0
    while (done := ids.shape[1]) < latents:
        window += 1
        # Every window has its own seed; with the same random numbers windows would repeat the same choices.
        window_seed = seed + window * 1_000_003
        end = torch.cat([ids[:, :1], ids[:, -overlap:]], 1)
        if known is None:
            more = generator.generate(batch, label, end, seed=window_seed, **settings)
        else:
            following = slice(done, done + t - 1 - overlap)
            window_ids = torch.cat([end, source[:, following]], 1)
            window_mask = torch.cat([torch.ones_like(mask[: 1 + overlap]), mask[following]])
            more = _fill(generator, window_ids, window_mask, label=label, seed=window_seed, **settings)
        ids = torch.cat([ids, more[:, 1 + overlap :]], 1)
    return ids[:, :latents]


def validate_length(t: int, latents: int, overlap: int | None = None) -> None:
    """Raise ValueError if clips of `latents` latent frames can't be made with windows of t; see `generate_long`."""
    overlap = t // 2 if overlap is None else overlap
    if latents > t and not 1 <= overlap <= t - 2:
        raise ValueError(f"windows of {t} latent frames overlap by 1 to {t - 2}, not {overlap}")
    if latents < t:
        raise ValueError(f"a model of {t} latent frames makes at least so many, not {latents}: crop the clip instead")


def _fill(generator: Generator, ids_Bthw: Tensor, mask_thw: Tensor, **settings) -> Tensor:
    """Sample the unknown tokens of a window, which may be shorter than the grid."""
    missing = generator.config.grid[0] - len(mask_thw)
    if mask_thw.all():
        return ids_Bthw
    ids_Bthw, mask_thw = (F.pad(part, (0, 0, 0, 0, 0, missing)) for part in (ids_Bthw, mask_thw))
    return generator.generate(len(ids_Bthw), known=(ids_Bthw, mask_thw), **settings)


def generate_samples(
    generator: Generator,
    number: int,
    labels: Sequence[int | str] | None = None,
    given: Tensor | None = None,
    batch: int = 8,
    latents: int | None = None,
    known: Tensor | None = None,
    **settings,
) -> Iterator[Tensor]:
    """Sample many clips in batches; yield ids int64 [up to batch, t, h, w].

    Args:
        generator: the generator.
        number: number of clips.
        labels: class numbers or names, used in turn; None, no class.
        given: prefixes, or with `known` whole clips, int64 [n, latents, h, w], which are used in turn; None, nothing.
        batch: clips per batch; the samples don't depend on it.
        latents: latent frames per clip, see `generate_long`; None, those of the generator's grid.
        known: mask of the tokens of `given` that are kept, bool [latents, h, w]; None, `given` is a prefix.
        settings: see `Generator.generate`: seed, steps, guidance, ...
    """
    for first in range(0, number, batch):
        numbers = range(first, min(first + batch, number))
        kept = None if given is None else given[torch.tensor([i % len(given) for i in numbers])]
        conditions: dict[str, Any] = {
            "label": None if labels is None else [labels[i % len(labels)] for i in numbers],
            "first": first,
            **({"prefix": kept} if known is None else {"known": (kept, known)}),
        }
        if latents is None:
            yield generator.generate(len(numbers), **conditions, **settings)
        else:
            yield generate_long(generator, len(numbers), latents, **conditions, **settings)
