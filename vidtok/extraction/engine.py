"""The run: videos in, records out, the model busy while others decode; and how fast each of these is.

Pieces go through the model together that are the next ones of different streams and have one shape.
"""

import os
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from vidtok.datasets import VideoError
from vidtok.datasets.backends import reader_version
from vidtok.extraction.decoding import Decoders, Info, StreamChunk
from vidtok.extraction.model import FeatureModel, Stream
from vidtok.extraction.output import Output
from vidtok.extraction.record import Record, RecordMeta, Settings
from vidtok.extraction.sources import WorkItem
from vidtok.names import escape_name
from vidtok.streaming import coded_size


@dataclass
class _Lane:
    item: WorkItem
    clip: int | None
    stream: Stream = field(default_factory=Stream)
    waiting: deque[StreamChunk] = field(default_factory=deque)


class Batches:
    """Pieces wait here until a batch is full, or until `limit` of them are waiting."""

    def __init__(self, model: FeatureModel):
        self.model = model
        self.limit = 4 * model.batch
        self.waiting = 0
        self._lanes: dict[tuple[str, int | None], _Lane] = {}

    def add(self, item: WorkItem, piece: StreamChunk) -> None:
        lane = self._lanes.setdefault((item.id, piece.clip), _Lane(item, piece.clip))
        lane.waiting.append(piece)
        self.waiting += 1

    def drop(self, item: WorkItem) -> None:
        """All of an item that failed."""
        for key in [key for key, lane in self._lanes.items() if lane.item == item]:
            self.waiting -= len(self._lanes.pop(key).waiting)

    def choose(self, flush: bool) -> list[_Lane]:
        """Whose next pieces to run: a full batch; or the fullest, with `flush` or too many waiting; or none."""
        heads = {key: _kind(lane) for key, lane in self._lanes.items() if lane.waiting}
        if not heads:
            return []
        kind, count = Counter(heads.values()).most_common(1)[0]
        if count < self.model.batch and not flush and self.waiting < self.limit:
            return []
        return [self._lanes[key] for key, other in heads.items() if other == kind][: self.model.batch]

    def run(self, lanes: list[_Lane]) -> list[tuple[WorkItem, int | None, Info, np.ndarray]]:
        """One pass of the model. Returns (item, clip, info, features) of the streams that ended with it."""
        pieces = [lane.waiting.popleft() for lane in lanes]
        self.waiting -= len(pieces)
        self.model.push([lane.stream for lane in lanes], [piece.video for piece in pieces])
        ended = []
        for lane, piece in zip(lanes, pieces, strict=True):
            if piece.info is not None:
                del self._lanes[lane.item.id, lane.clip]
                ended.append((lane.item, lane.clip, piece.info, self.model.finish(lane.stream)))
        return ended


def _kind(lane: _Lane) -> tuple:
    piece = lane.waiting[0]
    return tuple(piece.video.shape), piece.first


Result = tuple[WorkItem, "list[Record] | Exception"]
NextItem = Callable[[], "WorkItem | None"]


STAGES = ("read", "infer", "write")
PATIENCE = 0.2  # seconds between two looks at what another process is at


class RunStats:
    """Counts and failures of a run over files, while it goes on and afterwards. `str()` is a one-line summary.

    Attributes:
        total: files of the run. done, skipped: files so far; skipped ones were complete already.
        failures: (file, reason) of each that failed. damaged: (file, what it lost) of each that was kept all the same.
        frames: of what was done.
    """

    things = "files"

    def __init__(self, total: int):
        self.total = total
        self.done = self.skipped = self.frames = 0
        self.failures: list[tuple[Any, str]] = []
        self.damaged: list[tuple[Any, str]] = []
        self._start = time.perf_counter()
        self._end: float | None = None

    def finish(self) -> None:
        """Stop the clock."""
        self._end = time.perf_counter()

    @property
    def failed(self) -> int:
        return len(self.failures)

    @property
    def elapsed(self) -> float:
        """Seconds from the beginning to the end, or to now."""
        return (self._end or time.perf_counter()) - self._start

    @property
    def eta(self) -> float | None:
        """Seconds to the end, or None before the first file."""
        worked = self.done + self.failed
        return None if not worked else self.elapsed / worked * (self.total - worked - self.skipped)

    def counts(self) -> dict:
        """Return the counts so far, as JSON takes them: {"event": "progress", "total", "done", "skipped", "failed",
        "damaged", "frames", "seconds", "seconds_left" (or None)}."""
        left = None if self.eta is None else round(self.eta, 3)
        counts = {name: getattr(self, name) for name in ("total", "done", "skipped", "failed")}
        counts |= {"damaged": len(self.damaged), "frames": self.frames}
        return {"event": "progress"} | counts | {"seconds": round(self.elapsed, 3), "seconds_left": left}

    @property
    def speed(self) -> str:
        """Rates in words."""
        return f"{self.frames / self.elapsed:.0f} frames/s"

    @property
    def size(self) -> str:
        """Size of what was written, in words, or ""."""
        return ""

    def __str__(self) -> str:
        return (
            f"{self.done} of {self.total} {self.things}, {self.frames} frames in {self.elapsed:.1f} s ({self.speed})"
            + (f", {self.size}" if self.size else "")
            + (f", {self.skipped} were complete" if self.skipped else "")
            + (f", {len(self.damaged)} damaged" if self.damaged else "")
            + (f", {self.failed} failed" if self.failures else "")
        )


class ExtractionStats(RunStats):
    """Counts, failures and times of an extraction.

    Attributes:
        records, tokens: of what was done. bytes: of the files that were completed.
        seconds: {"read": waited for the decoders, "infer": in the model, "write": finding and writing files}.
        agreement: of bf16 tokens with fp32 ones, see `vidtok.extraction.run.encode_files`, or None.
    """

    things = "videos"

    def __init__(self, total: int):
        super().__init__(total)
        self.records = self.tokens = self.bytes = 0
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.agreement: object | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def add(self, item: WorkItem, records: list[Record]) -> None:
        """Count a video that is done."""
        self.done += 1
        if damage := records[0].meta.damage:
            self.damaged.append((item, damage))
        self.records += len(records)
        self.tokens += sum(record.features.size for record in records if record.meta.feature == "ids")

    @property
    def speed(self) -> str:
        """ "1.2 videos/s, 34 frames/s; read 10%, infer 85%, write 2%": rates, and shares of the time."""
        shares = ", ".join(f"{name} {self.seconds[name] / self.elapsed:.0%}" for name in STAGES)
        return f"{self.done / self.elapsed:.1f} videos/s, {super().speed}; {shares}"

    @property
    def size(self) -> str:
        """ "1.23 MB, 1.50 bytes per token", or "" where nothing was written."""
        per_token = f", {self.bytes / self.tokens:.2f} bytes per token" if self.tokens else ""
        return f"{self.bytes / 1e6:.3g} MB{per_token}" if self.bytes else ""


def run_extraction(
    output: Output,
    extract: Callable[[NextItem], Iterator[Result]],
    stats: ExtractionStats,
    report: Callable[[ExtractionStats], None] = lambda stats: None,
) -> None:
    """Do all that `output` has to do.

    Args:
        extract: `extract_records` with a model and decoders, or `RayExtractor.extract`, the same on other machines.
        stats: kept up to date.
        report: called with them whenever something was done.

    Raises:
        OSError: where the disk is full, ...; all that is complete stays.
    """
    stats.failures = output.failures

    def next_item() -> WorkItem | None:
        with stats.stage("write"):
            item = output.next()
        stats.skipped = output.skipped
        return item

    try:
        more = True
        while more:
            for item, result in extract(next_item):
                if isinstance(result, Exception):
                    output.fail(item, reason(result))
                else:
                    with stats.stage("write"):
                        stored = output.take(item, result)
                    if stored:
                        stats.add(item, result)
                    stats.bytes = output.writer.written
                report(stats)
            with stats.stage("write"):
                more = output.flush()
            if more:
                time.sleep(PATIENCE)
    except KeyboardInterrupt:
        output.flush()
        output.close()
        raise
    except BaseException:
        output.abandon()
        raise
    output.close()
    stats.bytes = output.writer.written


def extract_records(
    next_item: NextItem, decoders: Decoders, model: FeatureModel, stats: ExtractionStats
) -> Iterator[Result]:
    """All records of one video after the other, or the error that it ended in, in the order in which they end.

    next_item: gives the videos, and None when there are no more. Only those that are being decoded, and a few pieces
    of them, are in memory.
    """
    batches = Batches(model)
    decoding: dict[str, WorkItem] = {}  # pieces are still to come
    clips: dict[str, list[Record]] = {}  # of videos that are not complete
    failed: set[str] = set()  # videos that the model could not take, of which pieces are still to come
    more = True
    while True:
        while more and len(decoding) < 2 * decoders.slots:
            item = next_item()
            more = item is not None
            if item is not None:
                decoding[item.id] = item
                decoders.put(item)
        if decoding:
            with stats.stage("read"):
                item, piece = decoders.get()
            ends = isinstance(piece, VideoError) or piece.ends_item
            if ends:
                del decoding[item.id]
            if item.id in failed:
                failed -= {item.id} if ends else set()
            elif isinstance(piece, VideoError):
                batches.drop(item)
                clips.pop(item.id, None)
                yield item, piece
            else:
                batches.add(item, piece)
        while lanes := batches.choose(flush=not decoding):
            try:
                with stats.stage("infer"):
                    ended = batches.run(lanes)
            except (MemoryError, torch.OutOfMemoryError) as error:
                for item in {lane.item.id: lane.item for lane in lanes}.values():
                    batches.drop(item)
                    clips.pop(item.id, None)
                    failed |= {item.id} & decoding.keys()
                    yield item, error
                continue
            for item, clip, info, features in ended:
                records = clips.setdefault(item.id, [])
                records.append(make_record(item, clip, info, features, model.settings))
                stats.frames += len(info.timestamps)
                if len(records) == (info.clips or 1):
                    yield item, sorted(clips.pop(item.id), key=lambda record: record.meta.clip or 0)
        if not decoding and not more:
            return


def make_record(item: WorkItem, clip: int | None, info: Info, features: np.ndarray, settings: Settings) -> Record:
    cells = features.size if settings.feature == "ids" else features[0].size
    meta = RecordMeta(
        **asdict(settings),
        fps=info.fps,
        frames=len(info.timestamps),
        size=info.size,
        coded_size=coded_size(info.size, settings.stride),
        native_size=info.native_size,
        native_fps=info.native_fps,
        source=escape_name(os.path.basename(item.path)) if item.path else "",
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


ROUNDS = 3
FRAMES = 2000  # their pieces are held in memory, for the model alone


@dataclass(frozen=True)
class Speeds:
    """Frames per second: decode and model, each alone; together, with files written. All of one round."""

    decode: float
    model: float
    together: float

    @property
    def of_serial(self) -> float:
        """Share of what one after the other would reach, 1 / (1 / decode + 1 / model); above 1 where they overlap."""
        return self.together * (1 / self.decode + 1 / self.model)

    @property
    def of_slower(self) -> float:
        """Share of the slower stage's speed."""
        return self.together / min(self.decode, self.model)


def measure_speeds(
    items: Iterable[WorkItem], decoders: Decoders, model: FeatureModel, container: str
) -> tuple[int, list[Speeds]]:
    """(frames, speeds of each of `ROUNDS` rounds) on the first videos, up to `FRAMES` frames. Nothing is kept.

    Raises:
        ValueError: where no video can be read.
    """
    pieces: dict[WorkItem, list[StreamChunk]] = {}
    frames = 0

    def keep(item: WorkItem, piece: StreamChunk | VideoError) -> bool:
        nonlocal frames
        if isinstance(piece, VideoError):
            pieces.pop(item, None)
        else:
            # A copy: the decoder wants its memory back.
            pieces.setdefault(item, []).append(piece._replace(video=piece.video.clone()))
            frames += piece.video.shape[2]
        return frames < FRAMES

    _decode(items, decoders, keep)
    if not pieces:
        raise ValueError("no video could be read")
    good = [*pieces]
    parts = [(item, piece) for item in good for piece in pieces[item]]
    frames = sum(len(piece.info.timestamps) for _, piece in parts if piece.info is not None)
    _encode(parts[:1], model)  # warms up
    rounds = []
    for _ in range(ROUNDS):
        seconds = [
            _time(lambda: _decode(good, decoders, lambda item, piece: True)),
            _time(lambda: _encode(parts, model)),
            _time(lambda: _extract(good, decoders, model, container)),
        ]
        rounds.append(Speeds(*(frames / s for s in seconds)))
    return frames, rounds


def _decode(
    items: Iterable[WorkItem], decoders: Decoders, take: Callable[[WorkItem, StreamChunk | VideoError], bool]
) -> None:
    """take: gets the pieces, and says whether to begin with more items."""
    items, under_way, more = iter(items), 0, True
    while True:
        while more and under_way < 2 * decoders.slots:
            item = next(items, None)
            more = item is not None
            if item is not None:
                decoders.put(item)
                under_way += 1
        if not under_way:
            return
        item, piece = decoders.get()
        under_way -= isinstance(piece, VideoError) or piece.ends_item
        more = take(item, piece) and more


def _encode(pieces: list[tuple[WorkItem, StreamChunk]], model: FeatureModel) -> None:
    batches = Batches(model)
    for item, piece in pieces:
        batches.add(item, piece)
        while lanes := batches.choose(flush=False):
            batches.run(lanes)
    while lanes := batches.choose(flush=True):
        batches.run(lanes)


def _extract(items: list[WorkItem], decoders: Decoders, model: FeatureModel, container: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stats = ExtractionStats(len(items))
        extract = partial(extract_records, decoders=decoders, model=model, stats=stats)
        run_extraction(Output(folder, model.settings, container, items), extract, stats)


def _time(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
