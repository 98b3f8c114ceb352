"""The adversarial terms (MAGVIT-v2, appendix; MAGVIT, section 3.1), each a pure function of logits [B]."""

import torch
import torch.nn.functional as F
from torch import Tensor


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


def lecam_penalty(real_logits: Tensor, fake_logits: Tensor, averages: Tensor) -> Tensor:
    """LeCAM (Tseng et al. 2021, eq. 4): real logits held above the average fake one's anchor, and the other way round.

    averages: [2], the moving averages of the mean real and the mean fake logit.
    """
    real_anchor, fake_anchor = averages.unbind()
    above = F.relu(real_logits - fake_anchor).square().mean()
    below = F.relu(real_anchor - fake_logits).square().mean()
    return above + below


def accuracy(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Share of clips on the right side of 0; 0.5 is chance, near 1 the discriminator has won."""
    return ((real_logits > 0).float().mean() + (fake_logits <= 0).float().mean()) / 2
