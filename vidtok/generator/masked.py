"""Masked token modeling with parallel decoding (MaskGIT; MAGVIT; MAGVIT-v2, section 3.2).

Legend: B batch, N tokens, D width, V vocabulary of a factor (the low or the high bits of a token).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidtok.generator.base import Generator, GeneratorConfig, Objective, Request, classifier_free_guidance
from vidtok.generator.sampling import MEAN_MASK_RATIOS, PerSampleRNG, guidance_scale, mask_ratio, pick
from vidtok.generator.transformer import TokenEmbedding, TokenHeads

IGNORED = -100  # target that a cross-entropy ignores


class MaskedGenerator(Generator):
    """Masked generator: predict masked tokens from all others with bidirectional attention.

    Args:
        config: the config, whose `arguments` are the following.
        schedule: distribution of the mask ratio in training, a mask schedule ("cosine" or "uniform").
        conditioned: whether the high bits of a token are predicted given its low bits; the paper predicts both
            independently.
        factors: factors of a token; 1, it is predicted as a whole.
        positions: position embeddings, see `Generator`.

    Raises:
        ValueError: an unknown schedule or position embedding, or an illegal number of factors.
    """

    default_steps = 12

    def __init__(
        self,
        config: GeneratorConfig,
        schedule: str = "cosine",
        conditioned: bool = False,
        factors: int = 2,
        positions: str = "both",
    ):
        super().__init__(config, positions)
        mask_ratio(schedule, 0.5)  # raises for an unknown name
        self.schedule = schedule
        self.embed = TokenEmbedding(config.bits, config.width, factors)
        self.mask_embed = nn.Parameter(torch.randn(config.width) * 0.02)
        self.heads = TokenHeads(self.embed, config.width, conditioned)

    def features(self, ids_BN: Tensor, masked_BN: Tensor, condition_BD: Tensor) -> Tensor:
        """Compute the transformer's features [B, N, D] of partly masked tokens."""
        x_BND = torch.where(masked_BN[..., None], self.mask_embed, self.embed(ids_BN))
        return self.trunk(x_BND, condition_BD)

    def forward(self, batch, objective: Objective) -> dict[str, Tensor]:
        """Compute the training terms.

        Returns:
            loss: cross-entropy of the masked tokens in nats (mean over both factors), summed and divided by the average
            number of masked tokens in a batch. bits: mean cross-entropy of a masked token in bits, without label
            smoothing. accuracy: fraction of masked tokens predicted correctly.
        """
        ids_BN = batch["ids"].flatten(1)
        rng, label_B, known_BN = self.draw_conditions(batch, objective)
        masked_BN = self.draw_masked(rng, known_BN)
        x_BND = self.features(ids_BN, masked_BN, self.label_embed(label_B))
        # The expected number, not the actual one: the loss is then a mean over samples for any sharding of a batch.
        count = len(ids_BN) * self.tokens * MEAN_MASK_RATIOS[self.schedule]
        return factor_losses(self.heads, x_BND, ids_BN, masked_BN, objective.label_smoothing, count)

    def draw_masked(self, rng: PerSampleRNG, known_BN: Tensor) -> Tensor:
        """Mask a random fraction of the unknown tokens of each sample, at least one -> bool [B, N]."""
        share_B = mask_ratio(self.schedule, rng.uniform())
        count_B = (share_B * (~known_BN).sum(1)).ceil().long().clamp(min=1)
        order_BN = rng.uniform(self.tokens).masked_fill(known_BN, 2.0)
        rank_BN = order_BN.argsort(1).argsort(1)
        return rank_BN < count_B[:, None]

    def sample(
        self,
        request: Request,
        *,
        schedule: str = "cosine",
        temperature: float = 1.0,
        choice_temperature: float = 4.5,
        guidance_schedule: str = "constant",
    ) -> Tensor:
        """Decode in parallel: in each step predict all masked tokens and keep the most confident ones.

        Args:
            request: the conditions.
            schedule: schedule of the fraction of tokens that is still masked after each step: "cosine" or "uniform".
            temperature: temperature of the softmax of both factors of a token, at least 0; 0 is greedy.
            choice_temperature: scale of the Gumbel noise on the confidence, which falls linearly to 0 over the steps
                (MAGVIT: 4.5).
            guidance_schedule: growth of the guidance over the steps: "constant", "linear" or "cosine".

        Returns:
            int64 ids [B, N].
        """
        ids_BN, known_N, rng, steps = request.ids_BN, request.known_N, request.rng, request.steps
        B, N = ids_BN.shape
        unknown = left = int((~known_N).sum())
        masked_BN = (~known_N).expand(B, N)
        for step in range(steps):
            done = (step + 1) / steps
            scale = guidance_scale(guidance_schedule, request.guidance, done)
            drawn_BN, confidence_BN = self.predict(ids_BN, masked_BN, request.label_B, rng, scale, temperature)
            ids_BN = torch.where(masked_BN, drawn_BN, ids_BN)
            # Every step keeps at least one token (MaskGIT).
            left = 0 if step + 1 == steps else min(int(mask_ratio(schedule, done) * unknown), left - 1)
            noise_BN = rng.gumbel(N)
            confidence_BN = confidence_BN + choice_temperature * (1 - done) * noise_BN
            confidence_BN = confidence_BN.masked_fill(~masked_BN, torch.inf)
            rank_BN = confidence_BN.argsort(1).argsort(1)
            masked_BN = rank_BN < left
            request.progress(step + 1, steps)
            if left == 0:
                break
        return ids_BN

    def predict(self, ids_BN, masked_BN, label_B, rng: PerSampleRNG, scale: float, temperature: float):
        """Sample every token; return the tokens, int64 [B, N], and their log-probabilities, float [B, N]."""
        copies = 1 if scale == 1 else 2
        condition = self.guided(scale, label_B)
        x_BND = self.features(ids_BN.repeat(copies, 1), masked_BN.repeat(copies, 1), condition)
        low_logits = classifier_free_guidance(self.heads.low_logits(x_BND), scale, len(ids_BN))
        low_BN = pick(low_logits, rng.uniform(self.tokens), temperature)
        high_logits = classifier_free_guidance(
            self.heads.high_logits(x_BND, low_BN.repeat(copies, 1)), scale, len(ids_BN)
        )
        high_BN = pick(high_logits, rng.uniform(self.tokens), temperature)
        confidence_BN = log_probability(low_logits, low_BN) + log_probability(high_logits, high_BN)
        return self.embed.combine(low_BN, high_BN), confidence_BN


def log_probability(logits_BNV: Tensor, choice_BN: Tensor) -> Tensor:
    """Return the log-probabilities [B, N] of choices int64 [B, N]."""
    return logits_BNV.log_softmax(-1).gather(-1, choice_BN[..., None])[..., 0]


def factor_losses(
    heads: TokenHeads, x_BND: Tensor, ids_BN: Tensor, scored_BN: Tensor, smoothing: float, count: float
) -> dict[str, Tensor]:
    """Compute the terms of `forward` for selected tokens.

    All tokens pass through the heads, since a number of tokens that varies by step would cost more than it saves.

    Args:
        heads: the token heads.
        x_BND: features.
        ids_BN: int64 target tokens.
        scored_BN: bool, the tokens whose loss is computed.
        smoothing: label smoothing.
        count: divisor of the summed loss.
    """
    low_BN, high_BN = heads.embedding.factorize(ids_BN)
    logits = heads.low_logits(x_BND), heads.high_logits(x_BND, low_BN)
    targets = [factor.masked_fill(~scored_BN, IGNORED) for factor in (low_BN, high_BN)]
    pairs = [(a.flatten(0, 1), b.flatten()) for a, b in zip(logits, targets, strict=True)]
    low, high = (F.cross_entropy(a, b, None, None, IGNORED, None, "sum", smoothing) for a, b in pairs)
    with torch.no_grad():
        low_nats, high_nats = (F.cross_entropy(a, b, ignore_index=IGNORED) for a, b in pairs)
        right_BN = (logits[0].argmax(-1) == low_BN) & (logits[1].argmax(-1) == high_BN) & scored_BN
    return {
        "loss": (low + high) / (heads.embedding.factors * count),
        "bits": (low_nats + high_nats) / math.log(2),
        "accuracy": right_BN.sum() / scored_BN.sum(),
    }
