"""Streams in spatial tiles: one stream per tile, all in step, so that frame size and length are both unbounded."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from vidtok.tiling import decode_tiles, encode_tiles


def stream_encode(tokenizer, chunks: Iterable[Tensor], tile: int | None) -> Iterator[Tensor]:
    """`tokenizer.stream_encode` of chunks as `pad_chunks` makes them; with `tile`, over tiles of that side."""
    if tile is None:
        yield from tokenizer.stream_encode(chunks)
        return
    encode = _Streams(tokenizer.stream_encode)
    for chunk in chunks:
        # The tiling moves [B, C, t, h, w]; ids are one channel.
        yield encode_tiles(lambda part: encode(part)[:, None], chunk, tile, tokenizer.stride[1:])[:, 0]
        encode.rewind()


def stream_decode(tokenizer, id_chunks: Iterable[Tensor], tile: int | None) -> Iterator[Tensor]:
    """`tokenizer.stream_decode`; with `tile`, over tiles of that side in pixels, blended."""
    if tile is None:
        yield from tokenizer.stream_decode(id_chunks)
        return
    decode = _Streams(tokenizer.stream_decode)
    for ids in id_chunks:
        yield decode_tiles(decode, ids, tile, tokenizer.stride[1:])
        decode.rewind()


class _Streams:
    """Called with the parts of a chunk in a fixed order, hands each to the stream of its place."""

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
        # One chunk of whole latents, no more than a network takes at once, is one output.
        return next(outputs)

    def rewind(self) -> None:
        self.place = 0


def _drain(inbox: deque) -> Iterator[Tensor]:
    while inbox:
        yield inbox.popleft()
