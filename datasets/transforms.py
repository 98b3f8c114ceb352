"""What is done to clips between the decoder and the model.

The functions take and return float32 [V,3,T,H,W] in [-1, 1], V views of one video; all frames and views are treated
alike. What is random comes from `rng` and nothing else. Sizes are pixels; resizing is bicubic and antialiased.
"""

import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vidtok.datasets.frames import frames_to_video, video_to_frames


def resize_short_side(video: Tensor, size: int) -> Tensor:
    """The short side becomes `size`, the aspect ratio stays."""
    height, width = video.shape[-2:]
    scale = size / min(height, width)
    return _resize(video, max(size, round(height * scale)), max(size, round(width * scale)))


def center_crop(video: Tensor, size: int) -> Tensor:
    """size x size from the middle. Raises ValueError for a smaller video."""
    top, left = _margins(video, size)
    return video[..., top // 2 : top // 2 + size, left // 2 : left // 2 + size]


def three_crops(video: Tensor, size: int) -> Tensor:
    """[3V,3,T,size,size]: of each view the two ends and the middle of the long side (the field's test crops); of the
    short side, where it is longer than `size`, the middle."""
    top, left = _margins(video, size)
    places = [(top * k // 2, left // 2) if top > left else (top // 2, left * k // 2) for k in range(3)]
    crops = [video[..., y : y + size, x : x + size] for y, x in places]
    return torch.stack(crops, dim=1).flatten(0, 1)


def random_resized_crop(
    video: Tensor,
    size: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.3, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """A crop of a random share `scale` of the area and a random width/height `ratio`, resized to size x size.

    As torchvision's RandomResizedCrop: ten attempts, then the largest crop in the middle that has such a ratio.
    """
    height, width = video.shape[-2:]
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(*np.log(ratio)))
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.integers(height - h, endpoint=True), rng.integers(width - w, endpoint=True)
            break
    else:
        w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
        top, left = (height - h) // 2, (width - w) // 2
    return _resize(video[..., top : top + h, left : left + w], size, size)


def random_square_crop(
    video: Tensor, size: int, rng: np.random.Generator, scale: tuple[float, float] = (0.8, 1.0)
) -> Tensor:
    """A square whose side is a random share `scale` of the short side, anywhere, resized to size x size: nothing is
    stretched, as what is generated shall not be."""
    height, width = video.shape[-2:]
    side = max(1, round(min(height, width) * rng.uniform(*scale)))
    top, left = rng.integers(height - side, endpoint=True), rng.integers(width - side, endpoint=True)
    return _resize(video[..., top : top + side, left : left + side], size, size)


def random_flip(video: Tensor, rng: np.random.Generator) -> Tensor:
    """Mirrored left to right, or not, with equal probability."""
    return video.flip(-1) if rng.random() < 0.5 else video


def rand_augment(video: Tensor, rng: np.random.Generator, config: str = "rand-m7-n4-mstd0.5-inc1") -> Tensor:
    """timm's RandAugment with the same operations and strengths on every frame. config: in timm's notation.

    Raises ValueError for another one."""
    from timm.data.auto_augment import rand_augment_transform

    # As timm's own users set it: shifts up to 45 % of the picture; grey is what is moved in from outside.
    settings = {"translate_const": int(min(video.shape[-2:]) * 0.45), "img_mean": (124, 116, 104)}
    try:
        augment = rand_augment_transform(config, settings)
    except (AssertionError, ValueError) as error:
        raise ValueError(f"augment {config!r}: want timm's notation, such as rand-m7-n4-mstd0.5-inc1") from error
    seed = int(rng.integers(2**32))
    views = []
    before = random.getstate(), np.random.get_state()  # timm draws from both of these
    try:
        for view in video:
            frames = []
            for frame_HWC in video_to_frames(view):
                random.seed(seed)
                np.random.seed(seed)
                frames.append(np.asarray(augment(Image.fromarray(frame_HWC))))
            views.append(frames_to_video(np.stack(frames)))
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
    return torch.stack(views)


def _check_shares(scale: tuple[float, float], of: str) -> None:
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"a random crop keeps a share from A to B of the {of}, 0 to 1, not {scale}")


@dataclass(frozen=True)
class TrainTransform:
    """RandAugment where `augment` names a configuration, a random resized crop to size x size, a flip where wanted."""

    size: int
    scale: tuple[float, float] = (0.3, 1.0)
    flip: bool = True
    augment: str | None = None

    def __post_init__(self):
        _check_shares(self.scale, "picture")

    def __call__(self, video: Tensor, rng: np.random.Generator) -> Tensor:
        if self.augment is not None:
            video = rand_augment(video, rng, self.augment)
        video = random_resized_crop(video, self.size, rng, self.scale)
        return random_flip(video, rng) if self.flip else video


@dataclass(frozen=True)
class SquareTransform:
    """For generators: a random square crop to size x size, a flip where wanted."""

    size: int
    scale: tuple[float, float] = (0.8, 1.0)
    flip: bool = False

    def __post_init__(self):
        _check_shares(self.scale, "side")

    def __call__(self, video: Tensor, rng: np.random.Generator) -> Tensor:
        video = random_square_crop(video, self.size, rng, self.scale)
        return random_flip(video, rng) if self.flip else video


@dataclass(frozen=True)
class EvalTransform:
    """Short side to `resize` (None: `size`), then the centre crop, or three crops, of size x size."""

    size: int
    crops: int = 1
    resize: int | None = None

    def __post_init__(self):
        if self.crops not in (1, 3):
            raise ValueError(f"crops={self.crops} is not 1 or 3")
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"a crop of {self.size} does not fit into a short side of {self.resize} pixels")

    def __call__(self, video: Tensor, rng: np.random.Generator) -> Tensor:
        video = resize_short_side(video, self.resize or self.size)
        return center_crop(video, self.size) if self.crops == 1 else three_crops(video, self.size)


def _margins(video: Tensor, size: int) -> tuple[int, int]:
    """(rows, columns) left over around size x size."""
    height, width = video.shape[-2:]
    if min(height, width) < size:
        raise ValueError(f"a crop of {size} does not fit into {height}x{width} pixels")
    return height - size, width - size


def _resize(video: Tensor, height: int, width: int) -> Tensor:
    if video.shape[-2:] == (height, width):
        return video
    frames = video.transpose(1, 2).flatten(0, 1)  # [V*T,3,H,W]
    frames = F.interpolate(frames, (height, width), mode="bicubic", antialias=True).clamp_(-1, 1)
    return frames.unflatten(0, (video.shape[0], video.shape[2])).transpose(1, 2)
