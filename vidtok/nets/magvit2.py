"""Causal 3-D CNN of MAGVIT-v2 (Yu et al. 2024), layer by layer as in its Figure 7, and its image form.

The defaults are the video tokenizer of the figure, with stride 4 x 8 x 8. Each additional channel multiplier adds a
downsampling by 2. Kernels of one frame (depth 1) make an image tokenizer, which encodes frames independently.
"""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vidtok.nets.layers import AdaptiveGroupNorm, CausalConv3d, DepthToSpace, FrameGroupNorm, ResBlock, State


def stage_strides(stages: int, temporal_downsample: Sequence[bool], depth: int) -> list[tuple[int, int, int]]:
    """Return the strides (time, height, width) between consecutive stages; raise ValueError for illegal arguments."""
    if len(temporal_downsample) != stages - 1:
        given = len(temporal_downsample)
        raise ValueError(f"{stages} channel_multipliers need {stages - 1} values of temporal_downsample, not {given}")
    if depth not in (1, 3) or (depth == 1 and any(temporal_downsample)):
        raise ValueError(f"depth is 3, or 1 if temporal_downsample is false everywhere, not {depth}")
    return [(2 if time else 1, 2, 2) for time in temporal_downsample]


def _product(strides: list[tuple[int, int, int]]) -> tuple[int, int, int]:
    time, height, width = (math.prod(stride[i] for stride in strides) for i in range(3))
    return time, height, width


class Encoder(nn.Module):
    """Encoder: [B, 3, 1 + s_t n, s_h h, s_w w] in [-1, 1] -> [B, out_channels, 1+n, h, w].

    Args:
        out_channels: output channels of the last 1x1x1 convolution.
        base: channels of the first stage.
        channel_multipliers: channels of each stage as a multiple of base. H and W are halved between stages.
        blocks: residual blocks per stage, and in the bottleneck.
        temporal_downsample: for each pair of consecutive stages, whether T is halved between them too. The default is
            the paper's "late temporal downsampling".
        depth: frames per kernel: 3, or 1 for an image tokenizer.

    Raises:
        ValueError: the number of values in temporal_downsample does not fit, or an illegal depth.
    """

    feature_layer = None

    def __init__(
        self,
        out_channels: int,
        base: int = 128,
        channel_multipliers: Sequence[int] = (1, 2, 2, 4),
        blocks: int = 4,
        temporal_downsample: Sequence[bool] = (False, True, True),
        depth: int = 3,
    ):
        super().__init__()
        widths = [base * m for m in channel_multipliers]
        strides = stage_strides(len(widths), temporal_downsample, depth)
        self.stride = _product(strides)
        self.stem = CausalConv3d(3, widths[0], depth)
        # At full resolution a residual block holds its input, a normalized and a padded copy, and two outputs.
        self.activation_elems_per_pixel = 5 * base
        layers: list[nn.Module] = []
        width = widths[0]
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
        """Compute the activations before the last 1x1x1 layer."""
        x = self.stem(x_B3THW, state)
        for layer in self.layers:
            x = layer(x, state)
        return F.silu(self.norm(x))

    def forward(self, x_B3THW: Tensor, state: State | None = None, hidden: bool = False) -> Tensor:
        """Encode; with `hidden`, return what `forward_features` does, which hooks and torch.compile wouldn't see."""
        features = self.forward_features(x_B3THW, state)
        return features if hidden else self.head(features)


class DecoderStage(nn.Module):
    """Decoder stage of one resolution: adaptive norm, residual blocks and, except in the last stage, upsampling."""

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
    """Decoder: codes [B, code_channels, 1+n, h, w] -> [B, 3, 1 + s_t n, s_h h, s_w w].

    Args:
        code_channels: channels of the quantizer's codes.
        base, channel_multipliers, blocks, temporal_downsample, depth: as in `Encoder`.
    """

    def __init__(
        self,
        code_channels: int,
        base: int = 128,
        channel_multipliers: Sequence[int] = (1, 2, 2, 4),
        blocks: int = 4,
        temporal_downsample: Sequence[bool] = (False, True, True),
        depth: int = 3,
    ):
        super().__init__()
        widths = [base * m for m in reversed(channel_multipliers)]
        strides = stage_strides(len(widths), temporal_downsample, depth)
        self.stride = _product(strides)
        self.activation_elems_per_pixel = 6 * base  # as in the encoder; the last upsampling holds its output twice more
        self.stem = CausalConv3d(code_channels, widths[0], depth)
        self.bottleneck = nn.ModuleList([ResBlock(widths[0], widths[0], depth) for _ in range(blocks)])
        stages = []
        upsamples = strides[::-1]
        for i, width in enumerate(widths):
            factor, upsample = _product(upsamples[:i]), upsamples[i] if i < len(upsamples) else None
            stages.append(DecoderStage(widths[max(i - 1, 0)], width, blocks, code_channels, factor, upsample, depth))
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


def build_net(out_channels: int, code_channels: int, **arguments) -> tuple[Encoder, Decoder]:
    """Build the encoder and decoder of a tokenizer; `arguments` are those of both, see `Encoder`."""
    return Encoder(out_channels, **arguments), Decoder(code_channels, **arguments)
