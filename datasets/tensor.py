"""Frames as tensors: uint8 pictures to [-1, 1] and back, and the one way sizes are changed."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Size = int | tuple[int, int] | None


def frames_to_video(frames_THWC: np.ndarray | Tensor) -> Tensor:
    """uint8 [T,H,W,3] -> float32 [3,T,H,W] in [-1, 1]."""
    frames_CTHW = torch.as_tensor(frames_THWC).permute(3, 0, 1, 2)
    return frames_CTHW.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


def video_to_frames(video_CTHW: Tensor) -> np.ndarray:
    """Float [3,T,H,W] in [-1, 1] (clamped) or uint8 [3,T,H,W] -> uint8 [T,H,W,3], rounded to nearest."""
    if video_CTHW.dtype != torch.uint8:
        video_CTHW = video_CTHW.float().add(1).mul(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return video_CTHW.permute(1, 2, 3, 0).contiguous().cpu().numpy()


def resize_video(video_CTHW: Tensor, size: Size, multiple: int = 8) -> Tensor:
    """Resize float [3,T,H,W] in [-1, 1]: bicubic, antialiased, aspect kept, then cut at the centre.

    size: int, the short side becomes `size` and the long side is cut to a multiple of `multiple`; (h, w), resized to
    cover and cut to exactly h x w; None, native size with both sides cut to a multiple of `multiple`.
    Raises ValueError for a size below 1, or where nothing would be left.
    """
    height, width = video_CTHW.shape[-2:]
    (new_h, new_w), (cut_h, cut_w) = plan_resize(height, width, size, multiple)
    if (new_h, new_w) != (height, width):
        video_TCHW = F.interpolate(video_CTHW.transpose(0, 1), (new_h, new_w), mode="bicubic", antialias=True)
        video_CTHW = video_TCHW.clamp_(-1, 1).transpose(0, 1)
    top, left = (new_h - cut_h) // 2, (new_w - cut_w) // 2
    return video_CTHW[..., top : top + cut_h, left : left + cut_w].contiguous()


def check_size(size: Size) -> None:
    """Raises ValueError unless None, a positive int or two of them."""
    sides = size if isinstance(size, tuple | list) else (size, size)
    if size is not None and (len(sides) != 2 or any(not isinstance(side, int) or side < 1 for side in sides)):
        raise ValueError(f"size is None, pixels of the short side, or (height, width), all above 0, not {size!r}")


def plan_resize(height: int, width: int, size: Size, multiple: int = 8) -> tuple[tuple[int, int], tuple[int, int]]:
    """((h, w) to resize to, (h, w) left after the centre cut) for pictures of height x width; see `resize_video`."""
    if size is None:
        resized, cut = (height, width), (height // multiple * multiple, width // multiple * multiple)
    elif isinstance(size, int):
        scale = size / min(height, width)
        resized = max(size, round(height * scale)), max(size, round(width * scale))
        cut = tuple(s if s == size else s // multiple * multiple for s in resized)
    else:
        scale = max(size[0] / height, size[1] / width)
        resized, cut = (max(size[0], round(height * scale)), max(size[1], round(width * scale))), tuple(size)
    if min(cut) < 1:
        raise ValueError(f"size={size} leaves nothing of {height}x{width} pictures (sides are cut to {multiple}n)")
    return resized, cut
