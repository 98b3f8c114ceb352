"""Transforms of clips."""

import random

import numpy as np
import pytest
import torch

from vidtok.datasets import EvalTransform, SquareTransform, TrainTransform, demo_clip
from vidtok.datasets.transforms import (
    center_crop,
    rand_augment,
    random_flip,
    random_resized_crop,
    resize_short_side,
    three_crops,
)

rng = np.random.default_rng


@pytest.fixture(scope="module")
def video():
    return demo_clip(5, 96)[..., :64, :].repeat(2, 1, 1, 1, 1)  # [2,3,5,64,96]


def test_short_side(video):
    assert resize_short_side(video, 32).shape == (2, 3, 5, 32, 48)
    assert resize_short_side(video.transpose(-1, -2), 32).shape == (2, 3, 5, 48, 32)
    assert torch.equal(resize_short_side(video, 64), video)
    assert resize_short_side(video, 33).abs().max() <= 1


def test_crops(video):
    assert torch.equal(center_crop(video, 64), video[..., 16:80])
    crops = three_crops(video, 64)
    assert crops.shape == (6, 3, 5, 64, 64)
    for k, left in enumerate((0, 16, 32)):
        assert torch.equal(crops[k], video[0, ..., left : left + 64])
    assert torch.equal(three_crops(video.transpose(-1, -2), 64)[2], video[0].transpose(-1, -2)[..., 32:, :])
    small = three_crops(video, 32)  # along the long side, in the middle of the short one
    for k, left in enumerate((0, 32, 64)):
        assert torch.equal(small[k], video[0, ..., 16:48, left : left + 32])
    with pytest.raises(ValueError, match="does not fit"):
        center_crop(video, 65)


def test_a_square_crop_stretches_nothing():
    """On a ramp of 64 x 96 the step from pixel to pixel shows the side of the crop, the first value its place."""
    rows, columns = (torch.arange(n, dtype=torch.float32) for n in (64, 96))
    ramps = [(rows / 96)[:, None].expand(64, 96), (columns / 96).expand(64, 96), torch.zeros(64, 96)]
    ramp, transform = torch.stack(ramps)[None, :, None], SquareTransform(32, (0.5, 1.0))
    sides, places = [], []
    for seed in range(200):
        crop = transform(ramp, rng(seed))[0, :, 0]
        down, across = (crop[0, 24, 16] - crop[0, 8, 16]) / 16, (crop[1, 16, 24] - crop[1, 16, 8]) / 16
        assert down.item() == pytest.approx(across.item(), rel=0.02)
        sides.append(float(across) * 96 * 32)
        places.append(float(crop[1, 16, 16]) * 96)
    assert min(sides) == pytest.approx(32, abs=2) and max(sides) == pytest.approx(64, abs=2)
    assert min(places) < 25 and max(places) > 70
    assert torch.equal(SquareTransform(16, flip=True)(ramp, rng(3)), SquareTransform(16, flip=True)(ramp, rng(3)))
    with pytest.raises(ValueError, match=r"not \(0\.8, 1\.2\)"):
        SquareTransform(16, (0.8, 1.2))


def test_random_resized_crop_covers_its_ranges(video):
    """On a ramp the crop's place and size can be read off the corners."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 90), torch.linspace(-1, 1, 120), indexing="ij")
    ramp = torch.stack([y, x, x])[None, :, None]
    areas, ratios = [], []
    for seed in range(200):
        crop = random_resized_crop(ramp, 24, rng(seed), (0.3, 1.0))[0, :, 0]
        height = (crop[0, 18, 12] - crop[0, 6, 12]).item() / 2 * 90 * 2
        width = (crop[1, 12, 18] - crop[1, 12, 6]).item() / 2 * 120 * 2
        areas.append(height * width / (90 * 120))
        ratios.append(width / height)
    assert 0.28 < min(areas) < 0.35 and 0.9 < max(areas) < 1.02
    assert 0.73 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.36
    assert random_resized_crop(video[..., :8, :], 16, rng(0), (1.0, 1.0)).shape == (2, 3, 5, 16, 16)


def test_flip(video):
    flips = [torch.equal(random_flip(video, rng(s)), video.flip(-1)) for s in range(100)]
    assert 30 < sum(flips) < 70


def test_rand_augment_treats_frames_alike_and_leaves_other_randomness_alone(video):
    still = video[:, :, :1].expand(-1, -1, 5, -1, -1)
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.random()
    random.seed(1)
    np.random.seed(1)
    changed = 0
    for seed in range(12):
        out = rand_augment(still, rng(seed))
        assert out.shape == still.shape and out.dtype == torch.float32
        assert (out == out[:1, :, :1]).all()
        assert torch.equal(out, rand_augment(still, rng(seed)))
        changed += not torch.allclose(out, still, atol=0.01)
    assert changed >= 10
    assert (random.random(), np.random.random()) == expected


@pytest.mark.parametrize("augment", [None, "rand-m7-n4-mstd0.5-inc1"])
def test_recipes(video, augment):
    train = TrainTransform(32, augment=augment)
    assert train(video, rng(0)).shape == (2, 3, 5, 32, 32)
    assert torch.equal(train(video, rng(3)), train(video, rng(3)))
    assert not torch.equal(train(video, rng(3)), train(video, rng(4)))
    assert EvalTransform(32, 3)(video, rng(0)).shape == (6, 3, 5, 32, 32)
    assert torch.equal(EvalTransform(32)(video, rng(0)), EvalTransform(32, 3)(video, rng(1))[1::3])
    with pytest.raises(ValueError, match="crops"):
        EvalTransform(32, 5)


@pytest.mark.parametrize("transform", [TrainTransform, SquareTransform])
@pytest.mark.parametrize("scale", [(0.3,), (0.5, 0.3), (0.0, 1.0), (0.5, 1.5)])
def test_a_share_that_is_none_is_refused(transform, scale):
    with pytest.raises(ValueError, match=r"want scale=\(low, high\), shares of the"):
        transform(32, scale)
