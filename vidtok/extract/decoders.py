"""Decoding beside the model: a thread for each decode process puts pieces into one queue of bounded length."""

import queue
import threading
import time
from collections.abc import Iterator
from functools import partial

from vidtok.datasets import DecodePool, VideoError
from vidtok.extract.plan import Item
from vidtok.extract.reading import Piece, Reading, next_piece, read_pieces

PATIENCE = 2  # seconds for a decoder to come to an end, when all is over
AHEAD = 2  # pieces per decoder that wait in the queue


class Decoders:
    """`put` items, `get` their pieces: in order for each item, those of several items mixed.

    workers: processes, each at one item; one that gives no piece for `time_limit` seconds is killed, and its video has
    failed. 0: this process decodes whenever it is asked, which nothing protects from a decoder that hangs or crashes.
    """

    def __init__(self, reading: Reading, workers: int, time_limit: float):
        self._reading = reading
        self._items: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self.slots = max(workers, 1)  # items that are decoded at once
        self._pieces: queue.Queue = queue.Queue(AHEAD * self.slots)
        self._closed = False
        function = partial(next_piece, reading=reading)
        self._pools = [DecodePool(function, 1, time_limit, path_of=_path) for _ in range(workers)]
        self._here = self._from_here()
        self._threads = [threading.Thread(target=self._feed, args=(pool,), daemon=True) for pool in self._pools]
        for thread in self._threads:
            thread.start()

    def put(self, item: Item) -> None:
        self._items.put(item)

    def get(self) -> tuple[Item, Piece | VideoError]:
        """The next piece of any item, or the error that ended one. Raises what no video is to blame for."""
        item, piece = self._pieces.get() if self._pools else next(self._here)
        if isinstance(piece, Exception) and not isinstance(piece, VideoError):
            raise piece
        return item, piece

    def close(self) -> None:
        self._closed = True
        self._here.close()
        for _ in self._threads:
            self._items.put(None)
        deadline = time.monotonic() + PATIENCE
        for thread in self._threads:
            while thread.is_alive() and time.monotonic() < deadline:
                self._drain()
                thread.join(0.05)
        for pool in self._pools:
            pool.close()

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _feed(self, pool: DecodePool) -> None:
        try:
            for item, piece in self._from_pool(pool):
                self._pieces.put((item, piece))
        except Exception as error:  # the main thread's to raise
            self._pieces.put((None, error))

    def _next_item(self) -> Item | None:
        item = self._items.get()
        return None if self._closed else item

    def _from_here(self) -> Iterator[tuple[Item, Piece | VideoError]]:
        while (item := self._next_item()) is not None:
            try:
                for piece in read_pieces(item, self._reading):
                    yield item, piece
            except VideoError as error:
                yield item, error

    def _from_pool(self, pool: DecodePool) -> Iterator[tuple[Item, Piece | VideoError]]:
        ended: set[Item] = set()  # items of which no more is asked

        def jobs() -> Iterator[tuple[Item, int]]:
            while (item := self._next_item()) is not None:
                k = 0
                while item not in ended and not self._closed:
                    yield item, k
                    k += 1
                ended.discard(item)

        for (item, _), piece in pool.imap(jobs()):
            if piece is None:  # asked for before the last piece had come
                continue
            if isinstance(piece, VideoError) or piece.ends_item:
                ended.add(item)
            yield item, piece

    def _drain(self) -> None:
        while not self._pieces.empty():
            self._pieces.get()


def _path(job: tuple[Item, int]) -> str:
    return str(job[0])
