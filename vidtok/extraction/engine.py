"""The extraction engine: decode videos in processes, encode them in batches, write their records.

The stages are nested generators: each takes from the one before it. `Output.next` is passed down to the decoders, so
that a video is claimed only when a decoder has room for it:

    run_extraction        the loop: takes results from `extract`, stores or fails them, reports the counts
      Output.next         claims the next video that is not complete and that no other process has locked
      Decoders.pieces     calls `Output.next`, yields chunks of the decoded videos, several videos interleaved
      Batches.encode      batches chunks of different streams, runs the model, yields each stream that has ended
      extract_records     makes a record of each stream, yields all records of a video once its last clip has ended
      Output.take         passes the records to the writer, releases the locks of videos that are complete on disk
        Writer.write      writes one npz, or adds to the current shard (`containers`)

With `workers=0` the same generators decode in this process: each request for a chunk decodes it. `RayExtractor.extract`
takes the place of `extract_records` in `run_extraction` and runs decoders and model in the actors of a cluster.
"""

import os
import queue
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from vidtok.checks import count_cpus
from vidtok.datasets import DecodePool, VideoError
from vidtok.datasets.backends import reader_version
from vidtok.extraction.decoding import Info, ReadConfig, StreamChunk, read_chunks
from vidtok.extraction.model import FeatureModel, Stream
from vidtok.extraction.output import Output
from vidtok.extraction.record import Record, RecordMeta, RecordSpool, Settings
from vidtok.extraction.sources import WorkItem
from vidtok.extraction.stats import ExtractionStats
from vidtok.names import FRAMES, escape_name

Result = tuple[WorkItem, "Sequence[Record] | Exception"]
NextItem = Callable[[], "WorkItem | None"]


def next_chunk(job: tuple[WorkItem, int], reading: ReadConfig) -> StreamChunk | None:
    """Return chunk number k of an item, or None after the last one. Runs in a decode process; k counts up from 0."""
    item, k = job
    if k == 0:
        _open[:] = [(item, read_chunks(item, reading))]
    if not _open or _open[0][0] != item:
        return None
    return next(_open[0][1], None)


_open: list[tuple[WorkItem, Iterator[StreamChunk]]] = []  # the item that this process decodes

CLOSING = 2  # seconds that `Decoders.close` waits for its threads
AHEAD = 2  # queued chunks per decoder


class Decoders:
    """Decode processes, which run while the model does.

    Chunks of one video come in order; those of several videos are interleaved. A thread for each decode process puts
    its chunks into one bounded queue.

    Args:
        reading: how videos are read.
        workers: number of decode processes, each of which decodes one item at a time. 0: this process decodes when a
            chunk is requested; nothing protects it from a decoder that hangs or crashes.
        time_limit: seconds after which a process that gives no chunk is killed; its video fails.
    """

    def __init__(self, reading: ReadConfig, workers: int, time_limit: float):
        self._reading = reading
        self._items: queue.SimpleQueue[WorkItem | None] = queue.SimpleQueue()
        self.slots = max(workers, 1)  # items decoded at the same time
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
        """Yield the chunks of the videos that `next_item` returns, and the error of each video that fails.

        Args:
            next_item: returns the next video, or None when there are no more. It is called ahead of time for at most
                two videos per process: one that is decoded and one that waits.
            seconds: times by stage; "read" is increased by the time spent waiting for chunks.

        Raises:
            Exception: any error of decoding that is not a `VideoError`, since no video is its cause.
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
        """Stop the threads and the decode processes."""
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
        """Put the chunks of one decode process into the queue. Runs in a thread."""
        try:
            for item, piece in self._from_pool(pool):
                self._pieces.put((item, piece))
        except Exception as error:  # raised by the main thread
            self._pieces.put((None, error))

    def _next_item(self) -> WorkItem | None:
        """Wait for the next item; return None once the decoders are closed."""
        item = self._items.get()
        return None if self._closed else item

    def _from_here(self) -> Generator[tuple[WorkItem, StreamChunk | VideoError], None, None]:
        """Yield the chunks of queued items, decoded in this process."""
        while (item := self._next_item()) is not None:
            try:
                for piece in read_chunks(item, self._reading):
                    yield item, piece
            except VideoError as error:
                yield item, error

    def _from_pool(self, pool: DecodePool) -> Iterator[tuple[WorkItem, StreamChunk | VideoError]]:
        """Yield the chunks of queued items, decoded by one process.

        The pool takes jobs ahead of their results, so that chunks may be requested after the last one.
        """
        ended: set[WorkItem] = set()  # items whose last chunk has come

        def jobs() -> Iterator[tuple[WorkItem, int]]:
            while (item := self._next_item()) is not None:
                k = 0
                while item not in ended and not self._closed:
                    yield item, k
                    k += 1
                ended.discard(item)

        for (item, _), piece in pool.imap(jobs()):
            if piece is None:  # requested before the last chunk had come
                continue
            if isinstance(piece, VideoError) or piece.ends_item:
                ended.add(item)
            yield item, piece

    def _drain(self) -> None:
        """Empty the queue, so that no thread waits for room in it."""
        while not self._pieces.empty():
            self._pieces.get()


def _path(job: tuple[WorkItem, int]) -> str:
    return str(job[0])


class Ended(NamedTuple):
    """A stream that the model has encoded to its end.

    Attributes:
        clip, info: see `StreamChunk`.
        coded_size: (height, width) of its frames in pixels, with padding.
        features: see `FeatureModel.finish`.
    """

    clip: int | None
    info: Info
    coded_size: tuple[int, int]
    features: np.ndarray


@dataclass
class _Lane:
    """A stream on its way through the model, with its chunks that wait."""

    item: WorkItem
    clip: int | None
    stream: Stream = field(default_factory=Stream)
    waiting: deque[StreamChunk] = field(default_factory=deque)


class Batches:
    """Batches of chunks of different streams, run through a model.

    A batch holds the next chunk of each of several streams; all have the same shape. Chunks wait until a batch is full,
    or until `limit` of them are waiting.

    Args:
        model: the model.
        seconds: times by stage; "infer" is increased by the time that the model takes.
    """

    def __init__(self, model: FeatureModel, seconds: dict[str, float]):
        self.model, self.seconds = model, seconds
        self.limit = 4 * model.batch
        self.waiting = 0
        self._lanes: dict[tuple[str, int | None], _Lane] = {}
        self._reading: set[str] = set()  # ids of videos that still have chunks to come
        self._failed: set[str] = set()  # those of them that failed in the model

    def encode(
        self, pieces: Iterable[tuple[WorkItem, StreamChunk | VideoError]]
    ) -> Iterator[tuple[WorkItem, Ended | Exception]]:
        """Yield each stream that ends, and the error of each video that fails, in its decoder or in the model."""
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
        """Run all due batches, with `flush` all that are left. If memory runs out, the videos of the batch fail."""
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
        """Discard all streams of an item that failed."""
        for key in [key for key, lane in self._lanes.items() if lane.item == item]:
            self.waiting -= len(self._lanes.pop(key).waiting)

    def _choose(self, flush: bool) -> list[_Lane]:
        """Return the lanes to run next, at most a batch; [] to wait for more.

        The lanes are those of the most frequent shape. They are run if they fill a batch, and otherwise only with
        `flush` or with `limit` chunks waiting.
        """
        heads = {key: _batch_key(lane) for key, lane in self._lanes.items() if lane.waiting}
        if not heads:
            return []
        kind, count = Counter(heads.values()).most_common(1)[0]
        if count < self.model.batch and not flush and self.waiting < self.limit:
            return []
        return [self._lanes[key] for key, other in heads.items() if other == kind][: self.model.batch]

    def _run(self, lanes: list[_Lane]) -> list[tuple[WorkItem, Ended]]:
        """Run one batch through the model and return the streams that ended with it."""
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
    """Run chunks through a model and discard the features."""
    for _, ended in Batches(model, defaultdict(float)).encode(pieces):
        if isinstance(ended, Exception):
            raise ended


def _batch_key(lane: _Lane) -> tuple:
    """Return what the next chunks of lanes must share to be in one batch: (shape, whether it is the first)."""
    piece = lane.waiting[0]
    return tuple(piece.video.shape), piece.first


PATIENCE = 0.2  # seconds between two attempts to claim videos that other processes have locked


def run_extraction(
    output: Output,
    extract: Callable[[NextItem], Iterator[Result]],
    report: Callable[[ExtractionStats], None] = lambda stats: None,
) -> None:
    """Extract all videos that `output` hands out, and store their records in it.

    Args:
        output: the folder to fill.
        extract: `extract_records` with a model and decoders, or `RayExtractor.extract`, which runs on a cluster.
        report: called with the output's `stats` after each video.

    Raises:
        OSError: the disk is full, for example. All that is complete stays.
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
        output.writer.abandon()  # in case of an interrupt while a shard was opened or completed
        output.close()
        raise
    except BaseException:
        output.abandon()
        raise
    output.close()


def extract_records(
    next_item: NextItem, decoders: Decoders, model: FeatureModel, stats: ExtractionStats
) -> Iterator[Result]:
    """Yield all records of each video, or its error, in the order in which the videos end.

    Only the videos that are being decoded are in memory, and of each only a few chunks. For the features of clips see
    `RecordSpool`.

    Args:
        next_item: returns the next video, or None when there are no more.
        decoders: decode the videos.
        model: encodes them.
        stats: its times and its number of frames are updated.
    """
    clips: dict[str, RecordSpool] = {}  # by id, of videos with clips still to come
    pieces = decoders.pieces(next_item, stats.seconds)
    for item, ended in Batches(model, stats.seconds).encode(pieces):
        if isinstance(ended, Exception):
            clips.pop(item.id, None)
            yield item, ended
            continue
        record = make_record(item, *ended, model.settings)
        stats.frames += len(ended.info.timestamps)
        if ended.info.clips is None:
            yield item, [record]
            continue
        if item.id not in clips:
            clips[item.id] = RecordSpool()
        clips[item.id].append(record)
        if len(clips[item.id]) == ended.info.clips:
            yield item, clips.pop(item.id)


def make_record(
    item: WorkItem,
    clip: int | None,
    info: Info,
    coded_size: tuple[int, int],
    features: np.ndarray,
    settings: Settings,
) -> Record:
    """Make the record of a stream that has ended: its features with all that is known of the video.

    Args:
        item: the video.
        clip, info, coded_size, features: see `Ended`.
        settings: of the folder.
    """
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
    """Return why a video failed, on one line, without its name."""
    text = error.reason if isinstance(error, VideoError) else str(error)
    return " ".join(text.split())
