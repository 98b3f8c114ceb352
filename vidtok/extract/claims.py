"""Several processes on one folder: who is at which video."""

import fcntl
import hashlib
import os
from pathlib import Path

FILE = ".claims"


class Claims:
    """A video is claimed by a lock on one byte of one file, at a place that its id gives.

    The kernel releases the locks of a process that ends, however it ends, so that no claim is ever stale; the file
    itself stays empty. They are POSIX record locks, which work between machines where the file system supports them
    (NFS, Lustre with -o flock, ...), and belong to the process: it may open this file only once.
    """

    def __init__(self, folder: Path):
        self._file = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o666)

    def take(self, id: str) -> bool:
        """Whether the video is this process' now; not, where another one is at it."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(id))
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as the system likes
            return False
        return True

    def wait(self, id: str) -> None:
        """`take`, as soon as it is free."""
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, _place(id))

    def release(self, id: str) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _place(id))

    def close(self) -> None:
        os.close(self._file)


def _place(id: str) -> int:
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:7], "big")
