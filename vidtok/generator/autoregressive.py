"""Autoregressive generation: next-token prediction in raster order, time first.

Legend: B batch, N tokens, D width, V vocabulary of a factor (the low or the high bits of a token).
"""

import torch
from torch import Tensor, nn

from vidtok.generator.base import Generator, GeneratorConfig, Objective, Request, classifier_free_guidance
from vidtok.generator.decoding import Decoder, fastest_decoder, prefetch
from vidtok.generator.masked import factor_losses
from vidtok.generator.sampling import guidance_scale, pick, top_k_top_p_filter
from vidtok.generator.transformer import TokenEmbedding, TokenHeads


class AutoregressiveGenerator(Generator):
    """Autoregressive generator: p(ids) is a product over tokens of p(low bits) p(high bits | low bits).

    Element i of the sequence is the embedding of token i - 1 (a learned start embedding for i = 0) with the position of
    token i, which is predicted from it.

    Args:
        config: the config, whose `arguments` are the following.
        factors: factors of a token; 1, it is predicted as a whole.
        positions: position embeddings, see `Generator`.

    Raises:
        ValueError: an illegal number of factors, or an unknown position embedding.

    Attributes:
        decoder: the decoder for sampling with a cache; None, `fastest_decoder`.
    """

    causal = True
    decoder: type[Decoder] | None = None

    def __init__(self, config: GeneratorConfig, factors: int = 2, positions: str = "both"):
        super().__init__(config, positions)
        self.embed = TokenEmbedding(config.bits, config.width, factors)
        self.start_embed = nn.Parameter(torch.randn(config.width) * 0.02)
        self.heads = TokenHeads(self.embed, config.width, conditioned=True)

    @property
    def default_steps(self) -> int:
        return self.tokens

    def check_sampling(self, steps: int | None = None, guidance: float = 1.0, **options) -> None:
        super().check_sampling(steps, guidance, **options)
        if steps not in (None, self.tokens):
            raise ValueError(
                f"an autoregressive model takes one step for each of its {self.tokens} tokens, not {steps}"
            )

    def embed_before(self, ids_BN: Tensor) -> Tensor:
        """Embed the start and the given tokens -> [B, N + 1, D]; each element predicts the next token."""
        start = self.start_embed.expand(len(ids_BN), 1, -1)
        return torch.cat([start, self.embed(ids_BN)], 1)

    def forward(self, batch, objective: Objective) -> dict[str, Tensor]:
        """Compute the training terms.

        Returns:
            loss: cross-entropy in nats, mean over both factors of a token. bits: cross-entropy of a token in bits,
            without label smoothing. accuracy: share of tokens predicted correctly.
        """
        ids_BN = batch["ids"].flatten(1)
        _, label_B, _ = self.draw_conditions(batch, objective)
        x_BND = self.trunk(self.embed_before(ids_BN[:, :-1]), self.label_embed(label_B))
        scored_BN = torch.ones_like(ids_BN, dtype=torch.bool)
        return factor_losses(self.heads, x_BND, ids_BN, scored_BN, objective.label_smoothing, ids_BN.numel())

    def sample(
        self,
        request: Request,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_schedule: str = "constant",
        cached: bool = True,
    ) -> Tensor:
        """Sample one token after another.

        Args:
            request: the conditions; known tokens must be a prefix.
            temperature: temperature of the softmax of both factors of a token, at least 0; 0 is greedy.
            top_k: number of likeliest values of each factor to sample from; None, all.
            top_p: probability of the smallest set of values to sample from, above 0 and at most 1; None, all.
            guidance_schedule: growth of the guidance over the tokens: "constant", "linear" or "cosine".
            cached: whether to use a key-value cache. Without it the samples are the same, at N / 2 times the cost.

        Returns:
            int64 ids [B, N].

        Raises:
            ValueError: the known tokens are not a prefix.
        """
        known_N, guidance = request.known_N, request.guidance
        N = len(known_N)
        start = int(known_N.sum())
        if not known_N[:start].all():
            raise ValueError("autoregressive models take only a prefix: other masks need a masked or diffusion model")

        def doubled(x_BN: Tensor) -> Tensor:
            """Repeat the samples for guidance."""
            return x_BN if guidance == 1 else x_BN.repeat(2, 1)

        condition_BD = self.guided(guidance, request.label_B)
        heads = self.heads
        assert heads.mix is not None, "the heads are conditioned"
        ids_BN = request.ids_BN.clone()
        uniform_BN2 = request.rng.uniform(N, 2)  # also for known tokens: a sample is then reproduced from its prefix
        low_B1 = high_B1 = ids_BN[:, :1]  # the last token drawn
        with torch.inference_mode():  # ids_BN is an ordinary tensor, as it was made before
            decoder = (self.decoder or fastest_decoder(self.trunk))(self.trunk, condition_BD) if cached else None
            for n in range(start, N):
                if decoder is None:
                    x_BD = self.trunk(self.embed_before(doubled(ids_BN[:, :n])), condition_BD)[:, -1]
                elif n == start:
                    x_BD = decoder.prefill(self.embed_before(doubled(ids_BN[:, :n])))
                else:
                    x_BD = decoder.step((self.embed.low(doubled(low_B1)) + self.embed.high(doubled(high_B1)))[:, 0])
                x_B1D = x_BD[:, None]
                scale = guidance_scale(guidance_schedule, guidance, (n + 1) / N)
                prefetch(len(x_BD), heads.dense.weight, self.embed.low.weight)
                low_logits = classifier_free_guidance(heads.low_logits(x_B1D), scale, len(ids_BN))
                low_B1 = pick(
                    top_k_top_p_filter(low_logits, top_k, top_p, temperature), uniform_BN2[:, n, :1], temperature
                )
                prefetch(len(x_BD), heads.mix.weight, heads.dense.weight, self.embed.high.weight)
                high_logits = classifier_free_guidance(heads.high_logits(x_B1D, doubled(low_B1)), scale, len(ids_BN))
                high_B1 = pick(
                    top_k_top_p_filter(high_logits, top_k, top_p, temperature), uniform_BN2[:, n, 1:], temperature
                )
                ids_BN[:, n] = self.embed.combine(low_B1, high_B1)[:, 0]
                request.progress(n + 1 - start, N - start)
        return ids_BN
