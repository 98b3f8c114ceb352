"""What one process hands to another: a pickle, whose arrays travel through shared memory that is used again and again.

Sent through a pipe, a clip is copied five times; in fresh shared memory, its pages cost more than the copy does.
"""

import pickle
import weakref
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes: what vector instructions like
_LARGEST = 1 << 28  # bytes; above that, memory is not what a sample spends its time on


class Parcel(NamedTuple):
    """body: the pickle without its arrays. size: bytes of these. places: where in the shared memory they begin and end,
    or None where they are in `arrays`, since there was no room."""

    body: bytes
    size: int
    places: list[tuple[int, int]] | None
    arrays: list[bytes]


def pack(value: Any, memory: Tensor | None) -> Parcel:
    """memory: uint8 [N], shared with the receiver; arrays and tensors of `value` are copied into it if they fit."""
    body, buffers = BytesIO(), []
    _Pickler(body, protocol=5, buffer_callback=buffers.append).dump(value)
    raw = [buffer.raw() for buffer in buffers]
    places, size = [], 0
    for buffer in raw:
        places.append((size, size + buffer.nbytes))
        size += -(-buffer.nbytes // _ALIGNMENT) * _ALIGNMENT
    if memory is None or size > len(memory):
        return Parcel(body.getvalue(), size, None, [buffer.tobytes() for buffer in raw])
    to = memoryview(memory.numpy())
    for buffer, (start, stop) in zip(raw, places, strict=True):
        to[start:stop] = buffer
    return Parcel(body.getvalue(), size, places, [])


class Slot:
    """memory: uint8 [N], shared. key: (N, number), unique in its `Slots`."""

    def __init__(self, size: int, number: int):
        self.memory, self.key = torch.empty(size, dtype=torch.uint8).share_memory_(), (size, number)


class Slots:
    """The receiver's shared memory, a slot for each parcel that is under way or in use.

    Slots have the size of the largest parcel so far. `take` one for the sender, `unpack` what comes back.
    """

    def __init__(self):
        self._free: list[Slot] = []
        self._size, self._count = 0, 0

    def take(self) -> Slot | None:
        """A free slot, or None as long as there are none: at first, and where the system has no shared memory left."""
        while self._free:
            if (slot := self._free.pop()).key[0] == self._size:
                return slot
        if not self._size:
            return None
        self._count += 1
        try:
            return Slot(self._size, self._count)
        except (RuntimeError, OSError):
            self._size = 0
            return None

    def give_back(self, slot: Slot | None) -> None:
        if slot is not None:
            self._free.append(slot)

    def unpack(self, parcel: Parcel, slot: Slot | None) -> Any:
        """The value. Its arrays lie in the slot, which is free again when the last of them, and all that looks into
        them, is gone."""
        if parcel.places is None:
            self.give_back(slot)
            if self._size < parcel.size <= _LARGEST and (slot is not None or not self._count):
                self._size = parcel.size + parcel.size // 8
            return pickle.loads(parcel.body, buffers=map(bytearray, parcel.arrays))  # from our own process
        # Of a memoryview, because NumPy would trace a slice of a slice back to the slot itself and forget this one.
        whole = np.frombuffer(memoryview(slot.memory.numpy()), np.uint8)
        weakref.finalize(whole, self._free.append, slot).atexit = False
        return pickle.loads(parcel.body, buffers=[whole[start:stop] for start, stop in parcel.places])


class _Pickler(pickle.Pickler):
    """Tensors go as the arrays they are; torch's own way is to write a file of each."""

    def reducer_override(self, value: Any):
        if type(value) is Tensor and value.device.type == "cpu" and value.dtype in _DTYPES:
            return torch.from_numpy, (np.ascontiguousarray(value.detach().numpy()).reshape(value.shape),)
        return NotImplemented


_DTYPES = {torch.from_numpy(np.zeros(1, t)).dtype for t in "?bhilefdB"}
