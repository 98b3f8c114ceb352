"""Causal building blocks of the paper's 3-D CNN (MAGVIT-v2, appendix A and its architecture figure).

Legend: B batch, C channels, T H W video, t h w latent grid. A video of 1 + s*n frames has 1 + n latents: the first
frame stands alone, and nothing looks ahead in time.

Streaming: every layer that looks back takes `state`, a dict from layer to the frames it needs of the last chunk. None
means that the clip is whole. Chunk by chunk with one dict gives the same result as the whole clip at once.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = dict[nn.Module, Tensor]


def causal_pad(x: Tensor, layer: nn.Module, kernel: int, stride: int, state: State | None, dim: int = 2) -> Tensor:
    """Puts the kernel - stride frames seen last, or kernel - 1 zero frames at the start of a clip, in front of x."""
    past = state.get(layer) if state is not None else None
    if past is None:
        x = F.pad(x, (0, 0) * (x.ndim - 1 - dim) + (kernel - 1, 0))  # keeps channels-last memory, where cat doesn't
    else:
        x = torch.cat([past.to(x.dtype), x], dim)
    if state is not None:
        keep = kernel - stride
        state[layer] = x.narrow(dim, x.shape[dim] - keep, keep).clone()
    return x


class CausalConv3d(nn.Conv3d):
    """3-D convolution, 3x3 and same size in space, causal over `depth` frames in time.

    [B, C, 1 + s*n, H, W] -> [B, C', 1 + n, H/s', W/s'].
    """

    def __init__(self, in_channels: int, out_channels: int, depth: int = 3, stride=(1, 1, 1), bias: bool = True):
        # At stride 2 and an even size, one column of zeros on either side leaves the last one unused.
        super().__init__(in_channels, out_channels, (depth, 3, 3), stride, padding=(0, 1, 1), bias=bias)

    def forward(self, x_BCTHW: Tensor, state: State | None = None) -> Tensor:
        depth, stride = self.kernel_size[0], self.stride[0]
        if depth > 1:
            x_BCTHW = causal_pad(x_BCTHW, self, depth, stride, state)
        return super().forward(x_BCTHW)


class FrameGroupNorm(nn.GroupNorm):
    """GroupNorm of each frame on its own: statistics over time would let later frames change earlier latents."""

    def __init__(self, channels: int, affine: bool = True):
        super().__init__(min(32, channels), channels, eps=1e-5, affine=affine)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        frames = super().forward(x_BCTHW.transpose(1, 2).flatten(0, 1))
        return frames.unflatten(0, (x_BCTHW.shape[0], -1)).transpose(1, 2)


class ResBlock(nn.Module):
    """norm, swish, conv, norm, swish, conv, plus the input (through a 1x1x1 convolution where the width changes)."""

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
    """Drops the first `count` frames of a clip, not those of its later chunks (the first latent is one frame)."""
    if state is not None:
        if layer in state:
            return x
        state[layer] = x.new_empty(0)
    return x.narrow(dim, count, x.shape[dim] - count)


class DepthToSpace(nn.Module):
    """Upsamples by a convolution and a depth-to-space shuffle. [B, C, 1+n, H, W] -> [B, C', 1 + s*n, s'*H, s''*W]."""

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
