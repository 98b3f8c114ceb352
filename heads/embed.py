"""Input embeddings of heads: one vector per cell of the token grid. Heads on different inputs differ only in these.

Every embedding maps a batch to [B, t, h, w, D] (`dim` is D) and raises ValueError for illegal input. It can merge m x m
neighboring cells into one, which shortens the sequence.

Embeddings are initialized so that their vectors have standard deviation `SCALE` for inputs of variance 1. The vectors
are then no larger than the position embeddings and the outputs of the first blocks. With larger vectors, training
ignores positions for a long time.

Legend: B batch, T H W video, t h w token grid, m patch_merge, C channels, D width.
"""

import math
from collections.abc import Callable

import torch
from timm.layers import Mlp, trunc_normal_
from torch import Tensor, nn

from vidtok.checks import check_ids, check_video
from vidtok.errors import nearest

SCALE = 0.06


def merge_patches(x_BthwC: Tensor, m: int) -> Tensor:
    """Concatenate the channels of m x m neighboring cells: [B, t, h, w, C] -> [B, t, h/m, w/m, m*m*C].

    Raises:
        ValueError: h or w is not a multiple of m.
    """
    B, t, h, w, C = x_BthwC.shape
    if m == 1:
        return x_BthwC
    if h % m or w % m:
        raise ValueError(f"patch_merge={m} needs a grid whose sides are multiples of {m}, not {h} x {w}")
    x = x_BthwC.reshape(B, t, h // m, m, w // m, m, C).transpose(3, 4)
    return x.reshape(B, t, h // m, w // m, m * m * C)


class Embed(nn.Module):
    """Base class of embeddings; `dim` is D."""

    dim: int


class TokenEmbed(Embed):
    """Embedding of int64 ids [B, t, h, w]: a linear function of their bits as -1 and +1, plus an MLP of these.

    Ids of LFQ that share most bits decode to similar pixels, so their vectors should be similar. Tables, even one for
    each half of the bits (token factorization, MAGVIT-v2, section 3.2), have to learn that vector by vector: with them
    heads had 52 % in place of 61 % on the motion tasks. Ids of other codebooks, whose bits mean less, are read alike.

    Args:
        dim: D.
        patch_merge: m; the cells share the weights, and a linear layer combines their vectors.
        bits: log2 of the codebook size.
    """

    def __init__(self, dim: int, patch_merge: int = 1, bits: float = 18):
        super().__init__()
        self.dim, self.patch_merge, self.bits = dim, patch_merge, bits
        self.num_bits = math.ceil(math.log2(round(2**bits)))
        self.linear = _linear(self.num_bits, dim, scale=1.0 if patch_merge > 1 else SCALE)
        self.mlp = Mlp(self.num_bits, 2 * dim, dim)
        for parameter in self.mlp.fc2.parameters():
            nn.init.zeros_(parameter)
        self.join = _linear(patch_merge**2 * dim, dim) if patch_merge > 1 else None

    def forward(self, ids_Bthw: Tensor) -> Tensor:
        check_ids(ids_Bthw, self.bits)
        signs_BthwK = _signs(ids_Bthw.long(), self.num_bits)
        x_BthwD = self.linear(signs_BthwK) + self.mlp(signs_BthwK)
        return x_BthwD if self.join is None else self.join(merge_patches(x_BthwD, self.patch_merge))


class CodeEmbed(Embed):
    """Embedding of int64 ids [B, t, h, w] as LFQ codes: their bits as -1 and +1, through one linear layer.

    Args:
        dim: D; None, the codes without a linear layer, D = m*m*bits.
        patch_merge: m.
        bits: log2 of the codebook size, a whole number.

    Raises:
        ValueError: bits is not a whole number.
    """

    def __init__(self, dim: int | None, patch_merge: int = 1, bits: float = 18):
        super().__init__()
        if bits != int(bits):
            raise ValueError(f"input 'codes' needs a codebook of a whole number of bits, as LFQ's, not {bits:.4g}")
        self.patch_merge, self.bits = patch_merge, int(bits)
        self.dim, self.project = _projection(patch_merge**2 * self.bits, dim)

    def forward(self, ids_Bthw: Tensor) -> Tensor:
        check_ids(ids_Bthw, self.bits)
        return self.project(merge_patches(_signs(ids_Bthw.long(), self.bits), self.patch_merge))


class FeatureEmbed(Embed):
    """Linear embedding of features: float [B, C, t, h, w] on a grid, or a sequence [B, N, C] or [B, C].

    A sequence of N is treated as a grid of N x 1 x 1.

    Args:
        dim: D; None, the features without a linear layer, D = m*m*C.
        patch_merge: m.
        channels: C.
    """

    def __init__(self, dim: int | None, patch_merge: int = 1, channels: int = 256):
        super().__init__()
        self.patch_merge, self.channels = patch_merge, channels
        self.dim, self.project = _projection(patch_merge**2 * channels, dim)

    def forward(self, x: Tensor) -> Tensor:
        axis = 1 if x.ndim == 5 else -1
        if x.ndim not in (2, 3, 5) or 0 in x.shape or x.shape[axis] != self.channels or not x.is_floating_point():
            C = self.channels
            wanted = f"[B, {C}, t, h, w], [B, N, {C}] or [B, {C}]"
            raise ValueError(f"features are float {wanted}, not {x.dtype} {list(x.shape)}")
        x_BthwC = x.movedim(1, -1) if x.ndim == 5 else x.reshape(len(x), -1, 1, 1, self.channels)
        return self.project(merge_patches(x_BthwC, self.patch_merge))


class PixelEmbed(Embed):
    """Tubelet embedding of video, float [B, 3, 1 + s_t k, H, W] in [-1, 1], on the token grid.

    This is ViViT's tubelet embedding (arXiv 2103.15691, section 3.2), except that the first frame is embedded alone.
    The other frames are embedded in groups of s_t.

    Args:
        dim: D.
        patch_merge: m; a tubelet has m times the height and width of a token.
        stride: (s_t, s_h, s_w), pixels per token in time, height and width.
    """

    def __init__(self, dim: int, patch_merge: int = 1, stride: tuple[int, int, int] = (4, 8, 8)):
        super().__init__()
        self.dim, self.patch_merge, self.stride = dim, patch_merge, tuple(stride)
        s_t, s_h, s_w = self.stride
        values = 3 * patch_merge * s_h * patch_merge * s_w
        self.first = _linear(values, dim)
        self.rest = _linear(s_t * values, dim)

    def forward(self, video_B3THW: Tensor) -> Tensor:
        (s_t, s_h, s_w), m = self.stride, self.patch_merge
        check_video(video_B3THW, (s_t, m * s_h, m * s_w))
        B, _, T, H, W = video_B3THW.shape
        x = video_B3THW.reshape(B, 3, T, H // (m * s_h), m * s_h, W // (m * s_w), m * s_w)
        x = x.permute(0, 2, 3, 5, 1, 4, 6).flatten(4)  # [B, T, h/m, w/m, values of one frame]
        first, rest = x[:, :1], x[:, 1:].unflatten(1, (-1, s_t)).movedim(2, 4).flatten(4)
        if T > 1:
            return torch.cat([self.first(first), self.rest(rest)], 1)
        # DDP expects a gradient of every parameter.
        return self.first(first) + 0 * sum(parameter.sum() for parameter in self.rest.parameters())


# input: (embedding, name of the argument that only this embedding has)
INPUTS: dict[str, tuple[Callable[..., Embed], str]] = {
    "tokens": (TokenEmbed, "bits"),
    "codes": (CodeEmbed, "bits"),
    "latents": (FeatureEmbed, "channels"),
    "hidden": (FeatureEmbed, "channels"),
    "embedding": (FeatureEmbed, "channels"),
    "pixels": (PixelEmbed, "stride"),
}


def make_embed(input: dict, dim: int, project: bool = True) -> Embed:
    """Build the embedding of an input.

    Args:
        input: {"kind": one of `INPUTS`, "patch_merge": m, "bits" | "channels" | "stride": ...}; missing arguments have
            their defaults.
        dim: D.
        project: whether features and codes are projected to `dim`; False, for probes: they keep their width.

    Raises:
        ValueError: an unknown kind.
    """
    arguments = dict(input)
    kind = arguments.pop("kind")
    if kind not in INPUTS:
        raise ValueError(f"unknown input {kind!r}: {nearest(kind, INPUTS)}")
    embed, _ = INPUTS[kind]
    keeps_width = not project and embed in (CodeEmbed, FeatureEmbed)
    return embed(None if keeps_width else dim, **arguments)


def _projection(values: int, dim: int | None) -> tuple[int, nn.Module]:
    return (values, nn.Identity()) if dim is None else (dim, _linear(values, dim))


def _linear(values: int, dim: int, scale: float = SCALE) -> nn.Linear:
    linear = nn.Linear(values, dim)
    trunc_normal_(linear.weight, std=scale / values**0.5)
    nn.init.zeros_(linear.bias)
    return linear


def _signs(ids: Tensor, bits: int) -> Tensor:
    """Convert int64 ids [...] to their bits as float -1 and +1, [..., bits], lowest bit first."""
    return (ids[..., None] >> torch.arange(bits, device=ids.device) & 1) * 2.0 - 1
