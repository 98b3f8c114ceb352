"""Decoded frames kept on disk, for training runs that read the same short videos again and again.

One video is two files, named by a hash of its path, size and modification time: NAME.npy, uint8 [T,H,W,3], and
NAME.time.npy, float64 [T] seconds, written last: where it exists both are whole. 144p costs about 110 KB a frame.
"""

import hashlib
import os
from pathlib import Path

import numpy as np

from .reader_pyav import PyAVReader


def cached_frames(path: str | Path, folder: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """(frames uint8 [T,H,W,3] memory-mapped, timestamps float64 [T]), decoded on the first call. Raises `VideoError`."""
    folder = Path(folder)
    status = os.stat(path)
    key = f"{os.path.realpath(path)}:{status.st_size}:{status.st_mtime_ns}"
    name = hashlib.sha256(key.encode()).hexdigest()[:24]
    frames_file, times_file = folder / f"{name}.npy", folder / f"{name}.time.npy"
    if not times_file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with PyAVReader(path) as reader:
            chunks = list(reader.iter_frames())
        _write(frames_file, np.concatenate([c.frames for c in chunks]))
        _write(times_file, np.concatenate([c.timestamps for c in chunks]))
    return np.load(frames_file, mmap_mode="r", allow_pickle=False), np.load(times_file, allow_pickle=False)


def _write(file: Path, array: np.ndarray) -> None:
    """Atomic, also with several processes at it."""
    new = file.with_suffix(f".{os.getpid()}.new")
    with open(new, "wb") as handle:
        np.save(handle, array, allow_pickle=False)
    os.replace(new, file)
