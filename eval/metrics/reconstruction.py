"""PSNR, SSIM, MS-SSIM and visible block edges of reconstructed clips; bit rate and codebook usage.

Metrics of clips take floats in [-1,1], so the data range is 2, and return one value per clip. The caller averages them
over clips. Nothing is rounded to 8 bits.

Shape suffixes: B batch, C channels (RGB), T time, H height, W width.
"""

import math

import torch
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from vidtok.checks import check_values

DATA_RANGE = 2.0
PSNR_CAP = 100.0  # dB; without it, one exact copy would make the mean over clips infinite
SSIM_WINDOW = 11  # pixels, Gaussian of sigma 1.5
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # from the finest scale
FLAT = 1e-4  # added to mean gradients, so that ratios of flat clips are finite; an 80th of an 8-bit step


def psnr(x_BCTHW: Tensor, y_BCTHW: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio per clip in dB: float [B,3,T,H,W] in [-1,1] -> float64 [B].

    It is 10 log10(2^2 / MSE) with the mean squared error over all frames, pixels and channels of the clip, at most
    100 dB. The mean of per-frame PSNRs is larger, and infinite for a clip with one exactly reconstructed frame.

    Raises:
        ValueError: see `check_pair`.
    """
    check_pair(x_BCTHW, y_BCTHW)
    mse_B = (x_BCTHW.double() - y_BCTHW.double()).square().mean((1, 2, 3, 4))
    return (10 * (DATA_RANGE**2 / mse_B).log10()).clamp(max=PSNR_CAP)


def ssim(x_BCTHW: Tensor, y_BCTHW: Tensor) -> Tensor:
    """Compute the structural similarity per clip: float [B,3,T,H,W] in [-1,1] -> float64 [B], 1 for equal clips.

    The definition is equation 13 of Wang et al. 2004 with a Gaussian window of 11x11 pixels and sigma 1.5, K1 = 0.01
    and K2 = 0.03, at positions where the window fits. It is averaged over RGB channels and frames. (MAGVIT computes it
    on gray frames.)

    Raises:
        ValueError: see `check_pair`; frames smaller than the window.
    """
    check_pair(x_BCTHW, y_BCTHW)
    if min(x_BCTHW.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs frames of at least {SSIM_WINDOW} pixels a side, got {[*x_BCTHW.shape[-2:]]}")
    frames = zip(x_BCTHW.unbind(2), y_BCTHW.unbind(2), strict=True)  # by frame: SSIM makes five filtered copies
    return torch.stack([_frame_ssim(x_BCHW.float(), y_BCHW.float()) for x_BCHW, y_BCHW in frames]).mean(0)


def _frame_ssim(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    # Use the full map, because the mean of torchmetrics includes a border of reflected pixels in some versions.
    _, map_BCHW = structural_similarity_index_measure(
        x_BCHW, y_BCHW, sigma=1.5, data_range=DATA_RANGE, reduction="none", return_full_image=True
    )
    border = SSIM_WINDOW // 2
    return map_BCHW[..., border:-border, border:-border].double().mean((1, 2, 3))


def ms_ssim(x_BCTHW: Tensor, y_BCTHW: Tensor) -> Tensor:
    """Compute the multi-scale structural similarity per clip: float [B,3,T,H,W] in [-1,1] -> float64 [B], at most 1.

    The definition is that of Wang et al. 2003 in the implementation of torchmetrics, with negative contrast terms set
    to 0. It is averaged over RGB channels and frames. Five scales need sides of at least 176 pixels. On smaller frames
    the coarsest scales are left out, and the weights of the others are normalized.

    Raises:
        ValueError: see `check_pair`; frames smaller than the window.
    """
    check_pair(x_BCTHW, y_BCTHW)
    side = min(x_BCTHW.shape[-2:])
    # torchmetrics requires side // (scales - 1)^2 to be at least the window, more than four scales need.
    weights = [weight for scale, weight in enumerate(MS_SSIM_WEIGHTS) if side // max(2**scale, scale**2) >= SSIM_WINDOW]
    if not weights:
        raise ValueError(f"MS-SSIM needs frames of at least {SSIM_WINDOW} pixels a side, got {[*x_BCTHW.shape[-2:]]}")
    betas = tuple(weight / sum(weights) for weight in weights)
    values = [
        multiscale_structural_similarity_index_measure(
            x_BCHW.float(), y_BCHW.float(), data_range=DATA_RANGE, betas=betas, normalize="relu", reduction="none"
        ).reshape(-1)
        for x_BCHW, y_BCHW in zip(x_BCTHW.unbind(2), y_BCTHW.unbind(2), strict=True)
    ]
    return torch.stack(values).double().mean(0)


def block_edges(x_BCTHW: Tensor, y_BCTHW: Tensor, stride: tuple[int, int, int]) -> tuple[Tensor, Tensor] | None:
    """Measure the visibility of the token grid in reconstructions: two float64 [B], both 1 for equal clips.

    Gradients are absolute differences of neighboring pixels, vertical and horizontal, over RGB and frames. The phase of
    a gradient is its position modulo the stride; gradients of the last phase cross a border between two grid cells.

    - ratio: (mean gradient across borders / mean gradient elsewhere) of the reconstruction, divided by the same of the
      original. Above 1, block edges are visible.
    - phases: mean gradient at each phase relative to the original's, the largest divided by the smallest. It also rises
      with periodic patterns inside the cells, which the ratio misses. Directions with the same stride share their
      phases; for different strides, it is the mean over both directions.

    Args:
        x_BCTHW: originals. y_BCTHW: reconstructions.
        stride: stride of the tokenizer, (s_t, s_h, s_w). Directions with stride 1 or a single cell have no borders.

    Returns:
        (ratio, phases), or None if neither direction has borders.

    Raises:
        ValueError: see `check_pair`.
    """
    check_pair(x_BCTHW, y_BCTHW)
    directions = [(dim, s) for dim, s in ((3, stride[1]), (4, stride[2])) if 1 < s < x_BCTHW.shape[dim]]
    if not directions:
        return None
    x_Bs, y_Bs = ([_gradient_phases(clip, dim, s) for dim, s in directions] for clip in (x_BCTHW, y_BCTHW))
    ratio_B = _border_ratio(y_Bs) / _border_ratio(x_Bs)
    if len({s for _, s in directions}) == 1:
        x_Bs, y_Bs = ([torch.stack(phases).sum(0)] for phases in (x_Bs, y_Bs))
    relative = [y / x for x, y in zip(x_Bs, y_Bs, strict=True)]
    return ratio_B, torch.stack([phase_Bs.amax(1) / phase_Bs.amin(1) for phase_Bs in relative]).mean(0)


def _gradient_phases(x_BCTHW: Tensor, dim: int, stride: int) -> Tensor:
    """Compute the mean absolute gradient along `dim` at each phase of the stride, float64 [B, stride]."""
    gradient = x_BCTHW.float().diff(dim=dim).abs().movedim(dim, -1)
    return torch.stack([gradient[..., p::stride].double().mean((1, 2, 3, 4)) for p in range(stride)], 1) + FLAT


def _border_ratio(directions: list[Tensor]) -> Tensor:
    border_B = torch.stack([phase_Bs[:, -1] for phase_Bs in directions]).sum(0)
    return border_B / torch.stack([phase_Bs[:, :-1].mean(1) for phase_Bs in directions]).sum(0)


def check_pair(x_BCTHW: Tensor, y_BCTHW: Tensor) -> None:
    """Check that two tensors are a pair of clips.

    Raises:
        ValueError: shapes that differ or are not [B,3,T,H,W], integers, NaN, or values more than 5 % outside [-1,1].
    """
    if x_BCTHW.shape != y_BCTHW.shape or x_BCTHW.ndim != 5 or x_BCTHW.shape[1] != 3 or 0 in x_BCTHW.shape:
        raise ValueError(f"want two clips of one shape [B,3,T,H,W], got {[*x_BCTHW.shape]} and {[*y_BCTHW.shape]}")
    for clip in (x_BCTHW, y_BCTHW):
        if not clip.is_floating_point():
            raise ValueError(f"want floats in [-1,1], got {clip.dtype}")
        check_values(clip)


class CodebookUsage:
    """Exact streaming histogram of token ids, whose size is the number of distinct ids.

    Args:
        size: number of codes, 2^bits for LFQ; ids are 0 <= id < size, size at most 2^62.

    Raises:
        ValueError: `size` out of range.
    """

    def __init__(self, size: int):
        if not 2 <= size <= 2**62:
            raise ValueError(f"a codebook has 2 to 2^62 codes, got {size}")
        self.size = size
        self.ids = torch.empty(0, dtype=torch.int64)  # distinct, ascending
        self.counts = torch.empty(0, dtype=torch.int64)

    def update(self, ids: Tensor) -> None:
        """Count int64 ids of any shape.

        Raises:
            ValueError: another dtype, or an id outside the codebook.
        """
        if ids.dtype != torch.int64:
            raise ValueError(f"ids are int64, got {ids.dtype}")
        new_ids, new_counts = ids.flatten().cpu().unique(return_counts=True)
        if len(new_ids) and not (new_ids[0] >= 0 and new_ids[-1] < self.size):
            raise ValueError(f"ids {new_ids[0]} to {new_ids[-1]} do not fit a codebook of {self.size} codes")
        self.ids, place = torch.cat([self.ids, new_ids]).unique(return_inverse=True)
        counts = torch.cat([self.counts, new_counts])
        self.counts = torch.zeros_like(self.ids).index_add_(0, place, counts)

    @property
    def tokens(self) -> int:
        """Number of ids counted."""
        return int(self.counts.sum())

    @property
    def distinct(self) -> int:
        """Number of codes that occurred at least once."""
        return len(self.ids)

    @property
    def entropy_bits(self) -> float:
        """Entropy of the empirical distribution, in bits; 0.0 before the first id.

        This is the plug-in estimate. It never exceeds log2(tokens), so it is too low for few tokens and many codes.
        """
        p = self.counts.double() / max(self.tokens, 1)
        return -(p * p.log2()).sum().item() + 0.0  # + 0.0: not -0.0

    @property
    def bit_balance(self) -> Tensor:
        """Fraction of tokens in which bit i of the id is 1: float64 [bits], bit 0 first; 0.5 is balanced."""
        bits = torch.arange((self.size - 1).bit_length())
        ones = (self.ids[:, None] >> bits) & 1
        return (ones * self.counts[:, None]).sum(0).double() / max(self.tokens, 1)

    def summary(self) -> dict:
        """Return all statistics as plain numbers, for JSON."""
        return {
            "size": self.size,
            "tokens": self.tokens,
            "distinct": self.distinct,
            "usage": self.distinct / self.size,
            "entropy_bits": self.entropy_bits,
            "bit_balance": self.bit_balance.tolist(),
        }


def bits_per_pixel(bits: float, stride: tuple[int, int, int], frames: int, height: int, width: int) -> float:
    """Compute the rate of a causal tokenizer in bits per pixel, where a pixel is one RGB triple of one frame.

    The rate is bits (1 + (T-1)/s_t) (H/s_h) (W/s_w) / (T H W), since the first frame has a latent of its own. For 18
    bits and stride (4, 8, 8) it is 0.0827 at 17 frames, 0.0703 for T to infinity, and 0.28125 for an image.

    Raises:
        ValueError: T is not 1 + a multiple of s_t, or H or W no multiple of s_h or s_w.
    """
    s_t, s_h, s_w = stride
    if frames < 1 or (frames - 1) % s_t or height < 1 or height % s_h or width < 1 or width % s_w:
        raise ValueError(
            f"stride {s_t}x{s_h}x{s_w} needs 1+{s_t}k frames, height a multiple of {s_h}, width a multiple of {s_w}; "
            f"got {frames}x{height}x{width}"
        )
    tokens = (1 + (frames - 1) // s_t) * (height // s_h) * (width // s_w)
    return bits * tokens / math.prod((frames, height, width))
