"""The 3-D StyleGAN discriminator of MAGVIT-v2 (architecture figure; blur pooling is the last row of its Table 5c).

Legend: B batch, C channels, T H W video.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2  # of the leaky ReLU


class BlurPool(nn.Module):
    """Low-pass filter [1, 2, 1] / 4 along T, H and W, then every second value (Zhang 2019). Halves, rounding up."""

    def __init__(self, channels: int):
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0]) / 4
        kernel = taps[:, None, None] * taps[:, None] * taps
        self.register_buffer("kernel", kernel.expand(channels, 1, 3, 3, 3).contiguous(), persistent=False)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        x = F.pad(x_BCTHW, (1,) * 6, mode="replicate")
        return F.conv3d(x, self.kernel.to(x.dtype), stride=2, groups=x.shape[1])


class ResBlockDown(nn.Module):
    """conv, blur pool, conv; the skip is blur pool and 1x1x1; the sum keeps its variance."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.pool = BlurPool(out_channels)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1)
        self.skip_pool = BlurPool(in_channels)
        self.skip = nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        y = self.pool(F.leaky_relu(self.conv1(x_BCTHW), SLOPE))
        y = F.leaky_relu(self.conv2(y), SLOPE)
        return (self.skip(self.skip_pool(x_BCTHW)) + y) / math.sqrt(2)


class Discriminator(nn.Module):
    """[B, 3, T, H, W] in [-1, 1] -> logits [B], high for real clips.

    Args:
        size: (T, H, W) of the training clips. Others are pooled to the grid that these leave, so that images and longer
            clips pass too.
        base: channels of the first convolution.
        multipliers: channels of each halving over base.
    """

    def __init__(self, size: tuple[int, int, int] = (17, 128, 128), base: int = 128, multipliers=(2, 4, 4, 4, 4)):
        super().__init__()
        widths = [base, *(base * m for m in multipliers)]
        self.stem = nn.Conv3d(3, base, 3, padding=1)
        self.blocks = nn.ModuleList([ResBlockDown(a, b) for a, b in pairwise(widths)])
        self.last = nn.Conv3d(widths[-1], widths[-1], 3, padding=1)
        self.grid = tuple(-(-side // 2 ** len(multipliers)) for side in size)
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
