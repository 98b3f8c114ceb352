"""Token-by-token decoding with a causal transformer.

Legend: B batch, N tokens, D width, h heads, d values per head, n the position of a token.
"""

from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn

from vidtok.generator.transformer import Block, Cache, Transformer, attention, linear, realize

PREFETCH_BYTES = 2**20  # the L2 cache of a Zen 4 core; server cores of other makers have more
PREFETCH_BATCH = 8  # largest batch for which prefetching has been measured
STATIC_LENGTH = 64  # a compiled step on a CPU attends to a multiple of this many tokens


class Decoder:
    """Compute the features of one token after another with a cache of keys and values.

    All calls are made without gradients.

    Args:
        trunk: the transformer, causal and in evaluation mode.
        condition_BD: condition of each sample.
    """

    def __init__(self, trunk: Transformer, condition_BD: Tensor):
        self.trunk, self.condition_BD, self.cache = trunk, condition_BD, Cache(trunk, condition_BD)

    def prefill(self, x_BND: Tensor) -> Tensor:
        """Compute the features of the first tokens from their embeddings -> those of the last of them, [B, D]."""
        return self.trunk(x_BND, self.condition_BD, self.cache)[:, -1]

    def step(self, x_BD: Tensor) -> Tensor:
        """Compute the features of the next token from its embedding -> [B, D]."""
        return self.prefill(x_BD[:, None])


class BufferedDecoder(Decoder):
    """Decoder with the same features, up to rounding, in less time on a CPU.

    At small batches, a CPU is bound by the overhead of calls and by reading the weights. Here a layer takes few calls
    into buffers that are allocated once, and weights are prefetched (see `prefetch`).
    """

    def __init__(self, trunk: Transformer, condition_BD: Tensor):
        super().__init__(trunk, condition_BD)
        B, h, d = len(condition_BD), trunk.heads, trunk.width // trunk.heads
        *of_blocks, self.last = [[part_B1D[:, 0] for part_B1D in parts] for parts in self.cache.modulation]
        blocks: list[Block] = list(trunk.blocks)  # type: ignore[arg-type]  # a ModuleList holds any modules
        self.layers = [Layer(block, parts, B) for block, parts in zip(blocks, of_blocks, strict=True)]
        no_turn = self.cache.keys.new_tensor([0.0, 1.0]).repeat_interleave(d).expand(trunk.tokens, -1)
        sin_cos = no_turn if trunk.rotary is None else trunk.rotary.sin_cos.to(no_turn.dtype)
        self.sin_Nd, self.cos_Nd = sin_cos.chunk(2, 1)
        self.rotated_B2hd = self.cache.keys.new_empty(B, 2, h, d)
        self.left, self.right = self.rotated_B2hd.chunk(2, -1)
        self.q_Bhd, self.k_Bhd = self.rotated_B2hd.unbind(1)

    def step(self, x_BD: Tensor) -> Tensor:
        with torch.autocast(x_BD.device.type, enabled=False):  # it doesn't cast for products into a buffer
            return self._step(x_BD)

    def _step(self, x_BD: Tensor) -> Tensor:
        cache, n, q_Bh1d = self.cache, self.cache.length, self.q_Bhd[:, :, None]
        sin_d, cos_d = self.sin_Nd[n], self.cos_Nd[n]
        sin_left, sin_right = sin_d.chunk(2)
        all_keys, all_values = cache.keys[:, :, :, : n + 1].unbind(), cache.values[:, :, :, : n + 1].unbind()
        new_keys, new_values = cache.keys[:, :, :, n].unbind(), cache.values[:, :, :, n].unbind()
        x = x_BD + cache.positions[n]
        for i, layer in enumerate(self.layers):
            layer.qkv(scaled_norm(x, layer.shift1, layer.scale1))
            norm_B2h1 = torch.linalg.vector_norm(layer.qk, dim=-1, keepdim=True).hypot_(layer.epsilon)
            layer.qk.mul_(layer.factors / norm_B2h1)
            torch.mul(layer.qk, cos_d, out=self.rotated_B2hd)
            self.left.addcmul_(layer.qk_right, sin_left, value=-1)
            self.right.addcmul_(layer.qk_left, sin_right)
            new_keys[i].copy_(self.k_Bhd)
            new_values[i].copy_(layer.v)
            y_Bh1d = attention(q_Bh1d, all_keys[i], all_values[i], causal=False, dropout=0.0)
            x.addcmul_(layer.gate1, layer.out(y_Bh1d.view(x.shape)))
            y = F.gelu(layer.fc1(scaled_norm(x, layer.shift2, layer.scale2)), approximate="tanh")
            x.addcmul_(layer.gate2, layer.fc2(y))
        cache.length = n + 1
        return scaled_norm(x, *self.last)


class StaticCache:
    """Cache for `static_step`: tensors of one shape and, on a GPU, one address for all tokens and clips.

    Args:
        trunk: the transformer.
        batch: B.

    Attributes:
        keys, values: those of each layer, [B, h, C, d], with room for C > N tokens.
        modulation, last: `Cache.modulation` of the layers and of the last norm, [depth, 6, B, D] and [2, B, D].
        positions: embeddings of all positions, [N, D].
        places: int64, 0 .. C - 1.
    """

    def __init__(self, trunk: Transformer, batch: int):
        weight, depth, D = trunk.modulation.weight, len(trunk.blocks), trunk.width
        # C is above all lengths: a length that may be C would be compiled on its own.
        capacity = (-(-trunk.tokens // STATIC_LENGTH) + 1) * STATIC_LENGTH
        shape = batch, trunk.heads, capacity, D // trunk.heads
        self.keys, self.values = ([weight.new_zeros(shape) for _ in range(depth)] for _ in range(2))
        self.modulation, self.last = weight.new_zeros(depth, 6, batch, D), weight.new_zeros(2, batch, D)
        self.positions = weight.new_zeros(trunk.tokens, D)
        self.places = torch.arange(capacity, device=weight.device)
        for tensor in (*self.keys, *self.values, self.modulation, self.last, self.positions, self.places):
            torch._dynamo.mark_static_address(tensor)  # otherwise CUDA graphs copy it for each token

    def fits(self, cache: Cache) -> bool:
        """Return whether the tensors of a cache can be loaded."""
        keys, own = cache.keys[0], self.keys[0]
        return (keys.dtype, keys.device, len(keys)) == (own.dtype, own.device, len(own))

    def load(self, cache: Cache) -> None:
        """Copy the tensors of a cache, which holds the first tokens."""
        for own, given in ((self.keys, cache.keys), (self.values, cache.values)):
            for own_BhNd, given_BhNd in zip(own, given, strict=True):
                own_BhNd[:, :, : cache.length] = given_BhNd[:, :, : cache.length]
        *of_blocks, last = cache.modulation
        for own_PBD, parts in zip((*self.modulation, self.last), (*of_blocks, last), strict=True):
            torch.stack([part_B1D[:, 0] for part_B1D in parts], out=own_PBD)
        self.positions.copy_(cache.positions)

    def token(self, n: int) -> tuple[Tensor, Tensor]:
        """Return (n, int64 [1]; the places that token n attends to and masked ones) without a new shape per token."""
        if self.places.is_cuda:  # CUDA graphs have fixed shapes
            return self.places[n : n + 1], self.places
        places = self.places[: (n // STATIC_LENGTH + 1) * STATIC_LENGTH]
        torch._dynamo.maybe_mark_dynamic(places, 0)
        return self.places[n : n + 1], places


def static_step(trunk: Transformer, x_BD: Tensor, n_1: Tensor, places_L: Tensor, cache: StaticCache) -> Tensor:
    """Compute the features of token n from its embedding -> [B, D], in a form that torch.compile makes fast.

    Args:
        trunk: the transformer, causal and in evaluation mode.
        x_BD: embedding of the token.
        n_1, places_L: see `StaticCache.token`.
        cache: cache of the earlier tokens, to which the token is added.
    """
    B, D, L = *x_BD.shape, len(places_L)
    x = realize(x_BD + cache.positions[n_1])
    future_L = places_L > n_1
    blocks: list[Block] = list(trunk.blocks)  # type: ignore[arg-type]  # a ModuleList holds any modules
    for block, modulation_6BD, keys, values in zip(blocks, cache.modulation, cache.keys, cache.values, strict=True):
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation_6BD.unbind()
        fc1, fc2 = cast(list[nn.Linear], [block.mlp.fc1, block.mlp.fc2])
        qkv_B3hd = linear(scaled_norm(x, shift1, scale1), block.qkv.weight, block.qkv.bias).view(B, 3, block.heads, -1)
        qk_B2hd = F.rms_norm(qkv_B3hd[:, :2], qkv_B3hd.shape[-1:])
        if trunk.rotary is not None:
            qk_B2hd = apply_rot_embed_cat(qk_B2hd, trunk.rotary.sin_cos[n_1].to(x.dtype), half=True)
        q_Bhd = realize(qk_B2hd[:, 0] * block.qk_scale[..., 0].to(x.dtype) * qkv_B3hd.shape[-1] ** -0.5)
        keys.index_copy_(2, n_1, qk_B2hd[:, 1, :, None])
        values.index_copy_(2, n_1, qkv_B3hd[:, 2, :, None])
        scores_BhL = (q_Bhd[:, :, None] * keys[:, :, :L]).sum(-1).masked_fill(future_L, -torch.inf)
        weights_BhL = (scores_BhL - scores_BhL.amax(-1, keepdim=True)).exp()
        y_Bhd = (weights_BhL[..., None] * values[:, :, :L]).sum(2) / weights_BhL.sum(-1, keepdim=True)
        x = realize(torch.addcmul(x, gate1, linear(y_Bhd.view(B, D), block.out.weight, block.out.bias)))
        y = F.gelu(linear(scaled_norm(x, shift2, scale2), fc1.weight, fc1.bias), approximate="tanh")
        x = realize(torch.addcmul(x, gate2, linear(y, fc2.weight, fc2.bias)))
    return realize(scaled_norm(x, *cache.last.unbind()))


def fastest_decoder(trunk: Transformer) -> type[Decoder]:
    """Return the fastest decoder of those not compiled: the buffered one, but not on a GPU or for a compiled trunk."""
    is_compiled = hasattr(trunk, "_orig_mod") or trunk._compiled_call_impl
    on_cpu = trunk.modulation.weight.device.type == "cpu"
    return BufferedDecoder if on_cpu and not is_compiled else Decoder


class Layer:
    """A block of the transformer with its buffers, for `BufferedDecoder`.

    Args:
        block: the block.
        modulation: shift, scale and gate of attention and of the MLP, six tensors [B, D].
        batch: B.

    Attributes:
        epsilon, factors: queries and keys are divided by hypot(their norm, epsilon), which is sqrt(d) times the root of
            their mean square, and multiplied by the factors [2, h, 1], which also hold the learned scale of queries.
    """

    def __init__(self, block: Block, modulation: list[Tensor], batch: int):
        self.shift1, self.scale1, self.gate1, self.shift2, self.scale2, self.gate2 = modulation
        linears = cast(list[nn.Linear], [block.qkv, block.out, block.mlp.fc1, block.mlp.fc2])  # timm's may be others
        self.qkv, self.out, self.fc1, self.fc2 = (BufferedLinear(linear, batch) for linear in linears)
        qkv_B3hd = self.qkv.out.view(batch, 3, block.heads, -1)
        self.qk, self.v = qkv_B3hd[:, :2], qkv_B3hd[:, 2]
        self.qk_left, self.qk_right = self.qk.chunk(2, -1)
        d = qkv_B3hd.shape[-1]
        scale_h1 = block.qk_scale[..., 0].to(qkv_B3hd.dtype)
        self.factors = torch.stack([scale_h1, torch.ones_like(scale_h1)]) * d**0.5
        self.epsilon = qkv_B3hd.new_tensor((d * torch.finfo(qkv_B3hd.dtype).eps) ** 0.5)


class BufferedLinear:
    """Linear layer that writes into its own buffer, with prefetched weights.

    Args:
        linear: the layer.
        batch: number of rows B.

    Attributes:
        out: the result of the last call, [B, outputs].
    """

    def __init__(self, linear: nn.Linear, batch: int):
        weight, bias = linear.weight, linear.bias
        self.out = weight.new_empty(batch, len(weight))
        rows = max(1, PREFETCH_BYTES // weight[0].nbytes) if may_prefetch(batch, weight) else len(weight)
        parts = zip(weight.split(rows), bias.split(rows), self.out.split(rows, 1), strict=True)
        self.parts = [(part, part.t(), bias, out) for part, bias, out in parts]

    def __call__(self, x_BD: Tensor) -> Tensor:
        for weight, transposed, bias, out in self.parts:
            prefetch(len(x_BD), weight)
            torch.addmm(bias, x_BD, transposed, out=out)
        return self.out


def may_prefetch(batch: int, weight: Tensor) -> bool:
    """Return whether `prefetch` makes products of few rows with a weight faster: in float32, on one CPU thread."""
    return (
        not torch.compiler.is_compiling()
        and batch <= PREFETCH_BATCH
        and weight.dtype == torch.float32
        and weight.device.type == "cpu"
        and torch.get_num_threads() == 1
    )


def prefetch(batch: int, *weights: Tensor) -> None:
    """Load weights into the L2 cache by summing them, before their products with a batch of few rows.

    MKL reads a matrix from L3 at a quarter of the rate of a sum. For the matrices of 6 layers x 256, one after another
    on one thread of a Zen 4 CPU, products take 2.08 ms alone and 1.15 ms with sums (1 row); 3.67 and 2.44 ms (8 rows).
    Weights that are larger than L2 are left alone.
    """
    for weight in weights:
        if weight.nbytes <= PREFETCH_BYTES and may_prefetch(batch, weight):
            weight.sum()


def scaled_norm(x_BD: Tensor, shift_BD: Tensor, scale_BD: Tensor) -> Tensor:
    """Apply layer norm, then scale and shift; in one call for a single sample."""
    if len(x_BD) == 1:
        return F.layer_norm(x_BD, x_BD.shape[1:], scale_BD[0], shift_BD[0])
    return torch.addcmul(shift_BD, F.layer_norm(x_BD, x_BD.shape[1:]), scale_BD)
