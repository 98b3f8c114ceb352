"""The paper's causal 3-D CNN: Figure 7 of MAGVIT-v2 (Yu et al. 2024), layer by layer."""

import torch.nn.functional as F
from torch import Tensor, nn

from vidtok.layers import AdaptiveGroupNorm, CausalConv3d, DepthToSpace, FrameGroupNorm, ResBlock, State

STRIDES = ((1, 2, 2), (2, 2, 2), (2, 2, 2))  # "late temporal downsampling": time is halved in the last two stages


class Encoder(nn.Module):
    """[B, 3, 1+4n, 8h, 8w] -> [B, out_channels, 1+n, h, w].

    Args:
        out_channels: of the last 1x1x1 convolution.
        base: channels of the first stage.
        multipliers: channels of each stage over base.
        blocks: residual blocks per stage, and at the bottleneck.
    """

    def __init__(self, out_channels: int, base: int = 128, multipliers=(1, 2, 2, 4), blocks: int = 4):
        super().__init__()
        widths = [base * m for m in multipliers]
        self.stem = CausalConv3d(3, widths[0])
        # At full resolution a residual block holds its input, the normed and padded copy, and two outputs.
        self.peak_values = 5 * base
        layers, width = [], widths[0]
        for i, out in enumerate(widths):
            for _ in range(blocks):
                layers.append(ResBlock(width, out))
                width = out
            if i < len(STRIDES):
                layers.append(CausalConv3d(width, width, stride=STRIDES[i]))
        layers += [ResBlock(width, width) for _ in range(blocks)]
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

    def __init__(self, in_width: int, width: int, blocks: int, code_channels: int, factor, upsample):
        super().__init__()
        self.norm = AdaptiveGroupNorm(in_width, code_channels, factor)
        self.blocks = nn.ModuleList([ResBlock(in_width if i == 0 else width, width) for i in range(blocks)])
        self.upsample = DepthToSpace(width, width, upsample) if upsample else None

    def forward(self, x_BCTHW: Tensor, codes_BCthw: Tensor, state: State | None = None) -> Tensor:
        x = self.norm(x_BCTHW, codes_BCthw, state)
        for block in self.blocks:
            x = block(x, state)
        return x if self.upsample is None else self.upsample(x, state)


class Decoder(nn.Module):
    """[B, code_channels, 1+n, h, w] -> [B, 3, 1+4n, 8h, 8w]. Arguments as in `Encoder`."""

    def __init__(self, code_channels: int, base: int = 128, multipliers=(1, 2, 2, 4), blocks: int = 4):
        super().__init__()
        widths = [base * m for m in reversed(multipliers)]
        self.peak_values = 6 * base  # as in the encoder; the last upsampling holds its output twice more
        self.stem = CausalConv3d(code_channels, widths[0])
        self.bottleneck = nn.ModuleList([ResBlock(widths[0], widths[0]) for _ in range(blocks)])
        stages, factor = [], (1, 1, 1)
        upsamples = [*reversed(STRIDES), None]
        for i, width in enumerate(widths):
            stages.append(DecoderStage(widths[max(i - 1, 0)], width, blocks, code_channels, factor, upsamples[i]))
            if upsamples[i]:
                factor = tuple(a * b for a, b in zip(factor, upsamples[i], strict=True))
        self.stages = nn.ModuleList(stages)
        self.norm = FrameGroupNorm(widths[-1])
        self.head = CausalConv3d(widths[-1], 3)

    def forward(self, codes_BCthw: Tensor, state: State | None = None) -> Tensor:
        x = self.stem(codes_BCthw, state)
        for block in self.bottleneck:
            x = block(x, state)
        for stage in self.stages:
            x = stage(x, codes_BCthw, state)
        return self.head(F.silu(self.norm(x)), state)
