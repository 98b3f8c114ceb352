"""The tokenizer's objective (MAGVIT-v2, section 3; weights from its appendix): every term a scalar, weighted once.

The adversarial terms (MAGVIT-v2, appendix; MAGVIT, section 3.1), each a pure function of logits [B].
"""

from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidtok.train.perceptual import LPIPS


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms; the defaults are the paper's.

    Attributes:
        reconstruction: of the mean squared error over pixels in [-1, 1].
        perceptual: of LPIPS or the logits' distance; 0 where its weights are not at hand.
        gram: of the Gram distance of LPIPS' features, see `LPIPS.with_gram`; 0 leaves it out.
        perceptual_frames: both look at this many frames of each clip, drawn at random (0: all).
        block_edges: of the squared jump of the error across borders of the token grid, see `block_edge_loss`.
        commitment: of mean (z - code)^2.
        codebook: of VQ's codebook term.
        entropy: of per-sample minus codebook entropy, in nats; it may be negative, see docs/pages/training.md.
        adversarial: of the generator's term; 0 trains no discriminator.
        adversarial_start: step at which both sides of the adversarial game begin.
        r1, lecam: of the discriminator's penalties; lecam_decay: of the averages that LeCAM anchors on.
        entropy_boost: the entropy weight starts at this multiple and falls to 1 over `entropy_boost_steps`.
    """

    reconstruction: float = 5.0
    perceptual: float = 0.1
    gram: float = 0.0
    perceptual_frames: int = 0
    block_edges: float = 0.0
    commitment: float = 0.25
    codebook: float = 1.0
    entropy: float = 0.1
    adversarial: float = 0.1
    adversarial_start: int = 0
    r1: float = 10.0
    lecam: float = 0.001
    lecam_decay: float = 0.999
    entropy_boost: float = 3.0
    entropy_boost_steps: int = 2000

    def entropy_weight(self, step: int) -> float:
        """Linear from entropy_boost x entropy to entropy, then constant."""
        left = max(0.0, 1 - step / self.entropy_boost_steps) if self.entropy_boost_steps else 0.0
        return self.entropy * (1 + (self.entropy_boost - 1) * left)

    def total(self, terms: dict[str, Tensor], step: int) -> Tensor:
        """Weighted sum of the terms that have a weight; the others are diagnostics."""
        weights = {
            "reconstruction": self.reconstruction,
            "perceptual": self.perceptual,
            "gram": self.gram,
            "block_edges": self.block_edges,
            "commitment": self.commitment,
            "codebook": self.codebook,
            "adversarial": self.adversarial,
            "entropy": self.entropy_weight(step),
        }
        return _weighted_sum(terms, weights)

    def discriminator_total(self, terms: dict[str, Tensor]) -> Tensor:
        """The discriminator's objective."""
        weights = {"discriminator": 1.0, "lecam": self.lecam, "r1": self.r1}
        return _weighted_sum(terms, weights)


def _weighted_sum(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    return reduce(add, (weights[name] * terms[name] for name in terms if name in weights))


def reconstruction_loss(decoded: Tensor, video: Tensor) -> Tensor:
    """Mean squared error over all values, float32."""
    return F.mse_loss(decoded.float(), video.float())


def block_edge_loss(decoded_BCTHW: Tensor, video_BCTHW: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """Mean squared jump of the error between the two pixels at each border of the token grid, rows and columns.

    Zero where the reconstruction is as continuous across borders as the original; edges of the original cost nothing.
    0 for a grid without borders.
    """
    error = decoded_BCTHW.float() - video_BCTHW.float()
    jumps = []
    for dim, step in ((-2, stride[1]), (-1, stride[2])):
        n = error.shape[dim] // step
        if step > 1 and n > 1:
            cells = error.unflatten(dim, (n, step))  # [..., n, step, ...]: pairs (last of a cell, first of the next)
            before, after = cells.select(dim, step - 1), cells.select(dim, 0)
            jumps.append((after.narrow(dim, 1, n - 1) - before.narrow(dim, 0, n - 1)).square().mean())
    return sum(jumps) / len(jumps) if jumps else error.new_zeros(())


def perceptual_loss(
    distance: nn.Module, decoded_BCTHW: Tensor, video_BCTHW: Tensor, frames: int = 0, rng: torch.Generator | None = None
) -> Tensor:
    """Mean distance of `frames` frames (0: all), the same random ones of each clip; rng: a generator on the CPU."""
    return distance(*_images(decoded_BCTHW, video_BCTHW, frames, rng)).mean()


def perceptual_and_gram_loss(
    lpips: LPIPS, decoded_BCTHW: Tensor, video_BCTHW: Tensor, frames: int = 0, rng: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """`perceptual_loss` by LPIPS and the mean Gram distance of the same frames, from one pass of the network."""
    perceptual_B, gram_B = lpips.with_gram(*_images(decoded_BCTHW, video_BCTHW, frames, rng))
    return perceptual_B.mean(), gram_B.mean()


def _images(
    decoded_BCTHW: Tensor, video_BCTHW: Tensor, frames: int, rng: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    T = video_BCTHW.shape[2]
    if 0 < frames < T:
        chosen = torch.randperm(T, generator=rng)[:frames].to(video_BCTHW.device)
        decoded_BCTHW, video_BCTHW = decoded_BCTHW[:, :, chosen], video_BCTHW[:, :, chosen]
    return decoded_BCTHW.transpose(1, 2).flatten(0, 1), video_BCTHW.transpose(1, 2).flatten(0, 1)


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating: mean -log sigmoid(fake)."""
    return F.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Mean -log sigmoid(real) - log(1 - sigmoid(fake))."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def r1_penalty(real_logits: Tensor, real: Tensor) -> Tensor:
    """Mean over clips of the squared gradient norm of the logits at the real clips (Mescheder et al. 2018, eq. 9).

    `real` requires a gradient and led to the logits; differentiable once more.
    """
    (gradient,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
    return gradient.float().square().flatten(1).sum(1).mean()


def lecam_penalty(real_logits: Tensor, fake_logits: Tensor, lecam_ema: Tensor) -> Tensor:
    """LeCAM (Tseng et al. 2021, eq. 4): real logits held above the average fake one's anchor, and the other way round.

    averages: [2], the moving averages of the mean real and the mean fake logit.
    """
    real_anchor, fake_anchor = lecam_ema.unbind()
    above = F.relu(real_logits - fake_anchor).square().mean()
    below = F.relu(real_anchor - fake_logits).square().mean()
    return above + below


def accuracy(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Share of clips on the right side of 0; 0.5 is chance, near 1 the discriminator has won."""
    return ((real_logits > 0).float().mean() + (fake_logits <= 0).float().mean()) / 2
