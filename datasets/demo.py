"""A rendered demo clip with natural texture, shading, motion and occlusion, available without a download."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


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
    height_HW = (1 - (distance_HW / radius) ** 2).clamp(min=0).sqrt()  # of a half-sphere: bulges texture, gives normals
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
