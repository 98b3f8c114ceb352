"""From what a head is given to one vector per cell of the token grid: the one part in which two heads differ that read
different inputs.

Every embedding takes a batch and gives [B, t, h, w, D] (`dim` is D), checks what it is given (ValueError), and can
merge neighbouring m x m cells into one, so that a large picture makes a short sequence.

All begin with vectors of standard deviation `SCALE` for inputs of 1: no larger than what positions and the first
blocks add, or training would long see content without place.

Legend: B batch, T H W video, t h w token grid, m merge, C channels, D width.

Where a cell lies: learned vectors for its time, row and column, summed.
"""

import math

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from vidtok.checks import check_ids, check_video
from vidtok.errors import nearest

SCALE = 0.06


def merge_patches(x_BthwC: Tensor, m: int) -> Tensor:
    """[B, t, h, w, C] -> [B, t, h/m, w/m, m*m*C]. Raises ValueError where h or w is no multiple of m."""
    B, t, h, w, C = x_BthwC.shape
    if m == 1:
        return x_BthwC
    if h % m or w % m:
        raise ValueError(f"merge={m} takes a grid whose sides are multiples of {m}, not {h} x {w}")
    x = x_BthwC.reshape(B, t, h // m, m, w // m, m, C).transpose(3, 4)
    return x.reshape(B, t, h // m, w // m, m * m * C)


class TokenEmbed(nn.Module):
    """int64 ids [B, t, h, w] as the sum of the vectors of their lower and their upper half, 2^9 each for 18 bits
    (MAGVIT-v2, section 3.2: token factorization; a table of 2^18 vectors could not be learned).

    The tables begin linear in the bits of the ids, for LFQ's bits have a meaning: ids that share most of them look
    alike. From there each vector goes its own way.

    Args:
        dim: D.
        merge: m; cells share the two tables, and a linear layer joins their vectors.
        bits: log2 of the codebook size.
    """

    def __init__(self, dim: int, merge: int = 1, bits: float = 18):
        super().__init__()
        self.dim, self.merge, self.bits = dim, merge, bits
        size = round(2**bits)
        self.low_bits = math.ceil(math.log2(size) / 2)
        self.low = nn.Embedding(1 << self.low_bits, dim)
        self.high = nn.Embedding(((size - 1) >> self.low_bits) + 1, dim)
        self.join = _linear(merge * merge * dim, dim) if merge > 1 else nn.Identity()
        scale = (1.0 if merge > 1 else SCALE) / math.log2(size) ** 0.5
        for table in (self.low, self.high):
            bits_VK = _signs(torch.arange(len(table.weight)), max(len(table.weight) - 1, 1).bit_length())
            table.weight.data = bits_VK @ torch.randn(bits_VK.shape[1], dim) * scale

    def forward(self, ids_Bthw: Tensor) -> Tensor:
        check_ids(ids_Bthw, self.bits)
        ids = ids_Bthw.long()
        x_BthwD = self.low(ids & ((1 << self.low_bits) - 1)) + self.high(ids >> self.low_bits)
        return self.join(merge_patches(x_BthwD, self.merge))


class CodeEmbed(nn.Module):
    """int64 ids [B, t, h, w] as their bits, -1 and +1, through one linear layer: what an LFQ decoder sees.

    Args:
        dim: D; None, the signs themselves, D = m*m*bits.
        merge: m.
        bits: a whole number, as LFQ's are.
    """

    def __init__(self, dim: int | None, merge: int = 1, bits: float = 18):
        super().__init__()
        if bits != int(bits):
            raise ValueError(f"codes are the bits of LFQ's ids, and a codebook of {bits:.4g} bits has none")
        self.merge, self.bits = merge, int(bits)
        self.dim, self.project = _projection(merge * merge * self.bits, dim)

    def forward(self, ids_Bthw: Tensor) -> Tensor:
        check_ids(ids_Bthw, self.bits)
        return self.project(merge_patches(_signs(ids_Bthw.long(), self.bits), self.merge))


class FeatureEmbed(nn.Module):
    """Features on the grid, float [B, C, t, h, w], or in a row, [B, N, C] and [B, C], through one linear layer.

    A row of N counts as a grid of N x 1 x 1.

    Args:
        dim: D; None, the features themselves, D = m*m*C.
        merge: m.
        channels: C.
    """

    def __init__(self, dim: int | None, merge: int = 1, channels: int = 256):
        super().__init__()
        self.merge, self.channels = merge, channels
        self.dim, self.project = _projection(merge * merge * channels, dim)

    def forward(self, x: Tensor) -> Tensor:
        axis = 1 if x.ndim == 5 else -1
        if x.ndim not in (2, 3, 5) or 0 in x.shape or x.shape[axis] != self.channels or not x.is_floating_point():
            C = self.channels
            wanted = f"[B, {C}, t, h, w], [B, N, {C}] or [B, {C}]"
            raise ValueError(f"features are float {wanted}, not {x.dtype} {list(x.shape)}")
        x_BthwC = x.movedim(1, -1) if x.ndim == 5 else x.reshape(len(x), -1, 1, 1, self.channels)
        return self.project(merge_patches(x_BthwC, self.merge))


class PixelEmbed(nn.Module):
    """Video float [B, 3, 1 + s k, H, W] in [-1, 1] as tubelets that match the token grid: the first frame apart, then
    groups of s frames; ViViT's tubelet embedding (arXiv 2103.15691, section 3.2) on a grid of 1 + 4k frames.

    Args:
        dim: D.
        merge: m; a tubelet is m times as high and as wide.
        stride: pixels per token in (time, height, width).
    """

    def __init__(self, dim: int, merge: int = 1, stride: tuple[int, int, int] = (4, 8, 8)):
        super().__init__()
        self.dim, self.merge, self.stride = dim, merge, tuple(stride)
        s_t, s_h, s_w = self.stride
        values = 3 * merge * s_h * merge * s_w
        self.first = _linear(values, dim)
        self.rest = _linear(s_t * values, dim)

    def forward(self, video_B3THW: Tensor) -> Tensor:
        (s_t, s_h, s_w), m = self.stride, self.merge
        check_video(video_B3THW, (s_t, m * s_h, m * s_w))
        B, _, T, H, W = video_B3THW.shape
        x = video_B3THW.reshape(B, 3, T, H // (m * s_h), m * s_h, W // (m * s_w), m * s_w)
        x = x.permute(0, 2, 3, 5, 1, 4, 6).flatten(4)  # [B, T, h/m, w/m, values of one frame]
        first, rest = x[:, :1], x[:, 1:].unflatten(1, (-1, s_t)).movedim(2, 4).flatten(4)
        return torch.cat([self.first(first), self.rest(rest)], 1) if T > 1 else self.first(first)


# input: (embedding, name of the one setting that it has of its own)
INPUTS = {
    "tokens": (TokenEmbed, "bits"),
    "codes": (CodeEmbed, "bits"),
    "latents": (FeatureEmbed, "channels"),
    "hidden": (FeatureEmbed, "channels"),
    "embedding": (FeatureEmbed, "channels"),
    "pixels": (PixelEmbed, "stride"),
}


def make_embed(input: dict, dim: int, project: bool = True) -> nn.Module:
    """The embedding of an input.

    Args:
        input: {"kind": one of `INPUTS`, "merge": m, "bits" | "channels" | "stride": ...}, the rest by default.
        dim: D.
        project: False, for probes: features and codes stay as they are (D is what comes of it); ids and pixels
            have no vectors of their own and get D.

    Raises:
        ValueError: for an unknown kind.
    """
    arguments = dict(input)
    kind = arguments.pop("kind")
    if kind not in INPUTS:
        raise ValueError(f"unknown input {kind!r}: {nearest(kind, INPUTS)}")
    embed, _ = INPUTS[kind]
    bare = not project and embed in (CodeEmbed, FeatureEmbed)
    return embed(None if bare else dim, **arguments)


def _projection(values: int, dim: int | None) -> tuple[int, nn.Module]:
    return (values, nn.Identity()) if dim is None else (dim, _linear(values, dim))


def _linear(values: int, dim: int) -> nn.Linear:
    linear = nn.Linear(values, dim)
    trunc_normal_(linear.weight, std=SCALE / values**0.5)
    nn.init.zeros_(linear.bias)
    return linear


def _signs(ids: Tensor, bits: int) -> Tensor:
    """The bits of int64 ids [...] as float -1 and +1, [..., bits], the lowest first."""
    return (ids[..., None] >> torch.arange(bits, device=ids.device) & 1) * 2.0 - 1


class Position(nn.Module):
    """Adds to x [B, t, h, w, D] a learned vector per axis; on a grid of another size, linearly interpolated ones.

    One vector per axis and not one per cell: fewer to learn, and any grid can be made of them.

    Args:
        grid: (t, h, w) that the vectors are learned for. dim: D.
    """

    def __init__(self, grid: tuple[int, int, int], dim: int):
        super().__init__()
        self.axes = nn.ParameterList(nn.Parameter(torch.empty(size, dim)) for size in grid)
        for axis in self.axes:
            trunc_normal_(axis, std=0.02)

    def forward(self, x_BthwD: Tensor) -> Tensor:
        for number, axis in enumerate(self.axes):
            shape = [1] * x_BthwD.ndim
            shape[1 + number], shape[-1] = x_BthwD.shape[1 + number], -1
            x_BthwD = x_BthwD + _resized(axis, shape[1 + number]).view(shape)
        return x_BthwD


def _resized(axis_nD: Tensor, size: int) -> Tensor:
    if len(axis_nD) == size:
        return axis_nD
    return F.interpolate(axis_nD.T[None], size, mode="linear")[0].T
