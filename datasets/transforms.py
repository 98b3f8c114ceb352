"""Transforms of clips between decoder and model: resizing, crops, flips and RandAugment.

The functions take and return float32 [V,3,T,H,W] in [-1, 1], V views of one video, and transform all frames and views
in the same way. Crops and flips also take uint8. `rng` is the only source of randomness. Sizes are in pixels. Resizing
is bicubic and antialiased. A `ViewTransform` leaves cropping and resizing of files to the reader.

torchvision.transforms.v2 would not give the same crops from a seed: it draws from torch's global generator, and its
center_crop lies one pixel further down or right for a quarter of all margins (3, 7, 11, ... pixels).
"""

import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vidtok.datasets.frames import Box, View, frames_to_video, plan_resize, plan_view, video_to_frames


def resize_short_side(video: Tensor, size: int) -> Tensor:
    """Resize the short side to `size`, keeping the aspect ratio."""
    (height, width), _ = plan_resize(video.shape[-2], video.shape[-1], size, multiple=1)
    return _resize(video, height, width)


def center_crop(video: Tensor, size: int) -> Tensor:
    """Crop size x size from the center; raise ValueError for a smaller video."""
    top, left = _margins(video, size)
    return video[..., top // 2 : top // 2 + size, left // 2 : left // 2 + size]


def three_crops(video: Tensor, size: int) -> Tensor:
    """Take three crops of each view along its long side (start, center, end), as is usual in testing.

    The short side is center-cropped.

    Returns:
        [3V,3,T,size,size].

    Raises:
        ValueError: the video is smaller than size x size.
    """
    top, left = _margins(video, size)
    places = [(top * k // 2, left // 2) if top > left else (top // 2, left * k // 2) for k in range(3)]
    crops = [video[..., y : y + size, x : x + size] for y, x in places]
    return torch.stack(crops, dim=1).flatten(0, 1)


def random_resized_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.3, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Draw the region of torchvision's RandomResizedCrop from a frame of height x width.

    After ten failed attempts, take the largest center crop with a legal ratio.

    Args:
        scale: (low, high), share of the area, uniformly distributed.
        ratio: (low, high), width / height of the region, log-uniformly distributed.

    Returns:
        (top, left, height, width) in pixels.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(*np.log(ratio)))
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.integers(height - h, endpoint=True), rng.integers(width - w, endpoint=True)
            return int(top), int(left), h, w
    w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def random_square_box(
    height: int, width: int, rng: np.random.Generator, scale: tuple[float, float] = (0.8, 1.0)
) -> Box:
    """Draw a square region of a frame of height x width; a square keeps the aspect ratio, which generators require.

    Args:
        scale: (low, high), side of the square as a share of the short side, uniformly distributed.

    Returns:
        (top, left, height, width) in pixels.
    """
    side = max(1, round(min(height, width) * rng.uniform(*scale)))
    top, left = rng.integers(height - side, endpoint=True), rng.integers(width - side, endpoint=True)
    return int(top), int(left), side, side


def random_resized_crop(
    video: Tensor,
    size: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.3, 1.0),
) -> Tensor:
    """Crop a random region (see `random_resized_box`) and resize it to size x size."""
    height, width = video.shape[-2:]
    return apply_view(video, View(random_resized_box(height, width, rng, scale), (size, size)))


def apply_view(video: Tensor, view: View) -> Tensor:
    """Crop and resize a rendered video, float32 [V,3,T,H,W], as a reader does with a file (see `View`)."""
    top, left, height, width = view.box
    return _resize(video[..., top : top + height, left : left + width], *view.size)


def random_flip(video: Tensor, rng: np.random.Generator) -> Tensor:
    """Flip horizontally with probability 1/2."""
    return video.flip(-1) if rng.random() < 0.5 else video


def rand_augment(video: Tensor, rng: np.random.Generator, config: str = "rand-m7-n4-mstd0.5-inc1") -> Tensor:
    """Apply timm's RandAugment with the same operations and magnitudes to every frame.

    Args:
        config: in timm's notation.

    Raises:
        ValueError: timm can't parse the config.
    """
    from timm.data.auto_augment import rand_augment_transform

    # timm's usual settings: translations up to 45 % of the frame, filled with gray.
    settings = {"translate_const": int(min(video.shape[-2:]) * 0.45), "img_mean": (124, 116, 104)}
    try:
        augment = rand_augment_transform(config, settings)
    except (AssertionError, ValueError) as error:
        raise ValueError(f"augment {config!r}: want timm's notation, such as rand-m7-n4-mstd0.5-inc1") from error
    seed = int(rng.integers(2**32))
    views = []
    before = random.getstate(), np.random.get_state()  # timm draws from both global generators
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
        raise ValueError(f"want scale=(low, high), shares of the {of} above 0 and at most 1, not {scale}")


class ViewTransform:
    """Base class of transforms whose region is cropped and resized by the reader while it decodes.

    A subclass defines `view`, the region, and `finish`, which transforms what the reader returns. Calling the transform
    applies both to a video at full size, such as a rendered one.
    """

    def view(self, height: int, width: int, rng: np.random.Generator) -> View | None:
        """Choose the region of frames of height x width to read; None, whole frames at native size."""
        raise NotImplementedError

    def finish(self, video: Tensor, rng: np.random.Generator) -> Tensor:
        """Transform a video that has been read, uint8 or float32 [V,3,T,h,w]."""
        raise NotImplementedError

    def __call__(self, video: Tensor, rng: np.random.Generator) -> Tensor:
        view = self.view(video.shape[-2], video.shape[-1], rng)
        return self.finish(video if view is None else apply_view(video, view), rng)


@dataclass(frozen=True)
class TrainTransform(ViewTransform):
    """Training transform: RandAugment, random resized crop, horizontal flip.

    Attributes:
        size: side of the output in pixels.
        scale: see `random_resized_box`.
        flip: flip horizontally with probability 1/2.
        augment: RandAugment configuration in timm's notation; None, no RandAugment. It is applied to whole frames, so
            that they are not cropped while decoding.
    """

    size: int
    scale: tuple[float, float] = (0.3, 1.0)
    flip: bool = True
    augment: str | None = None

    def __post_init__(self):
        _check_shares(self.scale, "picture")

    def view(self, height: int, width: int, rng: np.random.Generator) -> View | None:
        if self.augment is not None:
            return None
        return View(random_resized_box(height, width, rng, self.scale), (self.size, self.size))

    def finish(self, video: Tensor, rng: np.random.Generator) -> Tensor:
        if self.augment is not None:
            video = rand_augment(video, rng, self.augment)
            video = random_resized_crop(video, self.size, rng, self.scale)
        return random_flip(video, rng) if self.flip else video


@dataclass(frozen=True)
class SquareTransform(ViewTransform):
    """Training transform of generators: random square crop, horizontal flip.

    Attributes:
        size: side of the output in pixels.
        scale: see `random_square_box`.
        flip: flip horizontally with probability 1/2.
    """

    size: int
    scale: tuple[float, float] = (0.8, 1.0)
    flip: bool = False

    def __post_init__(self):
        _check_shares(self.scale, "side")

    def view(self, height: int, width: int, rng: np.random.Generator) -> View:
        return View(random_square_box(height, width, rng, self.scale), (self.size, self.size))

    def finish(self, video: Tensor, rng: np.random.Generator) -> Tensor:
        return random_flip(video, rng) if self.flip else video


@dataclass(frozen=True)
class EvalTransform(ViewTransform):
    """Evaluation transform: resize the short side, then take the center crop or three crops.

    Attributes:
        size: side of the crops in pixels.
        crops: 1, the center crop; 3, see `three_crops`.
        resize: short side before the crops, at least `size`; None, `size`.
    """

    size: int
    crops: int = 1
    resize: int | None = None

    def __post_init__(self):
        if self.crops not in (1, 3):
            raise ValueError(f"crops={self.crops} is not 1 or 3")
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"a crop of {self.size} does not fit into a short side of {self.resize} pixels")

    def view(self, height: int, width: int, rng: np.random.Generator) -> View:
        short = self.resize or self.size
        if self.crops == 3:
            return plan_view(height, width, short, multiple=1)
        side = max(1, round(self.size * min(height, width) / short))
        return View(((height - side) // 2, (width - side) // 2, side, side), (self.size, self.size))

    def finish(self, video: Tensor, rng: np.random.Generator) -> Tensor:
        return center_crop(video, self.size) if self.crops == 1 else three_crops(video, self.size)

    def __call__(self, video: Tensor, rng: np.random.Generator) -> Tensor:
        return self.finish(resize_short_side(video, self.resize or self.size), rng)


def _margins(video: Tensor, size: int) -> tuple[int, int]:
    """Return the (rows, columns) that remain outside a crop of size x size."""
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
