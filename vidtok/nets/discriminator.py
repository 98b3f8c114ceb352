"""3-D StyleGAN discriminator of MAGVIT-v2 (its architecture figure; blur pooling as in the last row of its Table 5c).

Legend: B batch, C channels, T H W video.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2  # negative slope of the leaky ReLU


class BlurPool(nn.Module):
    """Halve T, H and W, rounding up, by a low-pass filter [1, 2, 1] / 4 and subsampling (Zhang 2019).

    With depth 1, only H and W are halved.
    """

    kernel: Tensor

    def __init__(self, channels: int, depth: int = 3):
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0]) / 4
        kernel = taps[:, None] * taps
        self.stride, self.padding = (1, 2, 2), (1, 1, 1, 1, 0, 0)
        if depth > 1:
            kernel = taps[:, None, None] * kernel
            self.stride, self.padding = (2, 2, 2), (1, 1, 1, 1, 1, 1)
        self.register_buffer("kernel", kernel.expand(channels, 1, depth, 3, 3).contiguous(), persistent=False)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        x = F.pad(x_BCTHW, self.padding, mode="replicate")
        return F.conv3d(x, self.kernel.to(x.dtype), stride=self.stride, groups=x.shape[1])


class Conv(nn.Conv3d):
    """Non-causal convolution over `depth` frames and 3x3 pixels that keeps the size."""

    def __init__(self, in_channels: int, out_channels: int, depth: int):
        super().__init__(in_channels, out_channels, (depth, 3, 3), padding=(0, 1, 1))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        # If the convolution itself pads time, oneDNN's bf16 weight gradient on a CPU reads uninitialized memory (torch
        # 2.14, oneDNN 3.12, AVX-512).
        side = self.kernel_size[0] // 2
        return super().forward(F.pad(x_BCTHW, (0, 0, 0, 0, side, side)))


class ResBlockDown(nn.Module):
    """Downsampling residual block: conv, blur pool, conv; skip: blur pool, 1x1x1 conv. The sum keeps its variance."""

    def __init__(self, in_channels: int, out_channels: int, depth: int = 3):
        super().__init__()
        self.conv1 = Conv(in_channels, out_channels, depth)
        self.pool = BlurPool(out_channels, depth)
        self.conv2 = Conv(out_channels, out_channels, depth)
        self.skip_pool = BlurPool(in_channels, depth)
        self.skip = nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        y = self.pool(F.leaky_relu(self.conv1(x_BCTHW), SLOPE))
        y = F.leaky_relu(self.conv2(y), SLOPE)
        return (self.skip(self.skip_pool(x_BCTHW)) + y) / math.sqrt(2)


class Discriminator(nn.Module):
    """Classify clips as real or reconstructed: [B, 3, T, H, W] in [-1, 1] -> float32 logits [B], high for real clips.

    Args:
        size: (T, H, W) of the training clips. The last features of clips of another size are pooled to the grid of the
            training clips, so that images and longer clips are accepted. With T = 1 all kernels are 2-D, for image
            tokenizers.
        base: channels of the first convolution.
        channel_multipliers: channels of each downsampling block as a multiple of base.
    """

    def __init__(
        self,
        size: tuple[int, int, int] = (17, 128, 128),
        base: int = 128,
        channel_multipliers: Sequence[int] = (2, 4, 4, 4, 4),
    ):
        super().__init__()
        widths = [base, *(base * m for m in channel_multipliers)]
        depth = 3 if size[0] > 1 else 1
        self.stem = Conv(3, base, depth)
        self.blocks = nn.ModuleList([ResBlockDown(a, b, depth) for a, b in pairwise(widths)])
        self.last = Conv(widths[-1], widths[-1], depth)
        self.grid = tuple(-(-side // 2 ** len(channel_multipliers)) for side in size)
        self.hidden = nn.Linear(widths[-1] * math.prod(self.grid), widths[-1])
        self.head = nn.Linear(widths[-1], 1)

    def forward(self, x_B3THW: Tensor) -> Tensor:
        x = F.leaky_relu(self.stem(x_B3THW), SLOPE)
        for block in self.blocks:
            x = block(x)
        x = F.leaky_relu(self.last(x), SLOPE)
        if x.shape[2:] != self.grid:
            x = F.adaptive_avg_pool3d(x, self.grid)
        x = F.leaky_relu(self.hidden(x.flatten(1)), SLOPE)
        return self.head(x)[:, 0].float()
