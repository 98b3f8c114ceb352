"""Extraction on a Ray cluster: actors decode and encode videos, this process hands out videos and writes records.

`Output` stores the records as without Ray. So the output and resuming are the same, and only this machine needs the
folder. All machines need vidtok, and the videos under the same paths.

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
from dataclasses import dataclass, replace
from pathlib import Path

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from vidtok.extraction.decoding import ReadConfig
from vidtok.extraction.engine import Decoders, NextItem, Result, extract_records
from vidtok.extraction.model import FeatureModel
from vidtok.extraction.sources import WorkItem
from vidtok.extraction.stats import ExtractionStats
from vidtok.remote import as_address

BATCH = 16  # videos per decoder in a batch of work for an actor, which is idle for a moment between two batches
DEATHS = 3  # number of actors that may die over one video before it fails
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
    how = {"ignore_reinit_error": True, "log_to_driver": False, "logging_level": logging.ERROR}
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
    """Ray actor with a copy of the model and its own decode processes."""

    def __init__(self, model: FeatureModel, reading: ReadConfig, share: ActorResources, time_limit: float):
        torch.set_num_threads(share.threads)
        model.to("cuda" if share.gpus else "cpu")
        self._model = model
        self._decoders = Decoders(reading, share.workers, time_limit)

    def ready(self) -> None:
        pass

    def work(self, items: list[WorkItem]) -> Iterator[tuple[str, "Sequence | Exception"]]:
        """Yield (id, records or error) of each item, as they are done."""
        waiting = deque(items)
        next_item = lambda: waiting.popleft() if waiting else None  # noqa: E731
        for item, result in extract_records(next_item, self._decoders, self._model, ExtractionStats(len(items))):
            yield item.id, result


@dataclass(frozen=True)
class _Lost:
    """Items whose actor died before it returned their records; at most one of them is the cause."""

    items: list[WorkItem]
    why: str


class RayExtractor:
    """Actors on a Ray cluster, each served by a thread of this process.

    An actor that dies is restarted on any machine with free resources. Videos whose records it had not returned are
    extracted again by any actor. A video fails when `DEATHS` actors have died over it.

    Args:
        model: on the CPU; it is copied to the actors.
        reading: how videos are read.
        share: number and resources of the actors.
        time_limit: seconds, see `vidtok.extraction.engine.Decoders`.
        stats: its counts are read and updated.

    Raises:
        ValueError: an actor can't be started (raised by `extract`).
    """

    def __init__(
        self, model: FeatureModel, reading: ReadConfig, share: ActorResources, time_limit: float, stats: ExtractionStats
    ):
        self.share, self._stats = share, stats
        self._arguments = (ray.put(model), reading, share, time_limit)
        self._batches: queue.SimpleQueue[list[WorkItem] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue = queue.SimpleQueue()
        self._closed = False
        self._actors: dict[int, ray.actor.ActorHandle] = {}
        self._threads = [threading.Thread(target=self._serve, args=(i,), daemon=True) for i in range(share.actors)]
        for thread in self._threads:
            thread.start()

    def extract(self, next_item: NextItem) -> Iterator[Result]:
        """Yield all records of each video, or its error, as `vidtok.extraction.engine.extract_records`."""
        at: dict[str, WorkItem] = {}  # handed out and not done
        deaths: Counter[str] = Counter()
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
            start = time.perf_counter()
            answer = self._results.get()
            self._stats.seconds["read"] += time.perf_counter() - start
            if answer is None:
                batches -= 1
            elif isinstance(answer, _Lost):
                for item in answer.items:
                    deaths[item.id] += 1
                    if deaths[item.id] < DEATHS:
                        self._give([at[item.id]])  # one at a time: another death then shows which is the cause
                        batches += 1
                    else:
                        yield at.pop(item.id), RuntimeError(f"{DEATHS} actors died over it: {answer.why}")
            elif isinstance(answer, Exception):
                raise answer
            else:
                id, result = answer
                if not isinstance(result, Exception):
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
        self._batches.put([replace(item, path=path) for item, path in zip(items, paths, strict=True)])

    def _serve(self, number: int) -> None:
        """Serve one actor: pass batches to it and its results on, with a None after each batch. Runs in a thread."""
        try:
            actor = self._start(number)
            while not self._closed and (items := self._batches.get()) is not None:
                left = {item.id: item for item in items}
                try:
                    for answer in actor.work.options(num_returns="streaming").remote(items):
                        id, result = ray.get(answer)
                        del left[id]
                        self._results.put((id, result))
                except RayTaskError as error:  # the actor is alive and raised an error
                    raise error.cause from error
                except RayError as error:
                    if self._closed:
                        return
                    self._results.put(_Lost(list(left.values()), _first_line(error)))
                    self._results.put(None)
                    ray.kill(actor)  # if only its results were lost, it is alive and would keep its CPUs
                    actor = self._start(number)
                else:
                    self._results.put(None)
        except Exception as error:  # raised by the main thread
            if not self._closed:
                self._results.put(error)

    def _start(self, number: int) -> ray.actor.ActorHandle:
        """Start an actor and wait until it is ready, however long it takes until the cluster has room for it."""
        share = self.share
        error: RayError | None = None
        for _ in range(STARTS):
            # No restarts by Ray itself: they would not tell which results are lost.
            options = {"num_cpus": share.cpus, "num_gpus": share.gpus, "max_restarts": 0}
            actor = self._actors[number] = ray.remote(Worker).options(**options).remote(*self._arguments)
            up = actor.ready.remote()
            try:
                while not ray.wait([up], timeout=1)[0]:
                    if self._closed:
                        return actor
                ray.get(up)
                return actor
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
