"""Several clips in one picture or one video.

Legend: B clips, T H W video.
"""

import math

import torch
from torch import Tensor
from torchvision.utils import make_grid

COLUMNS = 6  # frames of each clip that a picture shows


def frame_rows(video_BCTHW: Tensor, columns: int = COLUMNS) -> Tensor:
    """[3, H', W'] in [-1, 1]: a row for each clip, of frames spread evenly over it."""
    last = video_BCTHW.shape[2] - 1
    frames = sorted({round(place) for place in torch.linspace(0, last, columns).tolist()})
    rows = video_BCTHW[:, :, frames].transpose(1, 2).flatten(0, 1)
    return make_grid(rows.clamp(-1, 1), nrow=len(frames), pad_value=1)


def tiled(video_BCTHW: Tensor) -> Tensor:
    """[3, T, H', W'] in [-1, 1]: the clips side by side, in a square as far as possible."""
    across = math.ceil(math.sqrt(len(video_BCTHW)))
    frames = [make_grid(frame.clamp(-1, 1), nrow=across, pad_value=1) for frame in video_BCTHW.unbind(2)]
    return torch.stack(frames, 1)
