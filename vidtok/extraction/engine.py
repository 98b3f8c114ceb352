"""The run: videos in, records out, the model busy while others decode."""

import os
import queue
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import torch

from vidtok.checks import count_cpus
from vidtok.datasets import DecodePool, VideoError
from vidtok.datasets.backends import reader_version
from vidtok.extraction.decoding import Info, ReadConfig, StreamChunk, read_chunks
from vidtok.extraction.model import FeatureModel, Stream
from vidtok.extraction.output import Output
from vidtok.extraction.record import Record, RecordMeta, Settings
from vidtok.extraction.sources import WorkItem
from vidtok.extraction.stats import ExtractionStats
from vidtok.names import FRAMES, escape_name

Result = tuple[WorkItem, "list[Record] | Exception"]
NextItem = Callable[[], "WorkItem | None"]


def next_chunk(job: tuple[WorkItem, int], reading: ReadConfig) -> StreamChunk | None:
    """Piece number k of an item, in a decode process, which is asked for them in order; None after the last."""
    item, k = job
    if k == 0:
        _open[:] = [(item, read_chunks(item, reading))]
    if not _open or _open[0][0] != item:
        return None
    return next(_open[0][1], None)


_open: list[tuple[WorkItem, Iterator[StreamChunk]]] = []  # what this process is at

CLOSING = 2  # seconds for a decoder to come to an end, when all is over
AHEAD = 2  # pieces per decoder that wait in the queue


class Decoders:
    """Decode videos beside the model: their pieces, in order for each video, those of several videos mixed.

    A thread for each decode process puts pieces into one queue of bounded length.

    workers: processes, each at one item; one that gives no piece for `time_limit` seconds is killed, and its video has
    failed. 0: this process decodes whenever it is asked, which nothing protects from a decoder that hangs or crashes.
    """

    def __init__(self, reading: ReadConfig, workers: int, time_limit: float):
        self._reading = reading
        self._items: queue.SimpleQueue[WorkItem | None] = queue.SimpleQueue()
        self.slots = max(workers, 1)  # items that are decoded at once
        self._pieces: queue.Queue = queue.Queue(AHEAD * self.slots)
        self._closed = False
        function = partial(next_chunk, reading=reading)
        # Idle cores help with large pictures.
        threads = max(1, count_cpus() // workers) if workers else 1
        self._pools = [DecodePool(function, 1, time_limit, _path, threads) for _ in range(workers)]
        self._here = self._from_here()
        self._threads = [threading.Thread(target=self._feed, args=(pool,), daemon=True) for pool in self._pools]
        for thread in self._threads:
            thread.start()

    def pieces(
        self, next_item: NextItem, seconds: dict[str, float]
    ) -> Iterator[tuple[WorkItem, StreamChunk | VideoError]]:
        """Yield the pieces of the videos that `next_item` gives, and the error of each that ends in one.

        Args:
            next_item: gives the videos, and None when there are no more. Only those that are being decoded or wait for
                it are taken, two for each process.
            seconds: of it, "read" grows by the time spent waiting for pieces.

        Raises:
            Exception: what no video is to blame for.
        """
        under_way, more = 0, True
        while True:
            while more and under_way < 2 * self.slots:
                new = next_item()
                more = new is not None
                if new is not None:
                    self._items.put(new)
                    under_way += 1
            if not under_way:
                return
            start = time.perf_counter()
            item, piece = self._pieces.get() if self._pools else next(self._here)
            seconds["read"] += time.perf_counter() - start
            if isinstance(piece, Exception) and not isinstance(piece, VideoError):
                raise piece
            under_way -= isinstance(piece, VideoError) or piece.ends_item
            yield item, piece

    def close(self) -> None:
        self._closed = True
        self._here.close()
        for _ in self._threads:
            self._items.put(None)
        deadline = time.monotonic() + CLOSING
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

    def _next_item(self) -> WorkItem | None:
        item = self._items.get()
        return None if self._closed else item

    def _from_here(self) -> Generator[tuple[WorkItem, StreamChunk | VideoError], None, None]:
        while (item := self._next_item()) is not None:
            try:
                for piece in read_chunks(item, self._reading):
                    yield item, piece
            except VideoError as error:
                yield item, error

    def _from_pool(self, pool: DecodePool) -> Iterator[tuple[WorkItem, StreamChunk | VideoError]]:
        ended: set[WorkItem] = set()  # items of which no more is asked

        def jobs() -> Iterator[tuple[WorkItem, int]]:
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


def _path(job: tuple[WorkItem, int]) -> str:
    return str(job[0])


class Ended(NamedTuple):
    """A stream that has gone through the model.

    Attributes:
        clip, info: see `StreamChunk`.
        coded_size: (height, width) of its frames with padding.
        features: see `FeatureModel.finish`.
    """

    clip: int | None
    info: Info
    coded_size: tuple[int, int]
    features: np.ndarray


@dataclass
class _Lane:
    item: WorkItem
    clip: int | None
    stream: Stream = field(default_factory=Stream)
    waiting: deque[StreamChunk] = field(default_factory=deque)


class Batches:
    """Run pieces of many videos through a model.

    They wait until a batch is full, or until `limit` of them are waiting. Pieces go through the model together that are
    the next ones of different streams and have one shape.

    Args:
        model: the model.
        seconds: of it, "infer" grows by the time that the model takes.
    """

    def __init__(self, model: FeatureModel, seconds: dict[str, float]):
        self.model, self.seconds = model, seconds
        self.limit = 4 * model.batch
        self.waiting = 0
        self._lanes: dict[tuple[str, int | None], _Lane] = {}
        self._reading: set[str] = set()  # ids of videos of which pieces are still to come
        self._failed: set[str] = set()  # those of them that the model could not take

    def encode(
        self, pieces: Iterable[tuple[WorkItem, StreamChunk | VideoError]]
    ) -> Iterator[tuple[WorkItem, Ended | Exception]]:
        """Yield each stream that ends, and the error of each video that ends in one, its own or the model's."""
        for item, piece in pieces:
            is_last = isinstance(piece, VideoError) or piece.ends_item
            (self._reading.discard if is_last else self._reading.add)(item.id)
            if item.id in self._failed:
                self._failed &= self._reading
            elif isinstance(piece, VideoError):
                self._drop(item)
                yield item, piece
            else:
                lane = self._lanes.setdefault((item.id, piece.clip), _Lane(item, piece.clip))
                lane.waiting.append(piece)
                self.waiting += 1
            yield from self._run_due(flush=False)
        yield from self._run_due(flush=True)

    def _run_due(self, flush: bool) -> Iterator[tuple[WorkItem, Ended | Exception]]:
        while lanes := self._choose(flush):
            try:
                ended = self._run(lanes)
            except (MemoryError, torch.OutOfMemoryError) as error:
                for item in {lane.item.id: lane.item for lane in lanes}.values():
                    self._drop(item)
                    self._failed |= {item.id} & self._reading
                    yield item, error
                continue
            yield from ended

    def _drop(self, item: WorkItem) -> None:
        """All of an item that failed."""
        for key in [key for key, lane in self._lanes.items() if lane.item == item]:
            self.waiting -= len(self._lanes.pop(key).waiting)

    def _choose(self, flush: bool) -> list[_Lane]:
        """Whose next pieces to run: a full batch; or the fullest, with `flush` or too many waiting; or none."""
        heads = {key: _kind(lane) for key, lane in self._lanes.items() if lane.waiting}
        if not heads:
            return []
        kind, count = Counter(heads.values()).most_common(1)[0]
        if count < self.model.batch and not flush and self.waiting < self.limit:
            return []
        return [self._lanes[key] for key, other in heads.items() if other == kind][: self.model.batch]

    def _run(self, lanes: list[_Lane]) -> list[tuple[WorkItem, Ended]]:
        """One pass of the model. Returns the streams that ended with it."""
        start = time.perf_counter()
        pieces = [lane.waiting.popleft() for lane in lanes]
        self.waiting -= len(pieces)
        self.model.push([lane.stream for lane in lanes], [piece.video for piece in pieces])
        ended = []
        for lane, piece in zip(lanes, pieces, strict=True):
            if piece.info is not None:
                del self._lanes[lane.item.id, lane.clip]
                coded_size = piece.video.shape[-2], piece.video.shape[-1]
                ended.append((lane.item, Ended(lane.clip, piece.info, coded_size, self.model.finish(lane.stream))))
        self.seconds["infer"] += time.perf_counter() - start
        return ended


def encode_pieces(pieces: list[tuple[WorkItem, StreamChunk]], model: FeatureModel) -> None:
    """Run pieces through a model and keep nothing."""
    for _, ended in Batches(model, defaultdict(float)).encode(pieces):
        if isinstance(ended, Exception):
            raise ended


def _kind(lane: _Lane) -> tuple:
    piece = lane.waiting[0]
    return tuple(piece.video.shape), piece.first


PATIENCE = 0.2  # seconds between two looks at what another process is at


def run_extraction(
    output: Output,
    extract: Callable[[NextItem], Iterator[Result]],
    report: Callable[[ExtractionStats], None] = lambda stats: None,
) -> None:
    """Do all that `output` has to do.

    Args:
        extract: `extract_records` with a model and decoders, or `RayExtractor.extract`, the same on other machines.
        report: called with the output's `stats` whenever something was done.

    Raises:
        OSError: where the disk is full, ...; all that is complete stays.
    """
    try:
        more = True
        while more:
            for item, result in extract(output.next):
                if isinstance(result, Exception):
                    output.fail(item, reason(result))
                elif output.take(item, result):
                    output.stats.add(item, result)
                report(output.stats)
            more = output.flush()
            if more:
                time.sleep(PATIENCE)
    except KeyboardInterrupt:
        output.flush()
        output.writer.abandon()  # a shard that the interrupt met while it was begun or completed
        output.close()
        raise
    except BaseException:
        output.abandon()
        raise
    output.close()


def extract_records(
    next_item: NextItem, decoders: Decoders, model: FeatureModel, stats: ExtractionStats
) -> Iterator[Result]:
    """All records of one video after the other, or the error that it ended in, in the order in which they end.

    next_item: gives the videos, and None when there are no more. Only those that are being decoded, and a few pieces
    of them, are in memory.
    """
    clips: dict[str, list[Record]] = {}  # of videos that are not complete
    pieces = decoders.pieces(next_item, stats.seconds)
    for item, ended in Batches(model, stats.seconds).encode(pieces):
        if isinstance(ended, Exception):
            clips.pop(item.id, None)
            yield item, ended
            continue
        records = clips.setdefault(item.id, [])
        records.append(make_record(item, *ended, model.settings))
        stats.frames += len(ended.info.timestamps)
        if len(records) == (ended.info.clips or 1):
            yield item, sorted(clips.pop(item.id), key=attrgetter("meta.clip"))


def make_record(
    item: WorkItem,
    clip: int | None,
    info: Info,
    coded_size: tuple[int, int],
    features: np.ndarray,
    settings: Settings,
) -> Record:
    cells = features.size if settings.feature == "ids" else features[0].size
    meta = RecordMeta(
        **asdict(settings),
        fps=info.fps,
        frames=len(info.timestamps),
        size=info.size,
        coded_size=coded_size,
        native_size=info.native_size,
        native_fps=info.native_fps,
        source=escape_name(os.path.basename(FRAMES.sub("", item.path))) if item.path else "",
        source_bytes=info.source_bytes,
        reader=info.reader,
        reader_version=reader_version(info.reader),
        bytes_per_token=features.nbytes / cells if features.ndim > 1 else None,
        clip=clip,
        clips=info.clips,
        **info.damage,
    )
    return Record(item.id, item.label, item.split, features, info.timestamps, meta)


def reason(error: Exception) -> str:
    """Why a video failed, on one line, without its name."""
    text = error.reason if isinstance(error, VideoError) else str(error)
    return " ".join(text.split())
