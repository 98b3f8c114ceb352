import math

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from vidtok.eval import block_edges, block_mean_baseline, psnr, ssim


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 5, 24, 32, generator=generator) * 2 - 1
    y = (x + 0.2 * torch.randn(x.shape, generator=generator)).clamp(-1, 1)
    return x, y


def test_psnr_is_the_8_bit_formula_per_clip(pair):
    x, y = ((v.double() + 1) * 127.5 for v in pair)
    for clip in range(2):
        expected = 20 * math.log10(255) - 10 * math.log10(((x[clip] - y[clip]) ** 2).mean())
        assert psnr(*pair)[clip].item() == pytest.approx(expected, abs=1e-4)


def test_psnr_of_a_constant_error():
    x = torch.zeros(1, 3, 1, 8, 8)
    assert psnr(x, x + 0.2).item() == pytest.approx(20.0, abs=1e-4)  # peak 2, error 0.2


def test_psnr_of_equal_clips_is_finite(pair):
    assert psnr(pair[0], pair[0]).tolist() == [100.0, 100.0]


def reference_ssim(x_HW: np.ndarray, y_HW: np.ndarray) -> float:
    """Wang et al. 2004, equation 13, by scipy filters on one float64 channel in [-1,1]."""
    window = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window /= window.sum()

    def blur(v):
        return correlate1d(correlate1d(v, window, axis=0), window, axis=1)[5:-5, 5:-5]

    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    mx, my = blur(x_HW), blur(y_HW)
    vx, vy, cov = blur(x_HW**2) - mx**2, blur(y_HW**2) - my**2, blur(x_HW * y_HW) - mx * my
    return (((2 * mx * my + c1) * (2 * cov + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()


def test_ssim_is_the_published_formula(pair):
    x, y = (v.double().numpy() for v in pair)
    for clip in range(2):
        frames = [reference_ssim(x[clip, c, t], y[clip, c, t]) for c in range(3) for t in range(5)]
        assert ssim(*pair)[clip].item() == pytest.approx(np.mean(frames), abs=1e-5)


def test_ssim_of_equal_clips_is_one(pair):
    assert ssim(pair[0], pair[0]).tolist() == pytest.approx([1.0, 1.0], abs=1e-6)


STRIDE = (4, 8, 8)


def test_block_edges_of_equal_clips_are_one(pair):
    for clip in (pair[0], torch.zeros(1, 3, 1, 16, 16)):
        assert [v.unique().tolist() for v in block_edges(clip, clip, STRIDE)] == [[1.0], [1.0]]


def test_block_edges_are_the_ratio_of_gradients():
    ramp = torch.arange(16) * 0.02
    x_BCTHW = (ramp[:, None] + ramp).expand(2, 3, 5, 16, 16)  # gradient 0.02 everywhere
    steps = (torch.arange(16) // 8) * 0.1
    y_BCTHW = (x_BCTHW + steps[:, None] + steps).clone()  # and 0.12 across the borders
    y_BCTHW[1] = x_BCTHW[1]
    ratio_B, phases_B = block_edges(x_BCTHW, y_BCTHW, STRIDE)
    assert ratio_B.tolist() == pytest.approx([6, 1], rel=0.01)
    assert phases_B.tolist() == pytest.approx([6, 1], rel=0.01)


def test_a_lattice_inside_cells_shows_in_the_phases():
    ramp = torch.arange(32) * 0.01 - 0.3
    x_BCTHW = ramp.expand(1, 3, 1, 32, 32) + ramp[:, None]
    steps = (torch.arange(32) + 4) // 8 * 0.05 - 0.1
    ratio_B, phases_B = block_edges(x_BCTHW, x_BCTHW + steps + steps[:, None], STRIDE)
    assert ratio_B.item() == pytest.approx(0.01 / ((6 * 0.01 + 0.06) / 7), rel=0.02)
    assert phases_B.item() == pytest.approx(6, rel=0.02)


def test_block_edges_need_borders(pair):
    assert block_edges(*pair, (4, 1, 1)) is None
    assert block_edges(*pair, (4, 24, 32)) is None
    ratio_B, _ = block_edges(*pair, (4, 24, 16))  # one row of cells, two columns
    assert ratio_B.isfinite().all()


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 1, 16, 16), r"\[B,3,T,H,W\], got \[3, 1, 16, 16\]"),
        (torch.zeros(1, 1, 1, 16, 16), r"\[B,3,T,H,W\]"),
        (torch.zeros(1, 3, 0, 16, 16), r"\[B,3,T,H,W\]"),
        (torch.zeros(1, 3, 1, 16, 16, dtype=torch.uint8), "floats in .* got torch.uint8"),
        (torch.full((1, 3, 1, 16, 16), 255.0), r"not \[255, 255\]"),
        (torch.full((1, 3, 1, 16, 16), float("nan")), r"not \[nan, nan\]"),
    ],
)
def test_what_is_no_clip_is_refused(metric, x, message):
    with pytest.raises(ValueError, match=message):
        metric(x, x)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="one shape"):
        psnr(torch.zeros(1, 3, 1, 16, 16), torch.zeros(1, 3, 2, 16, 16))


def test_ssim_needs_room_for_its_window():
    x = torch.zeros(1, 3, 1, 8, 16)
    with pytest.raises(ValueError, match="at least 11"):
        ssim(x, x)


def test_overshoot_of_5_percent_is_tolerated():
    x = torch.full((1, 3, 1, 16, 16), 1.04)
    assert psnr(x, x).item() == 100.0


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_block_mean_baseline_keeps_a_constant_clip(frames):
    x = torch.full((2, 3, frames, 16, 24), 0.3)
    torch.testing.assert_close(block_mean_baseline(x), x)


def test_block_mean_baseline_keeps_the_means_of_time_cells():
    """Clips that are constant in space but not in time: the cells are frame 0, then 1-4, 5-8."""
    x = torch.linspace(-0.8, 0.8, 9)[None, None, :, None, None].expand(1, 3, 9, 16, 16)
    levels = block_mean_baseline(x)[0, 0, :, 0, 0]
    expected = [x[0, 0, 0, 0, 0]] + 4 * [x[0, 0, 1:5, 0, 0].mean()] + 4 * [x[0, 0, 5:9, 0, 0].mean()]
    torch.testing.assert_close(levels, torch.stack(expected))


def test_block_mean_baseline_refuses_a_grid_that_does_not_fit():
    with pytest.raises(ValueError, match="4x8x8 does not fit"):
        block_mean_baseline(torch.zeros(1, 3, 4, 16, 16))
