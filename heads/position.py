"""Where a cell lies: learned vectors for its time, row and column, summed."""

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn


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
