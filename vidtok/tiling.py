"""Frames too large for memory, in overlapping spatial tiles.

A tile's border lacks the context that the whole frame has there, so that tiled and whole results differ a little. The
encoder keeps the middle of each tile up to half the overlap; the decoder blends linearly across it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Cell = tuple[int, int]  # (height, width) of a token in pixels
LEAST = 4  # tokens along a side of a tile


def tile_cells(tile: int | tuple[int, int], cell: Cell) -> tuple[int, int]:
    """(rows, columns) of a tile given by its side(s) in pixels. Raises ValueError for sides off the grid."""
    sides = (tile, tile) if isinstance(tile, int) else tuple(tile)
    if len(sides) != 2 or any(side < LEAST * c or side % c for side, c in zip(sides, cell, strict=True)):
        legal = " or ".join(f"multiples of {c} and at least {LEAST * c}" for c in dict.fromkeys(cell))
        raise ValueError(f"tile is one or two sides in pixels, {legal}, not {tile}")
    return sides[0] // cell[0], sides[1] // cell[1]


def _spans(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Starts and ends of tiles that cover 0 .. length and share at least `overlap`."""
    if length <= tile:
        return [(0, length)]
    starts = [*range(0, length - tile, tile - overlap), length - tile]
    return [(start, start + tile) for start in starts]


def _grid(h: int, w: int, tile: tuple[int, int]):
    """(rows, columns) of every tile, in cells, and the overlap in cells."""
    overlap = tuple(max(side // 4, 1) for side in tile)
    rows, columns = _spans(h, tile[0], overlap[0]), _spans(w, tile[1], overlap[1])
    return [(row, column) for row in rows for column in columns], overlap


def encode_tiles(encode: Callable[[Tensor], Tensor], video: Tensor, tile: int | tuple[int, int], cell: Cell) -> Tensor:
    """`encode` ([B, 3, T, H, W] -> [B, C, t, h, w]) over tiles of `video`."""
    h, w = video.shape[3] // cell[0], video.shape[4] // cell[1]
    tiles, overlap = _grid(h, w, tile_cells(tile, cell))
    out = None
    for (top, bottom), (left, right) in tiles:
        z = encode(video[..., top * cell[0] : bottom * cell[0], left * cell[1] : right * cell[1]])
        if out is None:
            out = z.new_empty(*z.shape[:3], h, w)
        y, x = top and overlap[0] // 2, left and overlap[1] // 2
        out[..., top + y : bottom, left + x : right] = z[..., y:, x:]
    return out


def _ramp(span: tuple[int, int], length: int, overlap: int, cell: int) -> Tensor:
    """Weight of each pixel of a tile: 1 inside, falling to 0 across the overlap where there is a neighbour."""
    pixels = torch.arange((span[1] - span[0]) * cell) + 0.5
    weight = torch.ones(len(pixels))
    if span[0] > 0:
        weight = torch.minimum(weight, pixels / (overlap * cell))
    if span[1] < length:
        weight = torch.minimum(weight, pixels.flip(0) / (overlap * cell))
    return weight


def decode_tiles(decode: Callable[[Tensor], Tensor], ids: Tensor, tile: int | tuple[int, int], cell: Cell) -> Tensor:
    """`decode` ([B, t, h, w] -> [B, 3, T, H, W]) over tiles of `ids`, blended."""
    h, w = ids.shape[2:]
    tiles, overlap = _grid(h, w, tile_cells(tile, cell))
    out = total = None
    for row, column in tiles:
        video = decode(ids[..., row[0] : row[1], column[0] : column[1]])
        weight = _ramp(row, h, overlap[0], cell[0])[:, None] * _ramp(column, w, overlap[1], cell[1])
        weight = weight.to(video.device)
        if out is None:
            out = video.new_zeros(*video.shape[:3], h * cell[0], w * cell[1])
            total = video.new_zeros(h * cell[0], w * cell[1])
        place = (slice(row[0] * cell[0], row[1] * cell[0]), slice(column[0] * cell[1], column[1] * cell[1]))
        out[(..., *place)] += video * weight
        total[place] += weight
    return out / total
