"""The paper's causal 3-D CNN: Figure 7 of MAGVIT-v2 (Yu et al. 2024), layer by layer, and its image form.

The defaults are the video tokenizer of the figure, 4 x 8 x 8. More multipliers make more halvings of the sides; kernels
of one frame (depth 1) make an image tokenizer, whose clips are independent frames.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from vidtok.nets.layers import AdaptiveGroupNorm, CausalConv3d, DepthToSpace, FrameGroupNorm, ResBlock, State


def halvings(stages: int, halve_time, depth: int) -> list[tuple[int, int, int]]:
    """The stride (time, height, width) between each two stages. Raises ValueError where the arguments don't fit."""
    if len(halve_time) != stages - 1:
        raise ValueError(f"{stages} multipliers need {stages - 1} values of halve_time, not {len(halve_time)}")
    if depth not in (1, 3) or (depth == 1 and any(halve_time)):
        raise ValueError(f"depth is 3, or 1 where halve_time is nowhere true, not {depth}")
    return [(2 if time else 1, 2, 2) for time in halve_time]


def _product(strides: list[tuple[int, int, int]]) -> tuple[int, int, int]:
    return tuple(math.prod(stride[i] for stride in strides) for i in range(3))


class Encoder(nn.Module):
    """[B, 3, 1 + s_t n, s_h h, s_w w] -> [B, out_channels, 1+n, h, w].

    Args:
        out_channels: of the last 1x1x1 convolution.
        base: channels of the first stage.
        multipliers: channels of each stage over base. The sides are halved between each two stages.
        blocks: residual blocks per stage, and at the bottleneck.
        halve_time: between each two stages, whether time is halved, too. The default is the paper's "late temporal
            downsampling".
        depth: frames that a kernel spans: 3, or 1 for an image tokenizer.
    """

    def __init__(
        self,
        out_channels: int,
        base: int = 128,
        multipliers=(1, 2, 2, 4),
        blocks: int = 4,
        halve_time=(False, True, True),
        depth: int = 3,
    ):
        super().__init__()
        widths, strides = [base * m for m in multipliers], halvings(len(multipliers), halve_time, depth)
        self.stride = _product(strides)
        self.stem = CausalConv3d(3, widths[0], depth)
        # At full resolution a residual block holds its input, the normed and padded copy, and two outputs.
        self.activation_elems_per_pixel = 5 * base
        layers, width = [], widths[0]
        for i, out in enumerate(widths):
            for _ in range(blocks):
                layers.append(ResBlock(width, out, depth))
                width = out
            if i < len(strides):
                layers.append(CausalConv3d(width, width, depth, strides[i]))
        layers += [ResBlock(width, width, depth) for _ in range(blocks)]
        self.layers = nn.ModuleList(layers)
        self.norm = FrameGroupNorm(width)
        self.head = nn.Conv3d(width, out_channels, 1)
        self.width = width

    def forward_features(self, x_B3THW: Tensor, state: State | None = None) -> Tensor:
        x = self.stem(x_B3THW, state)
        for layer in self.layers:
            x = layer(x, state)
        return F.silu(self.norm(x))

    def forward(self, x_B3THW: Tensor, state: State | None = None) -> Tensor:
        return self.head(self.forward_features(x_B3THW, state))


class DecoderStage(nn.Module):
    """Adaptive norm, residual blocks and, but for the last stage, upsampling: one resolution of the decoder."""

    def __init__(self, in_width: int, width: int, blocks: int, code_channels: int, factor, upsample, depth: int):
        super().__init__()
        self.norm = AdaptiveGroupNorm(in_width, code_channels, factor)
        self.blocks = nn.ModuleList([ResBlock(in_width if i == 0 else width, width, depth) for i in range(blocks)])
        self.upsample = DepthToSpace(width, width, upsample, depth) if upsample else None

    def forward(self, x_BCTHW: Tensor, codes_BCthw: Tensor, state: State | None = None) -> Tensor:
        x = self.norm(x_BCTHW, codes_BCthw, state)
        for block in self.blocks:
            x = block(x, state)
        return x if self.upsample is None else self.upsample(x, state)


class Decoder(nn.Module):
    """[B, code_channels, 1+n, h, w] -> [B, 3, 1 + s_t n, s_h h, s_w w]. Arguments as in `Encoder`."""

    def __init__(
        self,
        code_channels: int,
        base: int = 128,
        multipliers=(1, 2, 2, 4),
        blocks: int = 4,
        halve_time=(False, True, True),
        depth: int = 3,
    ):
        super().__init__()
        widths, strides = [base * m for m in reversed(multipliers)], halvings(len(multipliers), halve_time, depth)
        self.stride = _product(strides)
        self.activation_elems_per_pixel = 6 * base  # as in the encoder; the last upsampling holds its output twice more
        self.stem = CausalConv3d(code_channels, widths[0], depth)
        self.bottleneck = nn.ModuleList([ResBlock(widths[0], widths[0], depth) for _ in range(blocks)])
        stages = []
        upsamples = [*reversed(strides), None]
        for i, width in enumerate(widths):
            factor = _product(upsamples[:i])
            stages.append(
                DecoderStage(widths[max(i - 1, 0)], width, blocks, code_channels, factor, upsamples[i], depth)
            )
        self.stages = nn.ModuleList(stages)
        self.norm = FrameGroupNorm(widths[-1])
        self.head = CausalConv3d(widths[-1], 3, depth)

    def forward(self, codes_BCthw: Tensor, state: State | None = None) -> Tensor:
        x = self.stem(codes_BCthw, state)
        for block in self.bottleneck:
            x = block(x, state)
        for stage in self.stages:
            x = stage(x, codes_BCthw, state)
        return self.head(F.silu(self.norm(x)), state)
