"""Masks of known tokens, bool [t, h, w], true if the token is known.

One model can do frame prediction, interpolation, inpainting and outpainting with them (MAGVIT, section 3.2).
"""

import torch
from torch import Tensor

from vidtok.errors import nearest
from vidtok.generator.sampling import PerSampleRNG

Grid = tuple[int, int, int]


def nothing(grid: Grid) -> Tensor:
    """Make a mask without known tokens."""
    return torch.zeros(grid, dtype=torch.bool)


def prefix(grid: Grid, latents: int) -> Tensor:
    """Make a mask whose first latent frames are known, which are 1 + 4 (latents - 1) frames of video."""
    _check(0 <= latents < grid[0], f"a prefix has 0 to {grid[0] - 1} latent frames, not {latents}")
    mask = nothing(grid)
    mask[:latents] = True
    return mask


def interpolation(grid: Grid, first: int = 1, last: int = 1) -> Tensor:
    """Make a mask whose first and last latent frames are known."""
    _check(first >= 0 and last >= 0 and 0 < first + last < grid[0], f"{first} + {last} known of {grid[0]} leave none")
    mask = nothing(grid)
    mask[:first] = True
    mask[grid[0] - last :] = True
    return mask


def inpainting(grid: Grid, top: int, left: int, height: int, width: int) -> Tensor:
    """Make a mask in which all tokens outside a box are known, the same in every frame; the box is given in tokens."""
    _check(
        min(top, left) >= 0 < min(height, width) and top + height <= grid[1] and left + width <= grid[2],
        f"a box of {height} x {width} at ({top}, {left}) doesn't lie in {grid[1]} x {grid[2]} tokens",
    )
    mask = ~nothing(grid)
    mask[:, top : top + height, left : left + width] = False
    return mask


def outpainting(grid: Grid, top: int, left: int, height: int, width: int) -> Tensor:
    """Make a mask in which only the tokens in a box are known, the same in every frame; the box is given in tokens."""
    return ~inpainting(grid, top, left, height, width)


def check_task(task: str, grid: Grid) -> None:
    """Raise ValueError for an unknown task, or one that is impossible on this grid."""
    name, _, count = task.partition("-")
    if name not in TASKS or (count and (name != "prefix" or not count.isdigit())):
        raise ValueError(f"unknown task {task!r}: {nearest(task, TASKS)}")
    t, h, w = grid
    if name == "prefix":
        _check(t >= 2, "a prefix needs clips of at least 2 latent frames, not 1")
        if count:
            prefix(grid, int(count))
    _check(name != "interpolation" or t >= 3, f"interpolation needs at least 3 latent frames, not {t}")
    _check(name != "outpainting" or h * w > 1, f"outpainting needs more than one cell, not {h} x {w}")


def draw_masks(task: str, grid: Grid, rng: PerSampleRNG) -> Tensor:
    """Draw random masks of a task for training, bool [B, t, h, w].

    Prefixes and ends have random lengths, boxes a quarter to three quarters of each side.

    Args:
        task: "none", "prefix", "prefix-N" with N latent frames, "interpolation", "inpainting" or "outpainting".
        grid: (t, h, w).
        rng: random numbers of the B samples.

    Raises:
        ValueError: see `check_task`.
    """
    check_task(task, grid)
    t, h, w = grid
    name, _, count = task.partition("-")
    device = rng.start_B.device
    if name == "none" or count:
        same = prefix(grid, int(count)) if count else nothing(grid)
        return same.to(device).expand(len(rng), *grid)
    frames = torch.arange(t, device=device)
    if name == "prefix":
        return (frames < rng.whole(1, t - 1)[:, None])[:, :, None, None].expand(-1, -1, h, w)
    if name == "interpolation":
        first_B = rng.whole(1, t - 2)
        last_B = rng.whole(1, t - 1 - first_B)
        ends_BT = (frames < first_B[:, None]) | (frames >= t - last_B[:, None])
        return ends_BT[:, :, None, None].expand(-1, -1, h, w)
    rows_BH, columns_BW = (_draw_span(side, rng) for side in (h, w))
    box_BHW = rows_BH[:, :, None] & columns_BW[:, None]
    return (box_BHW if name == "outpainting" else ~box_BHW)[:, None].expand(-1, t, -1, -1)


def _draw_span(side: int, rng: PerSampleRNG) -> Tensor:
    """Draw a span of a quarter to three quarters of a side -> bool [B, side], true inside."""
    length_B = rng.whole(-(-side // 4), max(1, 3 * side // 4))
    start_B = rng.whole(0, side - length_B)
    places = torch.arange(side, device=start_B.device)
    return (places >= start_B[:, None]) & (places < (start_B + length_B)[:, None])


TASKS = ("none", "prefix", "interpolation", "inpainting", "outpainting")


def _check(good: bool, message: str) -> None:
    if not good:
        raise ValueError(message)
