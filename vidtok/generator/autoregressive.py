"""Autoregressive generation: next-token prediction in raster order, time first.

Legend: B batch, N tokens, D width, V vocabulary of a factor (the low or the high bits of a token).
"""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from vidtok.generator.base import Generator, GeneratorConfig, Objective, Request, classifier_free_guidance
from vidtok.generator.decoding import Decoder, StaticCache, fastest_decoder, prefetch, static_step
from vidtok.generator.masked import factor_losses
from vidtok.generator.sampling import guidance_scale, pick, top_k_top_p_filter
from vidtok.generator.transformer import Cache, TokenEmbedding, TokenHeads, Transformer


class AutoregressiveGenerator(Generator):
    """Autoregressive generator: p(ids) is a product over tokens of p(low bits) p(high bits | low bits).

    Element i of the sequence is the embedding of token i - 1 (a learned start embedding for i = 0) with the position of
    token i, which is predicted from it.

    After `compile()`, `generate` computes and draws each token in one compiled graph. It is compiled in the first call
    for a batch size and for sampling options.

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
    compiled_parts = ("trunk", "next_token")
    decoder: type[Decoder] | None = None

    def __init__(self, config: GeneratorConfig, factors: int = 2, positions: str = "both"):
        super().__init__(config, positions)
        self.embed = TokenEmbedding(config.bits, config.width, factors)
        self.start_embed = nn.Parameter(torch.randn(config.width) * 0.02)
        self.heads = TokenHeads(self.embed, config.width, conditioned=True)
        self.next_token = NextToken()

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

    def embed_token(self, low_B1: Tensor, high_B1: Tensor, rows: int) -> Tensor:
        """Embed the factors of a token -> [rows, D]; with guidance, every sample has two rows."""
        if rows != len(low_B1):
            low_B1, high_B1 = low_B1.repeat(2, 1), high_B1.repeat(2, 1)
        return (self.embed.low(low_B1) + self.embed.high(high_B1))[:, 0]

    def draw(
        self,
        x_BD: Tensor,
        uniform_B2: Tensor,
        scale: float | Tensor,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
    ) -> tuple[Tensor, Tensor]:
        """Draw the factors of the next token from its features -> (low, high), int64 [B, 1] each.

        Args:
            x_BD: the features; with guidance [2 B, D].
            uniform_B2: uniform random numbers.
            scale: scale of the guidance.
            temperature, top_k, top_p: see `sample`.
        """
        heads, x_B1D, batch = self.heads, x_BD[:, None], len(uniform_B2)
        assert heads.mix is not None, "the heads are conditioned"
        prefetch(len(x_BD), heads.dense.weight, self.embed.low.weight)
        low_logits = classifier_free_guidance(heads.low_logits(x_B1D), scale, batch)
        low_B1 = pick(top_k_top_p_filter(low_logits, top_k, top_p, temperature), uniform_B2[:, :1], temperature)
        prefetch(len(x_BD), heads.mix.weight, heads.dense.weight, self.embed.high.weight)
        given_B1 = low_B1 if len(x_BD) == batch else low_B1.repeat(2, 1)
        high_logits = classifier_free_guidance(heads.high_logits(x_B1D, given_B1), scale, batch)
        high_B1 = pick(top_k_top_p_filter(high_logits, top_k, top_p, temperature), uniform_B2[:, 1:], temperature)
        return low_B1, high_B1

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
        condition_BD = self.guided(guidance, request.label_B)
        rows = len(condition_BD)
        ids_BN = request.ids_BN.clone()
        uniform_BN2 = request.rng.uniform(N, 2)  # also for known tokens: a sample is then reproduced from its prefix
        scales = [guidance_scale(guidance_schedule, guidance, (n + 1) / N) for n in range(N)]
        scales_N = torch.tensor(scales, device=ids_BN.device)  # compiled steps are compiled again for another number
        compiled = cached and self.decoder is None and self.next_token._compiled_call_impl is not None
        low_B1 = high_B1 = ids_BN[:, :1]  # the last token drawn
        with torch.inference_mode():  # ids_BN is an ordinary tensor, as it was made before
            decoder = (self.decoder or fastest_decoder(self.trunk))(self.trunk, condition_BD) if cached else None
            for n in range(start, N):
                if decoder is not None and compiled and n > start:
                    if n == start + 1:
                        cache = self.next_token.load(self.trunk, decoder.cache)
                    drawing = uniform_BN2[:, n], scales_N[n], temperature, top_k, top_p
                    ids_BN[:, n] = self.next_token(self, cache, ids_BN[:, n - 1 : n], *cache.token(n), drawing)
                else:
                    if n == start or decoder is None:
                        ids_Bn = ids_BN[:, :n] if rows == len(ids_BN) else ids_BN[:, :n].repeat(2, 1)
                        x_BND = self.embed_before(ids_Bn)
                        # Once per clip, for which compiling the trunk for the length of a prefix doesn't pay.
                        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
                            x_BD = self.trunk(x_BND, condition_BD)[:, -1] if decoder is None else decoder.prefill(x_BND)
                    else:
                        x_BD = decoder.step(self.embed_token(low_B1, high_B1, rows))
                    low_B1, high_B1 = self.draw(x_BD, uniform_BN2[:, n], scales[n], temperature, top_k, top_p)
                    ids_BN[:, n] = self.embed.combine(low_B1, high_B1)[:, 0]
                request.progress(n + 1 - start, N - start)
        return ids_BN


class NextToken(nn.Module):
    """Draw the next token with a `StaticCache`; a module without parameters, so that `compile` compiles it as a whole.

    It is called only if it is compiled.
    """

    def __init__(self):
        super().__init__()
        self.cache: StaticCache | None = None

    def load(self, trunk: Transformer, cache: Cache) -> StaticCache:
        """Return a static cache that holds what `cache` holds; on a GPU the same one for all clips of a batch size."""
        static = self.cache
        if static is None or not static.fits(cache):
            static = StaticCache(trunk, len(cache.keys[0]))
        static.load(cache)
        self.cache = static if cache.keys.is_cuda else None  # CUDA graphs are recorded for its addresses
        return static

    def forward(
        self,
        generator: AutoregressiveGenerator,
        cache: StaticCache,
        ids_B1: Tensor,
        n_1: Tensor,
        places_L: Tensor,
        drawing: tuple,
    ) -> Tensor:
        """Draw token n -> int64 [B].

        Args:
            generator: the generator.
            cache: cache of the tokens before the last one.
            ids_B1: the last token.
            n_1, places_L: see `StaticCache.token`.
            drawing: further arguments of `AutoregressiveGenerator.draw`.
        """
        embed = generator.embed
        with torch.autocast(ids_B1.device.type, enabled=False):  # the cache has one dtype
            x_BD = generator.embed_token(*embed.factorize(ids_B1), cache.last.shape[1])
            x_BD = static_step(generator.trunk, x_BD, n_1, places_L, cache)
            return embed.combine(*generator.draw(x_BD, *drawing))[:, 0]
