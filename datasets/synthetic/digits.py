"""Rendered videos: moving digits as a labeled dataset and as training batches, and the demo clip.

The label of moving digits is the kind of motion: a single frame carries no information about it.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vidtok.checks import check_clip, check_counts
from vidtok.datasets.annotations.table import canonical_split
from vidtok.datasets.labeled import LabeledDataset, Sample, Transform
from vidtok.datasets.loading import WHOLE, Shard, is_image_batch, prefetch, shard_rows

# Per motion: index of the state that changes (x, y, angle, size), and its direction. Ranges are periodic: positions
# wrap around at the borders, and the size jumps from the largest to the smallest. Therefore each state is uniformly
# distributed at every moment, for every motion.
_MOTIONS = {
    "left": (0, -1),
    "right": (0, 1),
    "up": (1, -1),
    "down": (1, 1),
    "turning left": (2, -1),
    "turning right": (2, 1),
    "growing": (3, 1),
    "shrinking": (3, -1),
    "still": (3, 0),
}
_SMALLEST, _LARGEST = 0.3, 0.6  # height of the digit as a share of the frame's
_TRAVEL = (0.4, 0.8)  # distance from the first frame to the last, as a share of the range


class MovingDigits(LabeledDataset):
    """scikit-learn's 1797 handwritten digits in motion; the label is the kind of motion.

    Every digit moves in each of nine ways: left, right, up, down, turning left, turning right, growing, shrinking,
    still. Position, angle, size and color at any one moment have the same distribution in all nine classes, so that a
    single frame carries no information about the label. A video is a function of (seed, i).

    A sample has video float32 [1,3,frames,size,size] in [-1, 1] (before `transform`), label 0..8, id "digit/motion",
    and timestamps j/25 s.

    Args:
        split: "val", every fifth of the digits, or "train", the others.
        frames: frames per video, at least 1.
        size: height and width in pixels, at least 16.
        seed: seed of the videos and of the transform.
        transform: see `LabeledVideos`. A transform with flip=True is rejected: it would turn left into right.
        classes: class names in the order of the class numbers, such as those of a trained head; None, the order above.

    Raises:
        ValueError: illegal arguments, or classes without one of the motions.
    """

    split: str
    flip_keeps_label = False
    fps = 25.0

    def __init__(
        self,
        split: str = "train",
        frames: int = 17,
        size: int = 64,
        seed: int = 0,
        transform: Transform | None = None,
        classes: Sequence[str] | None = None,
    ):
        from sklearn.datasets import load_digits

        split = canonical_split(split)
        if split not in ("train", "val"):
            raise ValueError(f"split={split!r} is not 'train' or 'val'")
        if frames < 1 or size < 16:
            raise ValueError(f"{frames=} must be at least 1 and {size=} at least 16")
        self.split, self.frames, self.size = split, frames, size
        self.classes = list(_MOTIONS if classes is None else classes)
        if missing := [motion for motion in _MOTIONS if motion not in self.classes]:
            raise ValueError(f"the classes lack {missing[0]!r}: moving digits need the classes {', '.join(_MOTIONS)}")
        self._digits = torch.from_numpy(load_digits().images).float() / 16
        numbers = [n for n in range(len(self._digits)) if (n % 5 == 4) == (split == "val")]
        self.labels = [self.classes.index(motion) for _ in numbers for motion in _MOTIONS]
        self.ids = [f"{number:04d}/{motion}" for number in numbers for motion in _MOTIONS]
        super().__init__(transform, seed)

    if TYPE_CHECKING:

        def __getitem__(self, index: int) -> Sample: ...  # rendering never fails

    def draw(self, index: int, epoch: int | None = None) -> Sample:
        number, motion = self.ids[index].split("/")  # not from `index`: `keep` may have removed samples
        # The video is the same in every epoch.
        video_rng = np.random.default_rng([self.seed, int(number), list(_MOTIONS).index(motion)])
        place, direction = _MOTIONS[motion]
        states = np.tile(video_rng.random(4), (self.frames, 1))  # x, y, angle, size, each in [0, 1)
        states[:, place] += direction * video_rng.uniform(*_TRAVEL) * np.linspace(0, 1, self.frames)
        video = self._render(self._digits[int(number)], torch.from_numpy(states % 1).float(), video_rng)[None]
        if self.transform is not None:
            epoch = int(self._epoch[0]) if epoch is None else epoch
            video = self.transform(video, np.random.default_rng([self.seed, epoch, index, 0]))
        timestamps = torch.arange(self.frames, dtype=torch.float64) / self.fps
        return Sample(video, self.labels[index], self.ids[index], timestamps.expand(len(video), -1))

    def _render(self, digit_HW: Tensor, states_T4: Tensor, rng: np.random.Generator) -> Tensor:
        """Render [3,T,size,size] in [-1, 1]: light on dark or dark on light, in two colors."""
        x, y, angle, size = states_T4.T
        axis = (torch.arange(self.size) + 0.5) * 2 / self.size - 1
        y_THW = _wrapped(axis[None, :, None] - (2 * y - 1)[:, None, None]).expand(-1, -1, self.size)
        x_THW = _wrapped(axis[None, None, :] - (2 * x - 1)[:, None, None]).expand(-1, self.size, -1)
        cos, sin = ((f(angle * 2 * math.pi))[:, None, None] for f in (torch.cos, torch.sin))
        half = (_SMALLEST * (_LARGEST / _SMALLEST) ** size)[:, None, None]
        grid = torch.stack([x_THW * cos + y_THW * sin, y_THW * cos - x_THW * sin], dim=-1) / half[..., None]
        # The digits have 8 x 8 pixels: bicubic upsampling, with a margin of zeros for a soft border.
        ink = F.pad(digit_HW, (1, 1, 1, 1)).expand(self.frames, 1, -1, -1)
        ink_THW = F.grid_sample(ink, grid * 0.8, mode="bicubic", align_corners=False)[:, 0].clamp(0, 1)
        dark, light = rng.uniform(-1, -0.4, 3), rng.uniform(0.4, 1, 3)
        ground, pen = (torch.tensor(c, dtype=torch.float32) for c in rng.permutation([dark, light]))
        return torch.lerp(ground[:, None, None, None], pen[:, None, None, None], ink_THW)


def _wrapped(distance: Tensor) -> Tensor:
    """Return the signed distance to the nearest of the copies that repeat with period 2."""
    return torch.remainder(distance + 1, 2) - 1


class DigitClips:
    """Endless sequence of batches of `MovingDigits`, as in `ClipFolder`: batch i is a pure function of (seed, i).

    `dataset[i]` is float32 in [-1, 1]: [batch_size, 3, frames, crop, crop] of videos, or, for a fraction
    `image_fraction` of all batches, evenly spread, [image_batch_size, 3, 1, crop, crop] of images.

    Args:
        frames: frames per clip, 1 + a multiple of the stride in time.
        crop: height and width in pixels, a multiple of the stride in space.
        batch_size: clips per batch of videos.
        image_batch_size: images per batch of images; None, 4 * batch_size.
        image_fraction: share of batches that are images, 0 to 1.
        seed: seed of all random choices.
        split: "train" or "val", see `MovingDigits`.
        stride: (time, height, width) of the tokenizer to train.

    Raises:
        ValueError: illegal arguments.
    """

    def __init__(
        self,
        frames: int = 17,
        crop: int = 64,
        batch_size: int = 8,
        image_batch_size: int | None = None,
        image_fraction: float = 0.1,
        seed: int = 0,
        split: str = "train",
        stride: tuple[int, int, int] = (4, 8, 8),
    ):
        self.seed, self.image_fraction = seed, image_fraction
        self.batch_size, self.image_batch_size = batch_size, image_batch_size or 4 * batch_size
        check_counts(batch_size=self.batch_size, image_batch_size=self.image_batch_size)
        check_clip(frames, crop, stride)
        self.videos, self.images = (MovingDigits(split, count, crop, seed) for count in (frames, 1))

    def __getitem__(self, index: int) -> Tensor:
        return self.shard_of(index, WHOLE)

    def shard_of(self, index: int, shard: Shard) -> Tensor:
        """Return the rows of one shard of `dataset[index]`.

        Raises:
            ValueError: the batch is not divisible by the number of shards.
        """
        rng = np.random.default_rng([self.seed, index])
        images = is_image_batch(index, self.image_fraction)
        digits, size = (self.images, self.image_batch_size) if images else (self.videos, self.batch_size)
        rows, chosen = shard_rows(shard, size), rng.integers(len(digits), size=size)
        return torch.cat([digits[int(chosen[row])].video for row in rows])

    def loader(self, start: int = 0, workers: int = 0, shard: Shard = WHOLE) -> Iterator[Tensor]:
        """Yield one shard of batches start, start + 1, ..., prefetched if there is more than one worker.

        A single worker process is not started: next to a training step on a CPU, rendering costs little.
        """
        for size in (self.batch_size, self.image_batch_size):
            shard_rows(shard, size)  # fail now, not at the first such batch
        return prefetch(partial(self.shard_of, shard=shard), start, workers if workers > 1 else 0)

    def summary(self) -> str:
        """Return "": rendered videos are never skipped (see `ClipFolder.summary`)."""
        return ""


def demo_clip(frames: int = 33, size: int = 128, seed: int = 0) -> Tensor:
    """Render the demo clip: float32 [1,3,frames,size,size] in [-1, 1], deterministic in its arguments.

    It shows a panning landscape of 1/f noise and two rotating textured bodies that pass in front of it and of each
    other, with soft shading and shadows. Frame t does not depend on `frames`; motion is designed for 30 frames/s.

    Args:
        frames: number of frames, at least 1.
        size: height and width in pixels, at least 16.
        seed: seed of textures and motion.

    Raises:
        ValueError: frames or size below its minimum.
    """
    if frames < 1 or size < 16:
        raise ValueError(f"{frames=} must be at least 1 and {size=} at least 16")
    rng = torch.Generator().manual_seed(seed)
    ground = _texture(rng, 1.6, (0.42, 0.45, 0.34), (0.15, 0.12, 0.10))
    skins = [
        _texture(rng, 1.5, (0.74, 0.42, 0.24), (0.13, 0.10, 0.06)),
        _texture(rng, 1.4, (0.30, 0.46, 0.66), (0.09, 0.10, 0.10)),
    ]
    phase = torch.rand(8, generator=rng).mul(2 * math.pi).tolist()
    axis = torch.linspace(-1, 1, size)
    y_HW, x_HW = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([_frame(t, x_HW, y_HW, ground, skins, phase) for t in range(frames)], dim=1)[None].mul(2).sub(1)


def _frame(t: int, x_HW: Tensor, y_HW: Tensor, ground: Tensor, skins: list[Tensor], phase: list[float]) -> Tensor:
    """Render frame `t` as [3,H,W] in [0, 1]."""
    time = t / 30
    pan_x, pan_y = 0.35 * time + 0.05 * math.sin(2 * time + phase[0]), 0.08 * math.sin(1.3 * time + phase[1])
    zoom = 0.55 + 0.03 * math.sin(time + phase[2])
    image_CHW = _sample(ground, x_HW * zoom + pan_x, y_HW * zoom + pan_y)
    image_CHW = image_CHW * (1.08 - 0.25 * y_HW - 0.12 * (x_HW**2 + y_HW**2))  # light from above, darker corners
    for i, skin in enumerate(skins):
        angle = phase[3 + i] + (1.6 - 2.9 * i) * time
        cx = 0.62 * math.sin((1.5 + 0.4 * i) * time + phase[5 + i])
        cy = 0.15 - 0.3 * i + 0.25 * math.cos((1.1 + 0.5 * i) * time + phase[6 + i])
        image_CHW = _body(image_CHW, x_HW - cx, y_HW - cy, 0.42 - 0.1 * i, angle, skin)
    return image_CHW.clamp(0, 1)


def _body(image_CHW: Tensor, x_HW: Tensor, y_HW: Tensor, radius: float, angle: float, skin: Tensor) -> Tensor:
    """Paint a lumpy pebble and its shadow, centered at (0, 0) of the shifted coordinates."""
    edge = 3 / x_HW.shape[-1]  # a soft rim of about 1.5 pixels
    shadow_HW = torch.sigmoid((radius - _distance(x_HW - 0.06, y_HW - 0.1, angle)) / 0.05)
    image_CHW = image_CHW * (1 - 0.45 * shadow_HW)
    u_HW = x_HW * math.cos(angle) + y_HW * math.sin(angle)
    v_HW = y_HW * math.cos(angle) - x_HW * math.sin(angle)
    distance_HW = _distance(x_HW, y_HW, angle)
    height_HW = (1 - (distance_HW / radius) ** 2).clamp(min=0).sqrt()  # half-sphere: distorts texture, gives normals
    bulge_HW = 0.9 / (0.6 + 0.4 * height_HW)
    light_HW = 0.35 + 0.75 * (0.75 * height_HW - 0.45 * x_HW / radius - 0.55 * y_HW / radius).clamp(0, 1.2)
    gloss_HW = 0.35 * torch.exp(-((x_HW / radius + 0.35) ** 2 + (y_HW / radius + 0.42) ** 2) / 0.03)
    body_CHW = _sample(skin, u_HW * bulge_HW, v_HW * bulge_HW) * light_HW + gloss_HW
    return torch.lerp(image_CHW, body_CHW, torch.sigmoid((radius - distance_HW) / edge * 2.5))


def _distance(x_HW: Tensor, y_HW: Tensor, angle: float) -> Tensor:
    """Compute the distance from the center in a metric whose circles are lumpy and rotate with `angle`."""
    theta_HW = torch.atan2(y_HW, x_HW) - angle
    return torch.hypot(x_HW, y_HW) * (1 + 0.10 * torch.cos(3 * theta_HW) + 0.06 * torch.cos(5 * theta_HW + 1))


def _texture(rng: torch.Generator, slope: float, mean: tuple[float, ...], spread: tuple[float, ...]) -> Tensor:
    """Make a periodic tile [1,3,256,256] of 1/f^slope noise; the channels share most of their structure."""
    side = 256
    fy, fx = torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None]
    amplitude = 1 / (fx**2 + fy**2).sqrt().clamp(min=2 / side) ** slope
    noise = torch.randn(4, side, side, generator=rng)
    noise = torch.fft.irfft2(torch.fft.rfft2(noise) * amplitude, s=(side, side))
    noise = noise / noise.std(dim=(1, 2), keepdim=True)
    ridge = 1 - noise[:1].abs() * 1.3  # ridged noise: sharp lines, like cracks and veins
    mixed = 0.7 * noise[:1].tanh() + 0.5 * ridge + 0.3 * noise[1:].tanh()
    return (torch.tensor(mean)[:, None, None] + torch.tensor(spread)[:, None, None] * mixed)[None].clamp(0, 1)


def _sample(tile: Tensor, x_HW: Tensor, y_HW: Tensor) -> Tensor:
    """Sample the tile at periodic coordinates in [-1, 1] -> [3,H,W]."""
    wrapped = F.pad(tile, (1, 1, 1, 1), mode="circular")
    side = tile.shape[-1]
    grid = torch.stack([x_HW, y_HW], dim=-1)
    grid = torch.remainder(grid + 1, 2) - 1
    return F.grid_sample(wrapped, grid[None] * side / (side + 2), mode="bilinear", align_corners=False)[0]
