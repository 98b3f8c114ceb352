"""An endless row of batches, made ahead by a DataLoader's workers."""

import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset


class _Numbered(Dataset):
    def __init__(self, make: Callable[[int], Any]):
        self._make = make

    def __getitem__(self, number: int) -> Any:
        return self._make(number)


def made_ahead(make: Callable[[int], Any], start: int, workers: int) -> Iterator[Any]:
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
