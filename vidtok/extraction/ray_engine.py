"""Extraction on a Ray cluster: actors decode and encode videos, this process hands out videos and writes records.

`Output` stores the records as without Ray. So the output and resuming are the same, and only this machine needs the
folder. With an `ActorOutput` the actors write the files (`ray_output`) and send counts. All machines need vidtok, and
the videos under the same paths.

The engine uses plain Ray actors, not a pool of actors in Ray Data, for three reasons. Ray Data reads its whole input
before it starts; here videos are claimed one after the other. Ray Data returns and retries whole blocks of videos. When
an actor dies, Ray Data retries its block for ever or fails the run; here only the video that causes it fails.
"""

import logging
import os
import queue
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from vidtok.extraction.decoding import ReadConfig
from vidtok.extraction.engine import Decoders, NextItem, Result, extract_records
from vidtok.extraction.model import FeatureModel
from vidtok.extraction.output import Output
from vidtok.extraction.ray_output import ActorFiles, ActorOutput, Published, Target
from vidtok.extraction.sources import WorkItem
from vidtok.extraction.stats import Counts, ExtractionStats
from vidtok.remote import as_address

BATCH = 16  # videos per decoder in a batch of work for an actor, which is idle for a moment between two batches
DEATHS = 3  # number of actors that may die over one video before it fails
LOSSES = 10  # times that a video may be lost with an incomplete shard before it fails
IDLE = 0.2  # seconds between two looks of an idle actor's thread whether to complete its shard
STARTS = 3  # attempts to start an actor


@dataclass(frozen=True)
class ActorResources:
    """Number of actors, and the resources of each.

    Attributes:
        actors: number of actors.
        cpus, gpus: per actor.
        workers: decode processes per actor.
        threads: threads of the model on a CPU, per actor.
    """

    actors: int
    cpus: int
    gpus: int
    workers: int
    threads: int


def connect(address: str | None) -> None:
    """Connect to a Ray cluster.

    Args:
        address: of a running cluster, "auto" or "host:port"; None starts a new local one.

    Raises:
        ValueError: there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports to Ray's developers without consent
    how: dict[str, Any] = {"ignore_reinit_error": True, "log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            ray.init("local", include_dashboard=False, **how)
            return
        host, colon, port = address.rpartition(":")
        if colon and "/" not in host:  # fail quickly: Ray itself would retry for minutes
            socket.create_connection((host, int(port)), 10).close()
        ray.init(address, **how)
    except Exception as error:  # Ray raises a plain Exception, too, if a node is slow to start
        raise ValueError(f"no Ray cluster at {address or 'local'!r}: {_first_line(error)}") from error


def share_cluster(videos: int, actors: int | None, workers: int | None, threads: int | None) -> ActorResources:
    """Divide the connected cluster among actors.

    By default there is one actor per GPU with its share of the CPUs. Without GPUs there is one actor per two CPUs, one
    of which decodes. On a cluster with GPUs every actor has a whole one.

    Args:
        videos: number of videos; there are no more actors than that.
        actors, workers, threads: requested numbers, see `ActorResources`; None, by default as above.
    """
    cpus, gpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("CPU", "GPU"))
    largest = max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=1)
    actors = min(actors or gpus, gpus) if gpus else actors
    of_each = cpus // gpus if gpus else 2 if workers is None else workers + 1
    of_each = max(1, min(largest, of_each, cpus // actors if actors else of_each))
    workers = of_each - 1 if workers is None else workers
    threads = threads or max(1, of_each - workers)
    return ActorResources(max(1, min(actors or cpus // of_each, videos)), of_each, int(gpus > 0), workers, threads)


class Worker:
    """Ray actor with a copy of the model and its own decode processes.

    Args:
        model, reading, share, time_limit: as of `RayExtractor`.
        target: where this actor writes files; None, the driver writes them.
    """

    def __init__(
        self,
        model: FeatureModel,
        reading: ReadConfig,
        share: ActorResources,
        time_limit: float,
        target: Target | None = None,
    ):
        self._files = None if target is None else ActorFiles(target)
        torch.set_num_threads(share.threads)
        model.to("cuda" if share.gpus else "cpu")
        self._model = model
        self._decoders = Decoders(reading, share.workers, time_limit)

    def ready(self) -> None:
        pass

    def work(
        self, items: list[WorkItem], names: dict[str, str]
    ) -> Iterator[tuple[str, "Sequence | Published | Exception | None"]]:
        """Yield (id, records or error) of each item, as they are done; or what `ActorFiles` yields.

        Args:
            items: videos to extract; none, complete the current shard.
            names: of the files to write, by id, see `ActorFiles.write`.
        """
        waiting = deque(items)
        next_item = lambda: waiting.popleft() if waiting else None  # noqa: E731
        for item, result in extract_records(next_item, self._decoders, self._model, ExtractionStats(len(items))):
            if self._files is None or isinstance(result, Exception):
                yield item.id, result
            else:
                yield from self._files.write(item.id, names[item.id], result)
        if self._files is not None and not items:
            yield from self._files.complete()


@dataclass(frozen=True)
class _Lost:
    """Items whose actor died; at most one of them is the cause.

    Attributes:
        items: those whose records it had not returned or written.
        why: reason of its death.
        written: those that it had written to a file that it had not reported as published.
    """

    items: list[WorkItem]
    why: str
    written: list[WorkItem] = field(default_factory=list)


class RayExtractor:
    """Actors on a Ray cluster, each served by a thread of this process.

    An actor that dies is restarted on any machine with free resources. Videos whose records it had not returned are
    extracted again by any actor. A video fails when `DEATHS` actors have died over it.

    Args:
        model: on the CPU; it is copied to the actors.
        reading: how videos are read.
        share: number and resources of the actors.
        time_limit: seconds, see `vidtok.extraction.engine.Decoders`.
        output: its `stats` are read and updated. With an `ActorOutput` the actors write the files.

    Raises:
        ValueError: an actor can't be started (raised by `extract`).
    """

    def __init__(
        self,
        model: FeatureModel,
        reading: ReadConfig,
        share: ActorResources,
        time_limit: float,
        output: Output,
    ):
        self.share, self._stats = share, output.stats
        self._output = output if isinstance(output, ActorOutput) else None
        self._arguments = (ray.put(model), reading, share, time_limit)
        self._batches: queue.SimpleQueue[tuple[list[WorkItem], dict[str, str]] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue = queue.SimpleQueue()
        self._closed = False
        self._completing = False  # whether idle actors are to complete their shards
        self._actors: dict[int, Any] = {}
        self._threads = [threading.Thread(target=self._serve, args=(i,), daemon=True) for i in range(share.actors)]
        for thread in self._threads:
            thread.start()

    def extract(self, next_item: NextItem) -> Iterator[Result]:
        """Yield all records of each video, or its error, as `vidtok.extraction.engine.extract_records`.

        Of videos that actors have written it yields `Stored` once their files are published.
        """
        at: dict[str, WorkItem] = {}  # handed out and not done
        deaths: Counter[str] = Counter()
        losses: Counter[str] = Counter()
        batches, more = 0, True  # batches: number handed out
        while True:
            while more and batches <= self.share.actors:  # one batch more than actors, for the first that is free
                items: list[WorkItem] = []
                while more and len(items) < self._batch_size(len(at)):
                    item = next_item()
                    more = item is not None
                    if item is not None:
                        items.append(item)
                        at[item.id] = item
                if items:
                    self._give(items)
                    batches += 1
            if not at and not batches:
                return
            self._completing = not batches
            start = time.perf_counter()
            answer = self._results.get()
            self._stats.seconds["read"] += time.perf_counter() - start
            if answer is None:
                batches -= 1
            elif isinstance(answer, _Lost):
                lost = [item.id for item in (*answer.items, *answer.written)]
                published: dict[str, Any] = {} if self._output is None else self._output.find_published(lost)
                # Suspects one at a time: another death then shows which is the cause.
                for items, counts, limit, size in (
                    (answer.items, deaths, DEATHS, 1),
                    (answer.written, losses, LOSSES, BATCH),
                ):
                    again = []
                    for item in items:
                        counts[item.id] += 1
                        if item.id in published:
                            self._stats.frames += published[item.id].frames
                            yield at.pop(item.id), published[item.id]
                        elif counts[item.id] < limit:
                            again.append(at[item.id])
                        else:
                            yield at.pop(item.id), RuntimeError(f"{limit} actors died over it: {answer.why}")
                    for i in range(0, len(again), size):
                        self._give(again[i : i + size])
                        batches += 1
            elif isinstance(answer, Exception):
                raise answer
            else:
                id, result = answer
                if isinstance(result, Counts):
                    self._stats.frames += result.frames
                elif not isinstance(result, Exception):
                    self._stats.frames += sum(record.meta.frames for record in result)
                yield at.pop(id), result

    def close(self) -> None:
        self._closed = True
        for _ in self._threads:
            self._batches.put(None)
        for actor in list(self._actors.values()):
            ray.kill(actor)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> "RayExtractor":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _batch_size(self, given: int) -> int:
        """Return the number of videos in the next batch: less towards the end, so that all actors end together.

        given: number of videos that are handed out.
        """
        left = self._stats.total - self._stats.done - self._stats.skipped - self._stats.failed - given
        return max(1, min(BATCH * max(self.share.workers, 1), left // (2 * self.share.actors)))

    def _give(self, items: list[WorkItem]) -> None:
        # Absolute paths, since actors have another working directory.
        paths = [
            item.path if item.path is None or as_address(item.path) else str(Path(item.path).absolute())
            for item in items
        ]
        names = {} if self._output is None else {item.id: self._output.writer.place(item.id) for item in items}
        self._batches.put(([replace(item, path=path) for item, path in zip(items, paths, strict=True)], names))

    def _take(self, has_shard: bool) -> tuple[list[WorkItem], dict[str, str]] | None:
        """Wait for a batch. Return one without items if the actor has a shard that it should complete; None at the end.

        has_shard: whether the actor has written videos to an incomplete shard.
        """
        while True:
            try:
                return self._batches.get(timeout=IDLE if has_shard else None)
            except queue.Empty:
                if self._completing:
                    return [], {}

    def _serve(self, number: int) -> None:
        """Serve one actor: pass batches to it and its results on, with a None after each batch. Runs in a thread."""
        try:
            actor, target = self._start(number)
            written: dict[str, WorkItem] = {}  # videos in its incomplete shard
            while not self._closed and (batch := self._take(bool(written))) is not None:
                left = {item.id: item for item in batch[0]}
                try:
                    answer: Any
                    for answer in actor.work.options(num_returns="streaming").remote(*batch):
                        id, result = ray.get(answer)
                        if result is None:
                            written[id] = left.pop(id)
                        elif isinstance(result, Published):
                            for stored in result.videos:
                                del written[stored.entry.id]
                                self._results.put((stored.entry.id, stored))
                        else:
                            (left if id in left else written).pop(id)
                            self._results.put((id, result))
                except RayTaskError as error:  # the actor is alive and raised an error
                    raise error.cause from error
                except RayError as error:
                    if self._closed:
                        return
                    ray.kill(actor)  # if only its results were lost, it is alive and would keep its CPUs
                    if self._output is not None and target is not None:
                        self._output.fence(target)
                    self._results.put(_Lost(list(left.values()), _first_line(error), list(written.values())))
                    written = {}
                    if batch[0]:
                        self._results.put(None)
                    actor, target = self._start(number)
                else:
                    if batch[0]:
                        self._results.put(None)
        except Exception as error:  # raised by the main thread
            if not self._closed:
                self._results.put(error)

    def _start(self, number: int) -> tuple[Any, Target | None]:
        """Start an actor and wait until it is ready, however long it takes until the cluster has room for it.

        Returns:
            (actor, where it writes files).
        """
        share = self.share
        error: RayError | None = None
        for _ in range(STARTS):
            # No restarts by Ray itself: they would not tell which results are lost.
            options: dict[str, Any] = {"num_cpus": share.cpus, "num_gpus": share.gpus, "max_restarts": 0}
            target = None if self._output is None else self._output.target()
            actor: Any = ray.remote(Worker).options(**options).remote(*self._arguments, target)
            self._actors[number] = actor
            up = actor.ready.remote()
            try:
                while not ray.wait([up], timeout=1)[0]:
                    if self._closed:
                        return actor, target
                ray.get(up)
                return actor, target
            except RayError as failure:
                error = failure
                if self._closed:
                    break
        assert error is not None
        raise ValueError(f"an actor doesn't start: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1 if "error raised in its creation task" in lines[0] else 0]  # the end of a traceback
