"""Which tokens a sample is given: bool [t, h, w], true where the token is known.

Frame prediction, interpolation, inpainting and outpainting are one model's work with four masks (MAGVIT, section 3.2).
"""

import torch
from torch import Tensor

from vidtok.hints import nearest

Grid = tuple[int, int, int]


def nothing(grid: Grid) -> Tensor:
    """No token is known."""
    return torch.zeros(grid, dtype=torch.bool)


def prefix(grid: Grid, latents: int) -> Tensor:
    """The first latent frames are known: 1 + 4 (latents - 1) frames of video."""
    _check(0 <= latents < grid[0], f"a prefix has 0 to {grid[0] - 1} latent frames, not {latents}")
    mask = nothing(grid)
    mask[:latents] = True
    return mask


def interpolation(grid: Grid, first: int = 1, last: int = 1) -> Tensor:
    """The first and the last latent frames are known."""
    _check(first >= 0 and last >= 0 and 0 < first + last < grid[0], f"{first} + {last} known of {grid[0]} leave none")
    mask = nothing(grid)
    mask[:first] = True
    mask[grid[0] - last :] = True
    return mask


def inpainting(grid: Grid, top: int, left: int, height: int, width: int) -> Tensor:
    """All is known but a box, the same in every frame; in tokens."""
    _check(
        min(top, left) >= 0 < min(height, width) and top + height <= grid[1] and left + width <= grid[2],
        f"a box of {height} x {width} at ({top}, {left}) doesn't lie in {grid[1]} x {grid[2]} tokens",
    )
    mask = ~nothing(grid)
    mask[:, top : top + height, left : left + width] = False
    return mask


def outpainting(grid: Grid, top: int, left: int, height: int, width: int) -> Tensor:
    """A box is known, the same in every frame, and nothing else; in tokens."""
    return ~inpainting(grid, top, left, height, width)


def draw_mask(task: str, grid: Grid, generator: torch.Generator) -> Tensor:
    """A random mask of a task for training: a prefix of any length, ends of any length, a box of about half the side.

    task: "none", "prefix", "prefix-N" with N latent frames, "interpolation", "inpainting" or "outpainting".
    """

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    t, h, w = grid
    name, _, count = task.partition("-")
    if name not in TASKS or (count and (name != "prefix" or not count.isdigit())):
        raise ValueError(f"unknown task {task!r}: {nearest(task, TASKS)}")
    if name == "none":
        return nothing(grid)
    if name == "prefix":
        _check(t >= 2, "a prefix needs clips of at least 2 latent frames, not 1")
        return prefix(grid, int(count) if count else draw(1, t - 1))
    if name == "interpolation":
        _check(t >= 3, f"interpolation needs at least 3 latent frames, not {t}")
        first = draw(1, t - 2)
        return interpolation(grid, first, draw(1, t - 1 - first))
    _check(name == "inpainting" or h * w > 1, f"outpainting needs more than one cell, not {h} x {w}")
    height, width = draw(-(-h // 4), max(1, 3 * h // 4)), draw(-(-w // 4), max(1, 3 * w // 4))
    box = (draw(0, h - height), draw(0, w - width), height, width)
    return inpainting(grid, *box) if name == "inpainting" else outpainting(grid, *box)


TASKS = ("none", "prefix", "interpolation", "inpainting", "outpainting")


def _check(good: bool, message: str) -> None:
    if not good:
        raise ValueError(message)
