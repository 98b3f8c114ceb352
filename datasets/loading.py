"""Decoding in processes that can be killed: no file, however broken, hangs or crashes what asked for it.

What one process hands to another: a pickle, whose arrays travel through shared memory that is used again and again.

Sent through a pipe, a clip is copied five times; in fresh shared memory, its pages cost more than the copy does.

An endless row of batches, made ahead by a DataLoader's workers.

The share of a batch that one process of several makes.

Checks of what batches of clips shall be like, before anything is read.
"""

import itertools
import math
import os
import pickle
import signal
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from multiprocessing import connection, get_context, parent_process
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vidtok.errors import VideoError

_ALIGNMENT = 64  # bytes: what vector instructions like
_LARGEST = 1 << 28  # bytes; above that, memory is not what a sample spends its time on


class SharedMessage(NamedTuple):
    """body: the pickle without its arrays. size: bytes of these. places: where in the shared memory they begin and end,
    or None where they are in `arrays`, since there was no room."""

    body: bytes
    size: int
    places: list[tuple[int, int]] | None
    arrays: list[bytes]


def pack(value: Any, memory: Tensor | None) -> SharedMessage:
    """memory: uint8 [N], shared with the receiver; arrays and tensors of `value` are copied into it if they fit."""
    body, buffers = BytesIO(), []
    _Pickler(body, protocol=5, buffer_callback=buffers.append).dump(value)
    raw = [buffer.raw() for buffer in buffers]
    places, size = [], 0
    for buffer in raw:
        places.append((size, size + buffer.nbytes))
        size += -(-buffer.nbytes // _ALIGNMENT) * _ALIGNMENT
    if memory is None or size > len(memory):
        return SharedMessage(body.getvalue(), size, None, [buffer.tobytes() for buffer in raw])
    to = memoryview(memory.numpy())
    for buffer, (start, stop) in zip(raw, places, strict=True):
        to[start:stop] = buffer
    return SharedMessage(body.getvalue(), size, places, [])


class SharedBuffer:
    """memory: uint8 [N], shared. key: (N, number), unique in its `SharedMemoryPool`."""

    def __init__(self, size: int, number: int):
        self.memory, self.key = torch.empty(size, dtype=torch.uint8).share_memory_(), (size, number)


class SharedMemoryPool:
    """The receiver's shared memory, a slot for each parcel that is under way or in use.

    Slots have the size of the largest parcel so far. `take` one for the sender, `unpack` what comes back.
    """

    def __init__(self):
        self._free: list[SharedBuffer] = []
        self._size, self._count = 0, 0

    def take(self) -> SharedBuffer | None:
        """A free slot, or None as long as there are none: at first, and where the system has no shared memory left."""
        while self._free:
            if (slot := self._free.pop()).key[0] == self._size:
                return slot
        if not self._size:
            return None
        self._count += 1
        try:
            return SharedBuffer(self._size, self._count)
        except (RuntimeError, OSError):
            self._size = 0
            return None

    def give_back(self, slot: SharedBuffer | None) -> None:
        if slot is not None:
            self._free.append(slot)

    def unpack(self, message: SharedMessage, slot: SharedBuffer | None) -> Any:
        """The value. Its arrays lie in the slot, which is free again when the last of them, and all that looks into
        them, is gone."""
        if message.places is None:
            self.give_back(slot)
            if self._size < message.size <= _LARGEST and (slot is not None or not self._count):
                self._size = message.size + message.size // 8
            return pickle.loads(message.body, buffers=map(bytearray, message.arrays))  # from our own process
        # Of a memoryview, because NumPy would trace a slice of a slice back to the slot itself and forget this one.
        whole = np.frombuffer(memoryview(slot.memory.numpy()), np.uint8)
        weakref.finalize(whole, self._free.append, slot).atexit = False
        return pickle.loads(message.body, buffers=[whole[start:stop] for start, stop in message.places])


class _Pickler(pickle.Pickler):
    """Tensors go as the arrays they are; torch's own way is to write a file of each."""

    def reducer_override(self, value: Any):
        if type(value) is Tensor and value.device.type == "cpu" and value.dtype in _DTYPES:
            return torch.from_numpy, (np.ascontiguousarray(value.detach().numpy()).reshape(value.shape),)
        return NotImplemented


_DTYPES = {torch.from_numpy(np.zeros(1, t)).dtype for t in "?bhilefdB"}

Job, Answer = Any, Any


class DecodePool:
    """Runs `function(job)` in `workers` processes, and gives up on a job after `time_limit` seconds.

    A process that is stuck is killed, one that crashes is buried; both are replaced and the job's answer is a
    `VideoError` that says so. path_of(job): the file to name in it. function: anything that pickles; it is sent to each
    process as that starts, so that the readers it opens are that process's own. What it returns must pickle. A
    `VideoError` it raises is an answer; any other exception comes out of `imap`, as ValueError or RuntimeError.

    Arrays and tensors in an answer lie in memory shared with the process, which gets it back for another answer when
    nothing looks into them any more; they may be changed.

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
        self._slots = SharedMemoryPool()
        self._workers = [_Worker(self._function, self._slots) for _ in range(workers)]

    def imap(self, jobs: Iterable[Job], ahead: int = 2, queue: int = 2) -> Iterator[tuple[Job, Answer]]:
        """(job, answer) in the order of the jobs. ahead: how many per worker are taken from `jobs` before their turn.
        queue: how many of these it is sent at once, so that it goes on while the caller is busy with an answer."""
        for i, worker in enumerate(self._workers):
            if worker.tasks:  # of an imap that was not finished: its answers would be taken for ours
                self._replace(i)
        source = enumerate(jobs)
        limit = ahead * len(self._workers)
        waiting: dict[int, tuple[Job, Answer]] = {}  # answered before their turn
        turn, taken, exhausted = 0, 0, False
        while True:
            while not exhausted and taken - turn < limit and (worker := self._least_busy(queue)):
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

    def _least_busy(self, queue: int) -> "_Worker | None":
        """Of the workers that have started up and have fewer than `queue` tasks."""
        free = [worker for worker in self._workers if worker.ready and len(worker.tasks) < queue]
        return min(free, key=lambda worker: len(worker.tasks), default=None)

    def _replace(self, i: int, tasks: Iterable[tuple[int, Job]] = ()) -> None:
        """A new process in place of worker i, for `tasks`."""
        self._workers[i].end()
        self._workers[i] = _Worker(self._function, self._slots, tasks)

    def _collect(self) -> Iterator[tuple[int, tuple[Job, Answer]]]:
        """Wait for news; (number, (job, answer)) for each job that is done with."""
        deadlines = [worker.since + self._time_limit for worker in self._workers if worker.busy]
        wait = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
        news = connection.wait([worker.pipe for worker in self._workers], wait)
        for i, worker in enumerate(self._workers):
            if worker.pipe in news:
                try:
                    done = worker.take()
                except (EOFError, ConnectionError):
                    code = worker.end()
                    how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
                    if not worker.ready:
                        why = "its own words are above; a script needs `if __name__ == '__main__':`"
                        raise RuntimeError(f"a decode process ended without a job ({how}); {why}") from None
                    done = self._give_up(i, f"the decoder crashed ({how})")
            elif worker.busy and time.monotonic() - worker.since >= self._time_limit:
                done = self._give_up(i, f"no result within {self._time_limit:g} s; decoder killed")
            else:
                continue
            if done is not None:
                yield done

    def _give_up(self, i: int, why: str) -> tuple[int, tuple[Job, Answer]] | None:
        """The task that worker i was at has failed; those behind it go to its successor."""
        tasks = [(number, job) for number, job, _ in self._workers[i].tasks]
        self._replace(i, tasks[1:])
        if tasks:
            number, job = tasks[0]
            return number, (job, VideoError(self._path_of(job), why))
        return None


class _Worker:
    """A process and its queue. tasks: (number, job, slot for the answer), the first is the one it is at. since: when
    that began, or later, if nobody looked. ready: whether it has started up."""

    def __init__(
        self, function: Callable[[Job], Answer], slots: SharedMemoryPool, tasks: Iterable[tuple[int, Job]] = ()
    ):
        context = get_context("forkserver")
        context.set_forkserver_preload([__name__])  # torch is imported once, not again in each process
        self.pipe, end = context.Pipe()
        self._process = context.Process(target=_work, args=(end, function), daemon=True)
        self._process.start()
        end.close()  # so that the pipe ends with the process
        self._slots, self._known = slots, set()
        self.tasks: deque[tuple[int, Job, SharedBuffer | None]] = deque()
        self.since, self.ready = 0.0, False
        self._later = list(tasks)

    @property
    def busy(self) -> bool:
        return self.ready and bool(self.tasks)

    def give(self, task: tuple[int, Job]) -> None:
        if not self.tasks:
            self.since = time.monotonic()
        slot = self._slots.take()
        self.tasks.append((*task, slot))
        known = slot is None or slot.key in self._known
        if not known:
            self._known.add(slot.key)
        message = task[1], slot and slot.key, None if known else slot.memory
        self.pipe.send_bytes(ForkingPickler.dumps(message))

    def take(self) -> tuple[int, tuple[Job, Answer]] | None:
        """(number, (job, answer)) of the first task, or None for the word that the process is ready."""
        kind, value = pickle.loads(self.pipe.recv_bytes())  # from our own process
        self.since = time.monotonic()
        if kind == "ready":
            self.ready = True
            for task in self._later:
                self.give(task)
            return None
        number, job, slot = self.tasks.popleft()
        if kind == "error":
            error, text, trace = value
            raise error(text) from RuntimeError(f"in a decode process, at {job}:\n{trace}")
        return number, (job, self._slots.unpack(value, slot))

    def end(self) -> int:
        """Kill the process, whatever it is at; its exit code."""
        self.pipe.close()
        self._process.kill()
        self._process.join()
        for *_, slot in self.tasks:
            self._slots.give_back(slot)
        return self._process.exitcode


def _work(pipe: connection.Connection, function: Callable[[Job], Answer]) -> None:
    """The life of a worker."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.setsid()  # SIGINT and SIGTERM to a whole group are the parent's to answer; its own still reach this process
    torch.set_num_threads(1)  # there is a process for each core already
    memories: dict[tuple[int, int], torch.Tensor] = {}
    message: tuple[str, Any] = ("ready", None)
    while True:
        try:
            pipe.send_bytes(pickle.dumps(message))
            job, key, memory = pickle.loads(pipe.recv_bytes())  # from our own parent
        except (EOFError, ConnectionError):
            return
        if memory is not None:
            memories = {known: m for known, m in memories.items() if known[0] == key[0]} | {key: memory}
        try:
            message = ("answer", _answer(function, job, memories.get(key)))
        except ValueError as e:
            message = ("error", (ValueError, str(e), traceback.format_exc()))
        except Exception as e:  # not all of them pickle
            message = ("error", (RuntimeError, f"{type(e).__name__}: {e}", traceback.format_exc()))


def _answer(function: Callable[[Job], Answer], job: Job, memory: torch.Tensor | None) -> SharedMessage:
    try:
        return pack(function(job), memory)
    except VideoError as e:
        return pack(e, memory)


def _die_with_parent() -> None:
    """A stuck worker would outlive a parent that was killed."""
    connection.wait([parent_process().sentinel])
    os._exit(1)


class _Numbered(Dataset):
    def __init__(self, make: Callable[[int], Any]):
        self._make = make

    def __getitem__(self, number: int) -> Any:
        return self._make(number)


def prefetch(make: Callable[[int], Any], start: int, workers: int) -> Iterator[Any]:
    """make(start), make(start + 1), ... by `workers` processes (0: by this one); `make` must pickle."""
    # Not fork: FFmpeg in a forked child of a process that has used it hangs.
    loader = DataLoader(
        _Numbered(make),
        batch_size=None,
        sampler=itertools.count(start),
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_leave_group,
    )
    return iter(loader)


def _leave_group(worker: int) -> None:
    """Ctrl-C and SIGTERM to a whole process group are the main process' to answer."""
    os.setsid()


Shard = tuple[int, int]  # (index, count): that one of `count` equal slices of a batch
WHOLE: Shard = (0, 1)


def shard_rows(shard: Shard, size: int) -> range:
    """The rows of a part of a batch of `size`. Raises ValueError where the batch doesn't divide into such parts."""
    index, count = shard
    rows, rest = divmod(size, count)
    if rest:
        raise ValueError(f"a batch of {size} doesn't divide into {count} equal parts: change the batch size")
    return range(index * rows, (index + 1) * rows)


def check_counts(**counts: int) -> None:
    """Raises ValueError where one is no whole number above 0."""
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{name}={count} is no whole number of at least 1")


def check_clip(frames: int, crop: int, stride: tuple[int, int, int]) -> None:
    """Raises ValueError where clips of so many frames, crop x crop pixels, don't fit the stride of a tokenizer."""
    check_counts(frames=frames, crop=crop)
    s_t, s_h, s_w = stride
    if (frames - 1) % s_t:
        raise ValueError(f"frames={frames} is not 1+{s_t}k")
    if crop % s_h or crop % s_w:
        raise ValueError(f"crop={crop} is not a multiple of {math.lcm(s_h, s_w)}")
