"""Encode and decode videos of any length and frame size in bounded memory: padding and spatial tiles.

The streams that are padded and tiled are those of `vidtok.tokenizer`.

Padding: the right and bottom edges are replicated up to a multiple of the stride, and the last frame up to the next
legal length. Cropping undoes both exactly.

Tiles: frames too large for memory are processed in overlapping spatial tiles. The border of a tile lacks the context
that it has in the whole frame, so that tiled and whole results differ slightly. The encoder keeps the center of each
tile up to half the overlap. The decoder blends linearly across the overlap. A long video of large frames has one stream
per tile; all streams advance together.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

MAX_LATENTS = 16  # latents per pass through a network; longer chunks are split

Cell = tuple[int, int]  # (height, width) of a token in pixels
LEAST = 4  # minimal number of tokens along a side of a tile


def tile_cells(tile: int | tuple[int, int], cell: Cell) -> tuple[int, int]:
    """Convert the side(s) of a tile in pixels to (rows, columns) of tokens; raise ValueError for illegal sides."""
    sides = (tile, tile) if isinstance(tile, int) else tuple(tile)
    if len(sides) != 2 or any(side < LEAST * c or side % c for side, c in zip(sides, cell, strict=True)):
        legal = " or ".join(f"multiples of {c} and at least {LEAST * c}" for c in dict.fromkeys(cell))
        raise ValueError(f"tile is one or two sides in pixels, {legal}, not {tile}")
    return sides[0] // cell[0], sides[1] // cell[1]


def _spans(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Return (start, end) of tiles that cover 0 .. length and share at least `overlap`."""
    if length <= tile:
        return [(0, length)]
    starts = [*range(0, length - tile, tile - overlap), length - tile]
    return [(start, start + tile) for start in starts]


def _grid(h: int, w: int, tile: tuple[int, int]):
    """Return the (rows, columns) of every tile and the overlap, all in tokens."""
    overlap = tuple(max(side // 4, 1) for side in tile)
    rows, columns = _spans(h, tile[0], overlap[0]), _spans(w, tile[1], overlap[1])
    return [(row, column) for row in rows for column in columns], overlap


def encode_tiles(encode: Callable[[Tensor], Tensor], video: Tensor, tile: int | tuple[int, int], cell: Cell) -> Tensor:
    """Apply `encode` ([B, 3, T, H, W] -> [B, C, t, h, w]) to tiles of `video`; join the results to [B, C, t, h, w]."""
    h, w = video.shape[3] // cell[0], video.shape[4] // cell[1]
    tiles, overlap = _grid(h, w, tile_cells(tile, cell))
    out: Tensor | None = None
    for (top, bottom), (left, right) in tiles:
        z = encode(video[..., top * cell[0] : bottom * cell[0], left * cell[1] : right * cell[1]])
        if out is None:
            out = z.new_empty(*z.shape[:3], h, w)
        y, x = top and overlap[0] // 2, left and overlap[1] // 2
        out[..., top + y : bottom, left + x : right] = z[..., y:, x:]
    assert out is not None  # there is at least one tile
    return out


def _ramp(span: tuple[int, int], length: int, overlap: int, cell: int) -> Tensor:
    """Return the weight of each pixel along a side: 1 inside, decreasing to 0 across an overlap with a neighbor."""
    pixels = torch.arange((span[1] - span[0]) * cell) + 0.5
    weight = torch.ones(len(pixels))
    if span[0] > 0:
        weight = torch.minimum(weight, pixels / (overlap * cell))
    if span[1] < length:
        weight = torch.minimum(weight, pixels.flip(0) / (overlap * cell))
    return weight


def decode_tiles(decode: Callable[[Tensor], Tensor], ids: Tensor, tile: int | tuple[int, int], cell: Cell) -> Tensor:
    """Apply `decode` ([B, t, h, w] -> [B, 3, T, H, W]) to tiles of `ids`; blend the results to [B, 3, T, H, W]."""
    h, w = ids.shape[2:]
    tiles, overlap = _grid(h, w, tile_cells(tile, cell))
    out: Tensor | None = None
    total: Tensor | None = None
    for row, column in tiles:
        video = decode(ids[..., row[0] : row[1], column[0] : column[1]])
        weight = _ramp(row, h, overlap[0], cell[0])[:, None] * _ramp(column, w, overlap[1], cell[1])
        weight = weight.to(video.device)
        if out is None or total is None:
            out = video.new_zeros(*video.shape[:3], h * cell[0], w * cell[1])
            total = video.new_zeros(h * cell[0], w * cell[1])
        place = (slice(row[0] * cell[0], row[1] * cell[0]), slice(column[0] * cell[1], column[1] * cell[1]))
        out[(..., *place)] += video * weight
        total[place] += weight
    assert out is not None and total is not None  # there is at least one tile
    return out / total


LATENTS = 4  # per chunk: small enough for large frames, and as fast as more


def coded_size(size: Sequence[int], stride: tuple[int, int, int]) -> tuple[int, int]:
    """Round (height, width) up to multiples of the stride."""
    return -(-size[0] // stride[1]) * stride[1], -(-size[1] // stride[2]) * stride[2]


def pad_chunks(chunks: Iterable[Tensor], stride: tuple[int, int, int], latents: int = LATENTS) -> Iterator[Tensor]:
    """Regroup chunks of one video for the encoder, and pad them.

    Each chunk that comes out completes as many latents as it holds; `vidtok.extraction` relies on it too.

    Args:
        chunks: [1, 3, any, H, W] each, uint8 or float.
        stride: (s_t, s_h, s_w) of the tokenizer.
        latents: number of latents per chunk; the first chunk has one more.

    Yields:
        Chunks of the same dtype, of 1 + s_t n frames first and s_t n frames afterwards.
    """
    step = stride[0]
    first, pending = True, None
    for chunk in chunks:
        height, width = coded_size(chunk.shape[3:], stride)
        chunk = _extend(_extend(chunk, 3, height), 4, width)
        pending = chunk if pending is None else torch.cat([pending, chunk], 2)
        while pending.shape[2] >= (take := step * latents + first):
            yield pending[:, :, :take]
            first, pending = False, pending[:, :, take:].clone()  # a view would keep the whole chunk in memory
    if pending is not None and pending.shape[2]:
        yield _extend(pending, 2, pending.shape[2] + -(pending.shape[2] - first) % step)


def as_video(frames_THWC: np.ndarray) -> Tensor:
    """View uint8 frames [T,H,W,3] as a video [1,3,T,H,W] without copying; the memory layout is that of the frames."""
    return torch.from_numpy(frames_THWC).permute(3, 0, 1, 2)[None]


def as_videos(chunks: Iterable[tuple[np.ndarray, np.ndarray]], times: list[np.ndarray]) -> Iterator[Tensor]:
    """Convert the frames of each (frames, timestamps) by `as_video`; append timestamps to `times`."""
    for frames_THWC, timestamps in chunks:
        times.append(timestamps)
        yield as_video(frames_THWC)


def _extend(video: Tensor, dim: int, length: int) -> Tensor:
    """Repeat the last slice along `dim` up to `length`, for any dtype; the memory format is kept."""
    missing = length - video.shape[dim]
    if not missing:
        return video
    last = video.narrow(dim, -1, 1)
    return torch.cat([video, last.expand(*(missing if i == dim else -1 for i in range(video.ndim)))], dim)


def cut_chunks(chunks: Iterable[Tensor], frames: int, size: tuple[int, int]) -> Iterator[Tensor]:
    """Crop [1, 3, any, H, W] chunks to their first `frames` frames in total, and to `size` (height, width)."""
    for chunk in chunks:
        chunk = chunk[:, :, :frames, : size[0], : size[1]]
        frames -= chunk.shape[2]
        if chunk.shape[2]:
            yield chunk


def stream_encode(tokenizer, chunks: Iterable[Tensor], tile: int | None) -> Iterator[Tensor]:
    """Apply `tokenizer.stream_encode` to chunks from `pad_chunks`; with `tile`, to tiles of that side in pixels."""
    if tile is None:
        yield from tokenizer.stream_encode(chunks)
        return
    encode = _Streams(tokenizer.stream_encode)
    for chunk in chunks:
        # Tiles are joined as [B, C, t, h, w]; ids have one channel.
        yield encode_tiles(lambda part: encode(part)[:, None], chunk, tile, tokenizer.stride[1:])[:, 0]
        encode.rewind()


def stream_decode(tokenizer, id_chunks: Iterable[Tensor], tile: int | None) -> Iterator[Tensor]:
    """Apply `tokenizer.stream_decode` to chunks of ids; with `tile`, to tiles of that side in pixels, then blend."""
    if tile is None:
        yield from tokenizer.stream_decode(id_chunks)
        return
    decode = _Streams(tokenizer.stream_decode)
    for ids in id_chunks:
        yield decode_tiles(decode, ids, tile, tokenizer.stride[1:])
        decode.rewind()


class _Streams:
    """Streams of the tiles of a frame: call it with the tiles of a chunk in order, then `rewind` for the next chunk."""

    def __init__(self, stream: Callable[[Iterable[Tensor]], Iterator[Tensor]]):
        self.stream = stream
        self.streams: list[tuple[deque, Iterator[Tensor]]] = []
        self.place = 0

    def __call__(self, part: Tensor) -> Tensor:
        if self.place == len(self.streams):
            inbox: deque[Tensor] = deque()
            self.streams.append((inbox, self.stream(_drain(inbox))))
        inbox, outputs = self.streams[self.place]
        self.place += 1
        inbox.append(part)
        # A chunk of whole latents, at most MAX_LATENTS of them, gives one output.
        return next(outputs)

    def rewind(self) -> None:
        self.place = 0


def _drain(inbox: deque) -> Iterator[Tensor]:
    while inbox:
        yield inbox.popleft()
