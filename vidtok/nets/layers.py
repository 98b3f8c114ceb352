"""Causal layers of MAGVIT-v2's 3-D CNN (its appendix A and architecture figure), and of the patch network.

Legend: B batch, C channels, T H W video, t h w latent grid. A video of 1 + s*n frames has 1 + n latents: the first
frame has a latent of its own, and no layer depends on later frames.

Streaming: every layer that depends on earlier frames takes `state`, a dict from the layer to the frames of the last
chunk that it needs; None, the clip is whole. Chunks processed with one dict give the same result as the whole clip.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = dict[nn.Module, Tensor]


def causal_pad(x: Tensor, layer: nn.Module, kernel: int, stride: int, state: State | None, dim: int = 2) -> Tensor:
    """Pad x at the front of dimension `dim`, and update the state.

    The padding is the last kernel - stride frames of the previous chunk, or kernel - 1 zero frames at the start of a
    clip.
    """
    past = state.get(layer) if state is not None else None
    if past is None:
        x = F.pad(x, (0, 0) * (x.ndim - 1 - dim) + (kernel - 1, 0))  # unlike cat, keeps the channels-last format
    else:
        x = torch.cat([past.to(x.dtype), x], dim)
    if state is not None:
        keep = kernel - stride
        state[layer] = x.narrow(dim, x.shape[dim] - keep, keep).clone()
    return x


class CausalConv3d(nn.Conv3d):
    """3-D convolution that is causal over `depth` frames, with 3x3 kernels and zero padding in space.

    [B, C, 1 + s*n, H, W] -> [B, C', 1 + n, H/s', W/s'].
    """

    def __init__(self, in_channels: int, out_channels: int, depth: int = 3, stride=(1, 1, 1), bias: bool = True):
        # At stride 2 and an even size, the padding at the end is not used.
        super().__init__(in_channels, out_channels, (depth, 3, 3), stride, padding=(0, 1, 1), bias=bias)

    def forward(self, x_BCTHW: Tensor, state: State | None = None) -> Tensor:
        depth, stride = self.kernel_size[0], self.stride[0]
        if depth > 1:
            x_BCTHW = causal_pad(x_BCTHW, self, depth, stride, state)
        return super().forward(x_BCTHW)


class FrameGroupNorm(nn.GroupNorm):
    """GroupNorm per frame: with statistics over time, earlier latents would depend on later frames."""

    def __init__(self, channels: int, affine: bool = True):
        super().__init__(min(32, channels), channels, eps=1e-5, affine=affine)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        frames = super().forward(x_BCTHW.transpose(1, 2).flatten(0, 1))
        return frames.unflatten(0, (x_BCTHW.shape[0], -1)).transpose(1, 2)


class ResBlock(nn.Module):
    """Residual block: norm, swish, conv, norm, swish, conv; the skip is a 1x1x1 convolution if the width changes."""

    def __init__(self, in_channels: int, out_channels: int, depth: int = 3):
        super().__init__()
        self.norm1 = FrameGroupNorm(in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, depth, bias=False)
        self.norm2 = FrameGroupNorm(out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels, depth, bias=False)
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv3d(in_channels, out_channels, 1, bias=False)

    def forward(self, x_BCTHW: Tensor, state: State | None = None) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x_BCTHW)), state)
        y = self.conv2(F.silu(self.norm2(y)), state)
        return self.skip(x_BCTHW) + y


def drop_first(x: Tensor, layer: nn.Module, count: int, state: State | None, dim: int = 2) -> Tensor:
    """Drop the first `count` frames of a clip, but none of its later chunks (the first latent is a single frame)."""
    if state is not None:
        if layer in state:
            return x
        state[layer] = x.new_empty(0)
    return x.narrow(dim, count, x.shape[dim] - count)


class DepthToSpace(nn.Module):
    """Upsample by convolution and depth-to-space: [B, C, 1+n, H, W] -> [B, C', 1 + s*n, s'*H, s''*W]."""

    def __init__(self, in_channels: int, out_channels: int, factor: tuple[int, int, int], depth: int = 3):
        super().__init__()
        self.factor = factor
        self.conv = CausalConv3d(in_channels, out_channels * factor[0] * factor[1] * factor[2], depth)

    def forward(self, x_BCTHW: Tensor, state: State | None = None) -> Tensor:
        ft, fh, fw = self.factor
        x = self.conv(x_BCTHW, state)
        B, _, T, H, W = x.shape
        x = x.view(B, -1, ft, fh, fw, T, H, W).permute(0, 1, 5, 2, 6, 3, 7, 4)
        x = x.reshape(B, -1, T * ft, H * fh, W * fw)
        return drop_first(x, self, ft - 1, state)


class AdaptiveGroupNorm(nn.Module):
    """GroupNorm whose scale and shift come from the quantized latents, position by position.

    The two maps are applied on the latent grid and the results repeated onto the finer one: the same values as the
    other way round, for a fraction of the work.
    """

    def __init__(self, channels: int, code_channels: int, factor: tuple[int, int, int]):
        super().__init__()
        self.factor = factor  # of this resolution over the latent grid
        self.norm = FrameGroupNorm(channels, affine=False)
        self.scale = nn.Conv3d(code_channels, channels, 1)
        self.shift = nn.Conv3d(code_channels, channels, 1)

    def forward(self, x_BCTHW: Tensor, codes_BCthw: Tensor, state: State | None = None) -> Tensor:
        affine = torch.cat([self.scale(codes_BCthw), self.shift(codes_BCthw)], 1)
        for dim, repeat in zip((2, 3, 4), self.factor, strict=True):
            affine = affine.repeat_interleave(repeat, dim)
        scale, shift = drop_first(affine, self, self.factor[0] - 1, state).chunk(2, 1)
        return self.norm(x_BCTHW) * (1 + scale) + shift


TAPS = 3  # latents that a block mixes: the current one and two before


def pointwise(x_BthwC: Tensor, linear: nn.Linear) -> Tensor:
    """Apply a linear layer; in fp32 on a CPU as a 1x1 convolution by oneDNN, which is faster than MKL on AMD."""
    B, t, h, w, C = x_BthwC.shape
    # For a single frame, torch uses oneDNN only if it is large.
    if x_BthwC.device.type != "cpu" or x_BthwC.dtype != torch.float32 or B * t == 1:
        return linear(x_BthwC)
    x = x_BthwC.reshape(B * t, h, w, C).permute(0, 3, 1, 2)
    # The dilation has no effect on one tap, but without it torch uses MKL for a 1x1 convolution on one thread.
    y = F.conv2d(x, linear.weight[:, :, None, None], linear.bias, dilation=2)
    return y.permute(0, 2, 3, 1).reshape(B, t, h, w, -1)


class PatchBlock(nn.Module):
    """Residual block: norm, causal mix over time per channel, 3x3 convolution in space, GELU, linear."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        # Initially only the current latent.
        self.taps = nn.Parameter(torch.tensor([0.0] * (TAPS - 1) + [1.0]).repeat(width, 1))  # [C, TAPS]
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.linear = nn.Linear(width, width)
        nn.init.zeros_(self.linear.bias)
        self.linear.weight.data.mul_(0.3)  # initially the output is small compared with the skip

    def forward(self, x_BthwC: Tensor, state: State | None = None) -> Tensor:
        B, t, h, w, C = x_BthwC.shape
        y = self.norm(x_BthwC)
        past = causal_pad(y, self, TAPS, 1, state, dim=1)
        taps = self.taps.to(y.dtype).t().contiguous()  # strided taps would prevent vectorization
        y = past[:, :t] * taps[0]
        for i in range(1, TAPS):
            y = torch.addcmul(y, past[:, i : i + t], taps[i])
        y = self.conv(y.reshape(B * t, h, w, C).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x_BthwC + pointwise(F.gelu(y.reshape(B, t, h, w, C), approximate="tanh"), self.linear)
