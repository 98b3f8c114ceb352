"""PSNR and SSIM of reconstructed clips.

Both take float clips in [-1,1], so the peak (the data range) is 2, and give one value per clip: average them over
clips yourself, over as many batches as there are. Nothing is rounded to 8 bits first.

Shape suffixes: B batch, C channels (RGB), T time, H height, W width.
"""

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from vidtok.checks import check_values

DATA_RANGE = 2.0
PSNR_CAP = 100.0  # dB; an exact copy would be infinite and so would every mean that holds it
SSIM_WINDOW = 11  # pixels, Gaussian of sigma 1.5


def psnr(x_BCTHW: Tensor, y_BCTHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio per clip, in dB: float [B,3,T,H,W] in [-1,1] -> float64 [B].

    10 log10(2^2 / MSE) with the mean squared error over all frames, pixels and channels of the clip, at most 100 dB.
    (The mean of per-frame PSNRs is another, larger number, and infinite for a clip with one exact black frame.)

    Raises:
        ValueError: see `check_pair`.
    """
    check_pair(x_BCTHW, y_BCTHW)
    mse_B = (x_BCTHW.double() - y_BCTHW.double()).square().mean((1, 2, 3, 4))
    return (10 * (DATA_RANGE**2 / mse_B).log10()).clamp(max=PSNR_CAP)


def ssim(x_BCTHW: Tensor, y_BCTHW: Tensor) -> Tensor:
    """Structural similarity per clip: float [B,3,T,H,W] in [-1,1] -> float64 [B], 1 for equal clips.

    Wang et al. 2004, equation 13: Gaussian window of 11x11 pixels and sigma 1.5, K1 = 0.01, K2 = 0.03, places where
    the window fits; mean over RGB channels and frames. (MAGVIT takes it on gray.)

    Raises:
        ValueError: see `check_pair`; frames smaller than the window.
    """
    check_pair(x_BCTHW, y_BCTHW)
    if min(x_BCTHW.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs frames of at least {SSIM_WINDOW} pixels a side, got {[*x_BCTHW.shape[-2:]]}")
    frames = zip(x_BCTHW.unbind(2), y_BCTHW.unbind(2), strict=True)  # by frame: five filtered copies of one, not of T
    return torch.stack([_frame_ssim(x_BCHW.float(), y_BCHW.float()) for x_BCHW, y_BCHW in frames]).mean(0)


def _frame_ssim(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    # The full map, because torchmetrics' own mean counts a border of reflected pixels in (and did not always).
    _, map_BCHW = structural_similarity_index_measure(
        x_BCHW, y_BCHW, sigma=1.5, data_range=DATA_RANGE, reduction="none", return_full_image=True
    )
    border = SSIM_WINDOW // 2
    return map_BCHW[..., border:-border, border:-border].double().mean((1, 2, 3))


def check_pair(x_BCTHW: Tensor, y_BCTHW: Tensor) -> None:
    """Refuse what is not a pair of clips.

    Raises:
        ValueError: shapes that differ or are not [B,3,T,H,W], integers, NaN, or values more than 5 % outside [-1,1].
    """
    if x_BCTHW.shape != y_BCTHW.shape or x_BCTHW.ndim != 5 or x_BCTHW.shape[1] != 3 or 0 in x_BCTHW.shape:
        raise ValueError(f"want two clips of one shape [B,3,T,H,W], got {[*x_BCTHW.shape]} and {[*y_BCTHW.shape]}")
    for clip in (x_BCTHW, y_BCTHW):
        if not clip.is_floating_point():
            raise ValueError(f"want floats in [-1,1], got {clip.dtype}")
        check_values(clip)
