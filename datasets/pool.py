"""Decoding in processes that can be killed: no file, however broken, hangs or crashes what asked for it."""

import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

import torch

from .error import VideoError

Job, Answer = Any, Any


class DecodePool:
    """Runs `function(job)` in `workers` processes, and gives up on a job after `time_limit` seconds.

    A process that is stuck is killed, one that crashes is buried; both are replaced and the job's answer is a
    `VideoError` that says so. path_of(job): the file to name in it. function: anything that pickles; it is sent to each
    process as that starts, so that the readers it opens are that process's own. What it returns must pickle. A
    `VideoError` it raises is an answer; any other exception comes out of `imap`, as ValueError or RuntimeError.

    Processes are started afresh (forkserver), never forked from one that has used FFmpeg, and belong to the process
    that made the pool: close it, or use it as a context manager. A DataLoader's workers may not own one.
    """

    def __init__(
        self,
        function: Callable[[Job], Answer],
        workers: int,
        time_limit: float,
        path_of: Callable[[Job], str | Path] = str,
    ):
        if workers < 1 or not time_limit > 0:
            raise ValueError(f"{workers=} must be at least 1 and {time_limit=} above 0")
        self._function, self._time_limit, self._path_of = function, time_limit, path_of
        self._workers = [_Worker(self._function) for _ in range(workers)]

    def imap(self, jobs: Iterable[Job], ahead: int = 2) -> Iterator[tuple[Job, Answer]]:
        """(job, answer) in the order of the jobs; `ahead` answers per worker are waiting at most."""
        for i, worker in enumerate(self._workers):
            if worker.task:  # of an imap that was not finished: its answer would be taken for one of ours
                self._replace(i)
        source = enumerate(jobs)
        limit = ahead * len(self._workers)
        waiting: dict[int, tuple[Job, Answer]] = {}  # answered before their turn
        turn, taken, exhausted = 0, 0, False
        while True:
            for worker in self._workers:
                if worker.ready and worker.task is None and not exhausted and taken - turn < limit:
                    task = next(source, None)
                    exhausted = task is None
                    if task is not None:
                        taken += 1
                        worker.give(task)
            if turn in waiting:
                yield waiting.pop(turn)
                turn += 1
            elif exhausted and turn == taken:
                return
            else:
                waiting.update(self._collect())

    def close(self) -> None:
        for worker in self._workers:
            worker.end()
        self._workers = []

    def __enter__(self) -> "DecodePool":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _replace(self, i: int) -> None:
        self._workers[i].end()
        self._workers[i] = _Worker(self._function)

    def _collect(self) -> Iterator[tuple[int, tuple[Job, Answer]]]:
        """Wait for news; (number, (job, answer)) for each job that is done with."""
        deadlines = [worker.since + self._time_limit for worker in self._workers if worker.task]
        wait = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
        news = connection.wait([worker.pipe for worker in self._workers], wait)
        for i, worker in enumerate(self._workers):
            task = worker.task
            if worker.pipe in news:
                try:
                    answer = worker.take()
                except (EOFError, ConnectionError):
                    code = worker.end()
                    how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
                    if task is None:
                        why = "its own words are above; a script needs `if __name__ == '__main__':`"
                        raise RuntimeError(f"a decode process ended without a job ({how}); {why}") from None
                    answer = VideoError(self._path_of(task[1]), f"the decoder crashed ({how})")
                    self._replace(i)
            elif task and time.monotonic() - worker.since >= self._time_limit:
                self._replace(i)
                answer = VideoError(self._path_of(task[1]), f"no result within {self._time_limit:g} s; decoder killed")
            else:
                continue
            if task is not None:
                yield task[0], (task[1], answer)


class _Worker:
    """A process and what it is at. task: (number, job). since: when it got that. ready: whether it has started up."""

    def __init__(self, function: Callable[[Job], Answer]):
        context = get_context("forkserver")
        self.pipe, end = context.Pipe()
        self._process = context.Process(target=_work, args=(end, function), daemon=True)
        self._process.start()
        end.close()  # so that the pipe ends with the process
        self.task: tuple[int, Job] | None = None
        self.since, self.ready = 0.0, False

    def give(self, task: tuple[int, Job]) -> None:
        self.task, self.since = task, time.monotonic()
        self.pipe.send_bytes(pickle.dumps(task[1]))

    def take(self) -> Answer:
        """The answer to the task, or None for the word that the process is ready."""
        kind, value = pickle.loads(self.pipe.recv_bytes())  # from our own process
        if kind == "error":
            error, text, trace = value
            raise error(text) from RuntimeError(f"in a decode process, at {self.task}:\n{trace}")
        self.task, self.ready = None, True
        return value

    def end(self) -> int:
        """Kill the process, whatever it is at; its exit code."""
        self.pipe.close()
        self._process.kill()
        self._process.join()
        return self._process.exitcode


def _work(pipe: connection.Connection, function: Callable[[Job], Answer]) -> None:
    """The life of a worker."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    for stop in (signal.SIGINT, signal.SIGTERM):  # sent to a whole group, they are the parent's to answer
        signal.signal(stop, signal.SIG_IGN)
    torch.set_num_threads(1)  # there is a process for each core already
    message = ("ready", None)
    while True:
        try:
            pipe.send_bytes(pickle.dumps(message))
            job = pickle.loads(pipe.recv_bytes())  # from our own parent
        except (EOFError, ConnectionError):
            return
        try:
            message = ("answer", function(job))
        except VideoError as e:
            message = ("answer", e)
        except ValueError as e:
            message = ("error", (ValueError, str(e), traceback.format_exc()))
        except Exception as e:  # not all of them pickle
            message = ("error", (RuntimeError, f"{type(e).__name__}: {e}", traceback.format_exc()))


def _die_with_parent() -> None:
    """A stuck worker would outlive a parent that was killed."""
    connection.wait([parent_process().sentinel])
    os._exit(1)
