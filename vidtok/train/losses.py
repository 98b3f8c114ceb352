"""Terms of the tokenizer's objective and their weights (MAGVIT-v2, section 3 and appendix).

Every term is a scalar and is weighted once. The adversarial terms (MAGVIT-v2, appendix; MAGVIT, section 3.1) are pure
functions of logits [B].
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
        reconstruction: weight of the mean squared error over pixels in [-1, 1].
        perceptual: weight of LPIPS or of the distance of logits; 0 if the weights of their network are not available.
        gram: weight of the Gram distance of LPIPS' features, see `LPIPS.with_gram`; 0 leaves it out.
        perceptual_frames: number of random frames per clip that both of these terms compare; 0, all.
        block_edges: weight of the squared jump of the error across borders of the token grid, see `block_edge_loss`.
        semantic_ratio: norm of the semantic term's gradient at the codes relative to that of the weighted
            reconstruction term, see `vidtok.train.semantic`; 0 leaves the term out.
        commitment: weight of mean (z - code)^2.
        codebook: weight of VQ's codebook term.
        entropy: weight of per-sample minus codebook entropy, in nats. The term may be negative, see
            docs/pages/training.md.
        adversarial: weight of the generator's adversarial term; 0 trains no discriminator.
        adversarial_start: step at which adversarial training begins, for generator and discriminator.
        adversarial_frames: number of random frames per clip that a discriminator of images sees; 0, a discriminator of
            clips sees all.
        r1, lecam: weights of the discriminator's penalties.
        lecam_decay: decay of the moving averages that LeCAM uses as anchors.
        entropy_boost: factor of the entropy weight at step 0, which falls linearly to 1.
        entropy_boost_steps: number of steps in which the factor falls to 1.
    """

    reconstruction: float = 5.0
    perceptual: float = 0.1
    gram: float = 0.0
    perceptual_frames: int = 0
    block_edges: float = 0.0
    semantic_ratio: float = 0.0
    commitment: float = 0.25
    codebook: float = 1.0
    entropy: float = 0.1
    adversarial: float = 0.1
    adversarial_start: int = 0
    adversarial_frames: int = 0
    r1: float = 10.0
    lecam: float = 0.001
    lecam_decay: float = 0.999
    entropy_boost: float = 3.0
    entropy_boost_steps: int = 2000

    def entropy_weight(self, step: int) -> float:
        """Return the weight of the entropy term, which falls linearly from entropy_boost x entropy to entropy."""
        left = max(0.0, 1 - step / self.entropy_boost_steps) if self.entropy_boost_steps else 0.0
        return self.entropy * (1 + (self.entropy_boost - 1) * left)

    def total(self, terms: dict[str, Tensor], step: int) -> Tensor:
        """Compute the weighted sum of the terms that have a weight; the others are diagnostics."""
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
        """Compute the weighted sum of the discriminator's terms."""
        weights = {"discriminator": 1.0, "lecam": self.lecam, "r1": self.r1}
        return _weighted_sum(terms, weights)


def _weighted_sum(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    return reduce(add, (weights[name] * terms[name] for name in terms if name in weights))


def reconstruction_loss(decoded: Tensor, video: Tensor) -> Tensor:
    """Compute the mean squared error over all values, float32."""
    return F.mse_loss(decoded.float(), video.float())


def block_edge_loss(decoded_BCTHW: Tensor, video_BCTHW: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """Compute the mean squared jump of the error between the two pixels at each border of the token grid.

    Borders between rows and columns of cells count alike. The loss is 0 if the reconstruction is as continuous across
    borders as the original, so edges of the original cost nothing. It is 0 for a grid without borders.
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
    """Compute the mean distance of some frames of clips.

    Args:
        distance: distance of two batches of images, such as `LPIPS`.
        decoded_BCTHW, video_BCTHW: reconstructions and originals.
        frames: number of random frames, the same ones of each clip; 0, all.
        rng: generator of the random numbers, on the CPU; None, torch's.
    """
    return distance(*_images(decoded_BCTHW, video_BCTHW, frames, rng)).mean()


def perceptual_and_gram_loss(
    lpips: LPIPS, decoded_BCTHW: Tensor, video_BCTHW: Tensor, frames: int = 0, rng: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Compute `perceptual_loss` with LPIPS and the mean Gram distance of the same frames in one pass of the network."""
    perceptual_B, gram_B = lpips.with_gram(*_images(decoded_BCTHW, video_BCTHW, frames, rng))
    return perceptual_B.mean(), gram_B.mean()


def _images(
    decoded_BCTHW: Tensor, video_BCTHW: Tensor, frames: int, rng: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    chosen = choose_frames(video_BCTHW.shape[2], frames, rng)
    return as_images(decoded_BCTHW, chosen), as_images(video_BCTHW, chosen)


def choose_frames(total: int, count: int, rng: torch.Generator | None = None) -> Tensor:
    """Choose `count` of `total` frames at random, all of them if `count` is 0: indices, int64 [n]."""
    return torch.randperm(total, generator=rng)[:count] if 0 < count < total else torch.arange(total)


def as_images(video_BCTHW: Tensor, chosen: Tensor) -> Tensor:
    """Return some frames of clips as images: [B, C, T, H, W] and indices [n] -> [B n, C, H, W]."""
    return video_BCTHW[:, :, chosen.to(video_BCTHW.device)].transpose(1, 2).flatten(0, 1)


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Compute the non-saturating loss of the generator: mean of -log sigmoid(fake)."""
    return F.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Compute the loss of the discriminator: mean of -log sigmoid(real) - log(1 - sigmoid(fake))."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def r1_penalty(real_logits: Tensor, real: Tensor) -> Tensor:
    """Compute the R1 penalty (Mescheder et al. 2018, eq. 9), which can be differentiated once more.

    It is the mean over clips of the squared gradient norm of the logits with respect to the real clips.

    Args:
        real_logits: logits of the real clips, [B].
        real: the real clips, which require a gradient.
    """
    (gradient,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
    return gradient.float().square().flatten(1).sum(1).mean()


def lecam_penalty(real_logits: Tensor, fake_logits: Tensor, lecam_ema: Tensor) -> Tensor:
    """Compute the LeCAM penalty (Tseng et al. 2021, eq. 4).

    It penalizes real logits above the moving average of fake logits, and fake logits below that of real logits.

    Args:
        real_logits, fake_logits: logits of real and reconstructed clips, [B].
        lecam_ema: [2], moving averages of the mean real and the mean fake logit.
    """
    real_anchor, fake_anchor = lecam_ema.unbind()
    above = F.relu(real_logits - fake_anchor).square().mean()
    below = F.relu(real_anchor - fake_logits).square().mean()
    return above + below


def accuracy(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Compute the fraction of clips that the discriminator classifies correctly; 0.5 is chance."""
    return ((real_logits > 0).float().mean() + (fake_logits <= 0).float().mean()) / 2
