"""The transformer that all generators share (bidirectional or causal), with factorized token embeddings and heads.

A token of K bits is factorized into low and high bits, with an embedding and a tied output head each (MAGVIT-v2,
section 3.2).

Legend: B batch, N tokens, D width, h heads, d values per head, V vocabulary of a factor, t height width: the token
grid, N = t * height * width.
"""

import math

import torch
import torch.nn.functional as F
from timm.layers import GELUTanh, Mlp, apply_rot_embed_cat
from torch import Tensor, nn

from vidtok.errors import nearest
from vidtok.quantize.lfq import combine_ids, factor_bits, factorize_ids, ids_to_signs

POSITIONS = ("both", "learned", "rotary")
FEW_ROWS = 8  # largest batch that a compiled `linear` multiplies as sums of products on a CPU


class Cache:
    """Key-value cache for autoregressive sampling, with all other values that are the same for every token.

    Args:
        trunk: the transformer.
        condition_BD: condition of each sample.

    Attributes:
        keys, values: [depth, B, h, N, d] of the tokens so far.
        length: number of these.
        modulation: modulation by the condition, see `Transformer.modulate`.
        positions: embeddings of all positions, [N, D].
    """

    def __init__(self, trunk: "Transformer", condition_BD: Tensor):
        sizes = len(trunk.blocks), len(condition_BD), trunk.heads, trunk.tokens, trunk.width // trunk.heads
        self.keys = trunk.modulation.weight.new_zeros(sizes)
        self.values = torch.zeros_like(self.keys)
        self.length = 0
        self.modulation = trunk.modulate(condition_BD, self.keys.dtype)
        self.positions = trunk.embed_positions()

    def extend(self, layer: int, k_BhNd: Tensor, v_BhNd: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values to the cache of a layer; return all of the layer's keys and values."""
        end = self.length + k_BhNd.shape[2]
        self.keys[layer, :, :, self.length : end] = k_BhNd
        self.values[layer, :, :, self.length : end] = v_BhNd
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class Rotary(nn.Module):
    """Rotary position embedding on three axes (Su et al. 2021); the pairs of channels are divided among the axes.

    timm's embeddings need equally many pairs per axis. Here 16 pairs of a head are divided into 6, 5 and 5.

    Args:
        grid: (t, height, width) of the tokens.
        head_dim: values per head, even and at least 6.

    Raises:
        ValueError: an illegal head_dim.
    """

    sin_cos: Tensor

    def __init__(self, grid: tuple[int, int, int], head_dim: int):
        super().__init__()
        if head_dim % 2 or head_dim < 6:
            raise ValueError(f"a head needs an even number of at least 6 values for three axes, not {head_dim}")
        pairs = head_dim // 2
        shares = [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]
        places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij"), -1).flatten(0, 2).float()
        angles = []
        for axis, share in enumerate(shares):
            # From one radian per cell down to about half a radian for the whole axis.
            slowest = 1 / (2 * max(grid))
            rates = slowest ** (torch.arange(share) / max(share - 1, 1))
            angles.append(places[:, axis, None] * rates)
        angles_Nd = torch.cat(angles, 1).repeat(1, 2)
        self.register_buffer("sin_cos", torch.cat([angles_Nd.sin(), angles_Nd.cos()], 1), persistent=False)

    def forward(self, x_xNd: Tensor, start: int = 0) -> Tensor:
        """Rotate the queries and keys [..., N, d] of tokens start, start + 1, ..."""
        sin_cos = self.sin_cos[start : start + x_xNd.shape[-2]].to(x_xNd.dtype)
        return apply_rot_embed_cat(x_xNd, sin_cos, half=True)


class Block(nn.Module):
    """Pre-norm transformer block whose attention and MLP are scaled, shifted and gated by the condition (adaLN)."""

    def __init__(self, width: int, heads: int, causal: bool, dropout: float):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.qk_scale = nn.Parameter(torch.ones(heads, 1, 1))  # learned, since queries and keys are normalized
        self.out = nn.Linear(width, width)
        self.mlp = Mlp(width, 4 * width, act_layer=GELUTanh, drop=dropout)
        self.dropout = dropout

    def forward(
        self, x_BND: Tensor, modulation_6B1D: tuple[Tensor, ...], rotary: Rotary | None, cache, layer: int
    ) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation_6B1D
        y_BND = self.attend(scaled_norm(x_BND, shift1, scale1), rotary, cache, layer)
        x_BND = torch.addcmul(x_BND, gate1, y_BND)
        return torch.addcmul(x_BND, gate2, self.mlp(scaled_norm(x_BND, shift2, scale2)))

    def attend(self, x_BND: Tensor, rotary: Rotary | None, cache: Cache | None, layer: int) -> Tensor:
        B, N, D = x_BND.shape
        qkv_3BhNd = self.qkv(x_BND).view(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        start = 0 if cache is None else cache.length
        qk_2BhNd = F.rms_norm(qkv_3BhNd[:2], qkv_3BhNd.shape[-1:])
        q, k = qk_2BhNd if rotary is None else rotary(qk_2BhNd, start)
        q, v = q * self.qk_scale.to(q.dtype), qkv_3BhNd[2]
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        assert start == 0 or N == 1, "after the first call a cache takes one token at a time"
        dropout = self.dropout if self.training else 0.0
        y = attention(q, k, v, self.causal and N > 1, dropout)
        return self.out(y.transpose(1, 2).reshape(B, N, D))


def attention(q_BhNd: Tensor, k_BhNd: Tensor, v_BhNd: Tensor, causal: bool, dropout: float) -> Tensor:
    """Compute softmax(q k^T / sqrt(d)) v -> [B, h, N, d], with a causal mask if `causal`.

    In bf16 on a CPU it uses plain matrix products: forward and backward of torch's fused kernel are slower there.
    """
    if v_BhNd.device.type != "cpu" or v_BhNd.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q_BhNd, k_BhNd, v_BhNd, is_causal=causal, dropout_p=dropout)
    scores_BhNN = q_BhNd * q_BhNd.shape[-1] ** -0.5 @ k_BhNd.transpose(-2, -1)
    if causal:
        future_NN = torch.ones(scores_BhNN.shape[-2:], dtype=torch.bool).triu(1)
        scores_BhNN = scores_BhNN.masked_fill(future_NN, -torch.inf)
    return F.dropout(scores_BhNN.softmax(-1), dropout) @ v_BhNd


def scaled_norm(x_BND: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
    """Apply layer norm, then scale and shift."""
    return torch.addcmul(shift_B1D, F.layer_norm(x_BND, x_BND.shape[-1:]), scale_B1D)


def linear(x_xD: Tensor, weight_VD: Tensor, bias_V: Tensor) -> Tensor:
    """Apply a linear layer; compiled without gradients for few rows on a CPU, as sums of products.

    Inductor vectorizes these sums and joins them with the operations around them.
    """
    x_BD = x_xD.reshape(-1, x_xD.shape[-1])
    few = len(x_BD) <= FEW_ROWS and x_xD.device.type == "cpu" and not torch.is_grad_enabled()
    if not (few and torch.compiler.is_compiling()):
        return F.linear(x_xD, weight_VD, bias_V)
    y_VB = (weight_VD[:, None] * realize(x_BD)).sum(-1)  # the samples innermost, so that a weight is read once
    return (y_VB.t() + bias_V).view(*x_xD.shape[:-1], -1)


def realize(x: Tensor) -> Tensor:
    """Return x; inductor computes it into a buffer at this point, instead of anew for each of its uses."""
    return x.as_strided(x.shape, x.stride())


class Transformer(nn.Module):
    """Transformer over a grid of tokens, conditioned by adaptive layer norm.

    One linear layer computes scales, shifts and gates of all blocks from the condition; each block adds a learned table
    to them ("adaLN-single", Chen et al. 2023, arXiv:2310.00426). This costs few parameters.

    Positions enter twice. Learned embeddings say where a token is. Masked generation begins with all tokens masked,
    which differ in nothing else: by rotary positions alone, which only turn queries and keys, all of them would have
    the same features and logits. Rotary positions say how far apart two tokens are. Whether a model without them is as
    good has not been measured: `positions` leaves out either.

    Args:
        grid: (t, height, width) of the tokens.
        width: D.
        depth: number of blocks.
        heads: number of attention heads, a divisor of the width.
        causal: whether tokens attend only to themselves and earlier tokens.
        dropout: dropout in attention and MLP.
        positions: "both", "learned" or "rotary".

    Raises:
        ValueError: width, depth or heads out of range, or unknown positions.
    """

    def __init__(
        self,
        grid: tuple[int, int, int],
        width: int,
        depth: int,
        heads: int,
        causal: bool,
        dropout: float,
        positions: str = "both",
    ):
        super().__init__()
        if positions not in POSITIONS:
            raise ValueError(f"unknown positions {positions!r}: {nearest(positions, POSITIONS)}")
        if min(width, depth, heads) < 1:
            raise ValueError(f"width, depth and heads are at least 1, not {width}, {depth} and {heads}")
        if width % heads:
            raise ValueError(f"a width of {width} doesn't divide into {heads} heads")
        self.heads, self.width, self.tokens = heads, width, math.prod(grid)
        self.rotary = None if positions == "learned" else Rotary(grid, width // heads)
        learned = () if positions == "rotary" else grid
        self.positions = nn.ParameterList([nn.Parameter(torch.randn(n, width) * 0.02) for n in learned])
        blocks = [Block(width, heads, causal, dropout) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.modulation = nn.Linear(width, 6 * width)
        self.tables = nn.Parameter(torch.zeros(depth, 6, width))
        self.last_table = nn.Parameter(torch.zeros(2, width))
        # Initially the condition has no effect and every block is the identity. The gates are 1 and the last layers of
        # the blocks 0, so that these layers learn from the first step.
        self.tables.data[:, [2, 5]] = 1
        for layer in (self.modulation, *(part for block in blocks for part in (block.out, block.mlp.fc2))):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x_BND: Tensor, condition_BD: Tensor, cache: Cache | None = None) -> Tensor:
        """Compute normalized features of the tokens, [B, N, D].

        Args:
            x_BND: token embeddings without positions: those of all tokens or, with a cache, those of the next tokens.
            condition_BD: condition of each sample.
            cache: cache of the earlier tokens with the same condition, which is extended; None, no cache.
        """
        if cache is None:
            start, modulation, positions_ND = 0, self.modulate(condition_BD, x_BND.dtype), self.embed_positions()
        else:
            start, modulation, positions_ND = cache.length, cache.modulation, cache.positions
        end = start + x_BND.shape[1]
        x = x_BND + positions_ND[start:end]
        *of_blocks, (shift, scale) = modulation
        for layer, (block, of_block) in enumerate(zip(self.blocks, of_blocks, strict=True)):
            x = block(x, of_block, self.rotary, cache, layer)
        if cache is not None:
            cache.length = end
        return scaled_norm(x, shift, scale)

    def modulate(self, condition_BD: Tensor, dtype: torch.dtype) -> list[tuple[Tensor, ...]]:
        """Compute (shift, scale, gate) of attention and MLP of each block, and (shift, scale) of the last norm.

        All are [B, 1, D] of the dtype.
        """
        shared_B6D = self.modulation(F.silu(condition_BD)).unflatten(1, (6, self.width))
        one_6D = shared_B6D.new_tensor([0, 1, 0, 0, 1, 0])[:, None]  # scales are relative to 1
        tables = [*(self.tables + one_6D), self.last_table + one_6D[:2]]
        return [(shared_B6D[:, : len(table)] + table)[:, :, None].to(dtype).unbind(1) for table in tables]

    def embed_positions(self) -> Tensor:
        """Return the position embeddings [N, D]: the sum of a learned vector for each coordinate, or 0 without them."""
        if not len(self.positions):
            return self.tables.new_zeros(self.tokens, self.width)
        t, height, width = self.positions
        return (t[:, None, None] + height[:, None] + width).flatten(0, 2)


class TokenEmbedding(nn.Module):
    """Embed ids as the sum of a vector for the low and one for the high bits.

    The tables are initialized linear in the bits of the ids, since ids of LFQ that share most bits look alike: what is
    learned early about one id applies to similar ones. The same holds for the tied heads.

    Args:
        bits: log2 of the codebook size.
        width: D.
        factors: 2, or 1 for a table of all 2^bits ids; the table of the high bits then has one row, 0.

    Raises:
        ValueError: another number of factors.
    """

    def __init__(self, bits: int, width: int, factors: int = 2):
        super().__init__()
        self.bits, self.factors = bits, factors
        self.sizes = [2**n_bits for n_bits in factor_bits(bits, factors)]
        self.low, self.high = (nn.Embedding(size, width) for size in self.sizes)
        for table, n_bits in zip((self.low, self.high), factor_bits(bits, factors), strict=True):
            signs_VK = ids_to_signs(torch.arange(2**n_bits), n_bits)
            table.weight.data = signs_VK @ torch.randn(n_bits, width) / max(n_bits * width, 1) ** 0.5

    def forward(self, ids_BN: Tensor) -> Tensor:
        low, high = self.factorize(ids_BN)
        return self.low(low) + self.high(high)

    def factorize(self, ids_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Split ids into the factors, (low, high)."""
        return factorize_ids(ids_BN, self.bits, self.factors)

    def combine(self, low_BN: Tensor, high_BN: Tensor) -> Tensor:
        """Combine the factors into ids."""
        return combine_ids(low_BN, high_BN, self.bits, self.factors)


class TokenHeads(nn.Module):
    """Compute logits of the low and the high bits from features, with output weights tied to the embedding.

    Args:
        embedding: the embedding of the input.
        width: D.
        conditioned: whether the high bits are predicted given the low ones, p(low) p(high | low); else independently.
    """

    def __init__(self, embedding: TokenEmbedding, width: int, conditioned: bool):
        super().__init__()
        self.embedding = embedding
        self.dense = nn.Linear(width, width)
        self.low_bias, self.high_bias = (nn.Parameter(torch.zeros(size)) for size in embedding.sizes)
        self.mix = nn.Linear(width, width) if conditioned else None

    def low_logits(self, x_BND: Tensor) -> Tensor:
        """Compute the logits of the low bits, float32 [B, N, V]."""
        return self.project(x_BND, self.embedding.low, self.low_bias)

    def high_logits(self, x_BND: Tensor, low_BN: Tensor) -> Tensor:
        """Compute the logits of the high bits, float32 [B, N, V]; `low_BN` is used only by conditioned heads."""
        if self.mix is not None:
            # Normalized like the features: the rows of the table have a norm of about 1, negligible beside these.
            low_BND = F.layer_norm(self.embedding.low(low_BN), x_BND.shape[-1:])
            x_BND = x_BND + F.gelu(linear(x_BND + low_BND, self.mix.weight, self.mix.bias), approximate="tanh")
        return self.project(x_BND, self.embedding.high, self.high_bias)

    def project(self, x_BND: Tensor, table: nn.Embedding, bias: Tensor) -> Tensor:
        y = F.gelu(linear(x_BND, self.dense.weight, self.dense.bias), approximate="tanh")
        return linear(F.layer_norm(y, x_BND.shape[-1:]), table.weight, bias).float()
