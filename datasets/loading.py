"""Worker processes for decoding, prefetching, and sharding of batches.

`DecodePool` decodes in processes that can be killed, so that a broken file neither hangs nor crashes the caller. Its
results are pickles whose arrays pass through a pool of reused shared memory: through a pipe, a clip would be copied
five times, and in fresh shared memory page faults would cost more than the copy.
"""

import itertools
import os
import pickle
import signal
import threading
import time
import traceback
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from multiprocessing import connection, get_all_start_methods, get_context, parent_process
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vidtok.errors import VideoError

_ALIGNMENT = 64  # bytes, for vector instructions
_LARGEST = 1 << 28  # bytes; for larger results, copying is a small share of the time


class SharedMessage(NamedTuple):
    """Pickled value whose arrays lie outside the pickle.

    Attributes:
        body: the pickle without its arrays.
        size: bytes that the arrays need in shared memory.
        places: (start, stop) of each array in the shared memory; None if it had no room and they are in `arrays`.
        arrays: the arrays, if they are not in shared memory.
    """

    body: bytes
    size: int
    places: list[tuple[int, int]] | None
    arrays: list[bytes]


def pack(value: Any, memory: Tensor | None) -> SharedMessage:
    """Pickle `value`; copy its arrays and tensors into shared memory if they fit.

    Args:
        memory: uint8 [N], shared with the receiver; None, the arrays are put into the message.
    """
    body, buffers = BytesIO(), list[pickle.PickleBuffer]()
    _Pickler(body, protocol=5, buffer_callback=buffers.append).dump(value)
    raw = [buffer.raw() for buffer in buffers]
    places, size = [], 0
    for buffer in raw:
        places.append((size, size + buffer.nbytes))
        size += -(-buffer.nbytes // _ALIGNMENT) * _ALIGNMENT
    if memory is None or size > len(memory):
        return SharedMessage(body.getvalue(), size, None, [buffer.tobytes() for buffer in raw])
    to = memory.numpy().data
    for buffer, (start, stop) in zip(raw, places, strict=True):
        to[start:stop] = buffer
    return SharedMessage(body.getvalue(), size, places, [])


class SharedBuffer:
    """Block of shared memory.

    Attributes:
        memory: uint8 [N].
        key: (N, number), unique in its `SharedMemoryPool`.
    """

    def __init__(self, size: int, number: int):
        self.memory, self.key = torch.empty(size, dtype=torch.uint8).share_memory_(), (size, number)


class SharedMemoryPool:
    """Shared memory of the receiver: one buffer for each message that is in transit or in use.

    Buffers have the size of the largest message so far. `take` a buffer for the sender, and `unpack` its message.
    """

    def __init__(self) -> None:
        self._free: list[SharedBuffer] = []
        self._size, self._count = 0, 0

    def take(self) -> SharedBuffer | None:
        """Return a free buffer; None before the first message, and if the system has no shared memory left."""
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
        """Unpickle a value whose arrays are views of the buffer.

        The buffer is free again after the last of the arrays, and of their views, has been deleted.
        """
        if message.places is None:
            self.give_back(slot)
            if self._size < message.size <= _LARGEST and (slot is not None or not self._count):
                self._size = message.size + message.size // 8
            return pickle.loads(message.body, buffers=map(bytearray, message.arrays))  # from our own process
        assert slot is not None  # it holds the arrays
        # Through a memoryview, because the base of a NumPy slice of a slice is the buffer itself, not this array.
        whole = np.frombuffer(slot.memory.numpy().data, np.uint8)
        weakref.finalize(whole, self._free.append, slot).atexit = False
        return pickle.loads(message.body, buffers=[whole[start:stop] for start, stop in message.places])


class _Pickler(pickle.Pickler):
    """Pickle CPU tensors as NumPy arrays; torch would write a file for each.

    A dense tensor of any memory format, such as frames [T,H,W,3] viewed as [3,T,H,W], is not copied.
    """

    def reducer_override(self, value: Any):
        if type(value) is Tensor and value.device.type == "cpu" and value.dtype in _DTYPES:
            order = sorted(range(value.ndim), key=lambda dim: (value.stride(dim), value.shape[dim]), reverse=True)
            array = np.ascontiguousarray(value.detach().permute(order).numpy())
            return _permuted, (array.reshape([value.shape[dim] for dim in order]), np.argsort(order).tolist())
        return NotImplemented


def _permuted(array: np.ndarray, order: list[int]) -> Tensor:
    return torch.from_numpy(array).permute(order)


_DTYPES = {
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.float32, torch.float64,
}  # fmt: skip

Job = TypeVar("Job")
Answer = TypeVar("Answer")


class DecodePool(Generic[Job, Answer]):
    """Run `function(job)` in worker processes with a time limit per job.

    A process that exceeds the time limit is killed. A process that was killed or has crashed is replaced, and the
    answer of its job is a `VideoError`. A `VideoError` raised by `function` is an answer too; any other exception is
    raised by `imap`, as ValueError or RuntimeError.

    Arrays and tensors in an answer lie in shared memory, which is reused after the last reference to them is deleted.
    They may be modified.

    pebble's ProcessPool has time limits too, but sends results through pipes: clips of 17 x 128 x 228 take it 19 to
    23 ms each, and this pool 1.8 ms (one core, two runs).

    Processes are started by a forkserver, never forked from a process that has used FFmpeg. Close the pool, or use it
    as a context manager. A worker of a DataLoader can't own a pool.

    Args:
        function: a picklable function with picklable results. It is sent to each process when that starts, so that the
            readers it opens belong to that process.
        workers: number of processes, at least 1.
        time_limit: seconds per job, above 0.
        path_of: function of a job that returns the file to name in the `VideoError`.
        threads: number of threads of torch and of the decoder of large frames, in each process.

    Raises:
        ValueError: workers or time_limit out of range.
    """

    def __init__(
        self,
        function: Callable[[Job], Answer],
        workers: int,
        time_limit: float,
        path_of: Callable[[Job], str | Path] = str,
        threads: int = 1,
    ):
        if workers < 1 or not time_limit > 0:
            raise ValueError(f"{workers=} must be at least 1 and {time_limit=} above 0")
        self._function, self._time_limit, self._path_of = function, time_limit, path_of
        self._slots, self._threads = SharedMemoryPool(), threads
        self._workers = [_Worker(self._function, self._slots, threads) for _ in range(workers)]

    def imap(self, jobs: Iterable[Job], ahead: int = 2, queue: int = 2) -> Iterator[tuple[Job, Answer | VideoError]]:
        """Yield (job, answer) in the order of the jobs.

        Args:
            jobs: the jobs, consumed lazily.
            ahead: jobs per worker that are taken from `jobs` before their answers are due.
            queue: jobs per worker that are sent at once, so that a worker continues while the caller is busy.
        """
        for i, worker in enumerate(self._workers):
            if worker.tasks:  # from an unfinished imap: its answers would be mistaken for those of this one
                self._replace(i)
        source = enumerate(jobs)
        limit = ahead * len(self._workers)
        waiting: dict[int, tuple[Job, Answer | VideoError]] = {}  # answers that arrived out of order
        turn, taken, exhausted = 0, 0, False
        while True:
            while not exhausted and taken - turn < limit and (free := self._least_busy(queue)):
                task = next(source, None)
                exhausted = task is None
                if task is not None:
                    taken += 1
                    free.give(task)
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

    def __enter__(self) -> "DecodePool[Job, Answer]":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _least_busy(self, queue: int) -> "_Worker[Job, Answer] | None":
        """Return the ready worker with the fewest tasks; None if all have `queue` tasks."""
        free = [worker for worker in self._workers if worker.ready and len(worker.tasks) < queue]
        return min(free, key=lambda worker: len(worker.tasks), default=None)

    def _replace(self, i: int, tasks: Iterable[tuple[int, Job]] = ()) -> None:
        """Replace worker i by a new process that starts with `tasks`."""
        self._workers[i].end()
        self._workers[i] = _Worker(self._function, self._slots, self._threads, tasks)

    def _collect(self) -> Iterator[tuple[int, tuple[Job, Answer | VideoError]]]:
        """Wait for messages; yield (number, (job, answer)) for each job that has finished or failed."""
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
                        why = "see its error above; a script needs `if __name__ == '__main__':`"
                        raise RuntimeError(f"a decode process ended without a job ({how}); {why}") from None
                    done = self._give_up(i, f"the decoder crashed ({how})")
            elif worker.busy and time.monotonic() - worker.since >= self._time_limit:
                done = self._give_up(i, f"no result within {self._time_limit:g} s; decoder killed")
            else:
                continue
            if done is not None:
                yield done

    def _give_up(self, i: int, why: str) -> tuple[int, tuple[Job, Answer | VideoError]] | None:
        """Fail the current task of worker i; pass its queued tasks to its successor."""
        tasks = [(number, job) for number, job, _ in self._workers[i].tasks]
        self._replace(i, tasks[1:])
        if tasks:
            number, job = tasks[0]
            return number, (job, VideoError(self._path_of(job), why))
        return None


class _Worker(Generic[Job, Answer]):
    """Worker process and its queue.

    Attributes:
        tasks: (number, job, buffer for the answer); the first is in progress.
        since: monotonic time at which the first task began, or was last checked.
        ready: whether the process has started up.
    """

    def __init__(
        self,
        function: Callable[[Job], Answer],
        slots: SharedMemoryPool,
        threads: int,
        tasks: Iterable[tuple[int, Job]] = (),
    ):
        # Not fork: FFmpeg hangs in a forked child of a process that has used it. Windows has spawn only.
        method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
        context: Any = get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload([__name__])  # torch is imported once, not again in each process
        self.pipe, end = context.Pipe()
        self._process = context.Process(target=_work, args=(end, function, threads), daemon=True)
        self._process.start()
        end.close()  # so that the pipe is closed when the process ends
        self._slots, self._known = slots, set[tuple[int, int]]()  # the latter: keys of buffers that the process has
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
        memory = None if slot is None or slot.key in self._known else slot.memory
        self._known |= set() if slot is None else {slot.key}
        message = task[1], slot and slot.key, memory
        self.pipe.send_bytes(ForkingPickler.dumps(message))

    def take(self) -> tuple[int, tuple[Job, Answer | VideoError]] | None:
        """Receive (number, (job, answer)) of the first task; None for the message that the process is ready."""
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
        """Kill the process; return its exit code."""
        self.pipe.close()
        self._process.kill()
        self._process.join()
        for *_, slot in self.tasks:
            self._slots.give_back(slot)
        return self._process.exitcode or 0


def _work(pipe: connection.Connection, function: Callable[[Job], Answer], threads: int) -> None:
    """Main loop of a worker process."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    leave_process_group()
    torch.set_num_threads(threads)
    warnings.formatwarning = lambda message, *_, **__: f"vidtok: {message}\n"  # as in commands
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
        except Exception as e:  # as text, since not every exception pickles
            message = ("error", (RuntimeError, f"{type(e).__name__}: {e}", traceback.format_exc()))


def _answer(function: Callable[[Job], Answer], job: Job, memory: torch.Tensor | None) -> SharedMessage:
    try:
        return pack(function(job), memory)
    except VideoError as e:
        return pack(e, memory)


def _die_with_parent() -> None:
    """Exit when the parent has died, since a stuck worker would outlive it."""
    connection.wait([parent.sentinel] if (parent := parent_process()) else [])
    os._exit(1)


class _Numbered(Dataset):
    def __init__(self, make: Callable[[int], Any]):
        self._make = make

    def __getitem__(self, number: int) -> Any:
        return self._make(number)


def prefetch(make: Callable[[int], Any], start: int, workers: int) -> Iterator[Any]:
    """Yield make(start), make(start + 1), ..., prefetched by the workers of a DataLoader.

    Args:
        make: picklable function of the number.
        start: the first number.
        workers: number of processes; 0, this process.
    """
    if not workers:
        return map(make, itertools.count(start))
    # Not fork: FFmpeg hangs in a forked child of a process that has used it.
    loader = DataLoader(
        _Numbered(make),
        batch_size=None,
        sampler=itertools.count(start),
        num_workers=workers,
        multiprocessing_context="spawn",
        worker_init_fn=leave_process_group,
    )
    return iter(loader)


def leave_process_group(worker: int = 0) -> None:
    """Leave the process group, so that only the main process handles Ctrl-C and SIGTERM sent to the group."""
    if hasattr(os, "setsid"):
        os.setsid()
    else:  # Windows
        signal.signal(signal.SIGINT, signal.SIG_IGN)


Shard = tuple[int, int]  # (index, count): one of `count` equal slices of a batch
WHOLE: Shard = (0, 1)


def shard_rows(shard: Shard, size: int) -> range:
    """Return the rows of one shard of a batch of `size` samples.

    Raises:
        ValueError: the batch is not divisible by the number of shards.
    """
    index, count = shard
    rows, rest = divmod(size, count)
    if rest:
        raise ValueError(f"a batch of {size} doesn't divide into {count} equal parts: give a multiple of {count}")
    return range(index * rows, (index + 1) * rows)


def is_image_batch(number: int, image_fraction: float) -> bool:
    """Return whether batch `number` holds images, if a fraction `image_fraction` of all batches does, evenly spread."""
    return int((number + 1) * image_fraction) > int(number * image_fraction)
