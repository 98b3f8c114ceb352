"""Decoded frames kept on disk, for training runs that read the same short videos again and again.

One video is two files, named by a hash of its path, size and modification time: NAME.rgb, raw uint8 [T,H,W,3], and
NAME.npz (timestamps float64 [T] in seconds, shape int64 [T,H,W,3], fps float64), written last: where it exists both are
whole. 144p costs about 110 KB a frame.
"""

import hashlib
import os
from pathlib import Path

import numpy as np

from .reader_pyav import PyAVReader


def cached_frames(path: str | Path, folder: str | Path) -> tuple[np.ndarray, np.ndarray, float]:
    """(frames uint8 [T,H,W,3], memory-mapped; timestamps float64 [T]; fps as the reader has it).

    Decoded on the first call, in bounded memory. Raises `VideoError` where the video can't be decoded.
    """
    folder = Path(folder)
    status = os.stat(path)
    key = f"{os.path.realpath(path)}:{status.st_size}:{status.st_mtime_ns}"
    name = hashlib.sha256(key.encode()).hexdigest()[:24]
    frames_file, facts_file = folder / f"{name}.rgb", folder / f"{name}.npz"
    if not facts_file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _decode(path, frames_file, facts_file)
    with np.load(facts_file, allow_pickle=False) as facts:
        shape, timestamps, fps = tuple(facts["shape"].tolist()), facts["timestamps"], float(facts["fps"])
    return np.memmap(frames_file, np.uint8, "r", shape=shape), timestamps, fps


def _decode(path: str | Path, frames_file: Path, facts_file: Path) -> None:
    """Both files are renamed into place, so that several processes may be at it and a kill leaves nothing half done."""
    new_frames, new_facts = (f.with_suffix(f".{os.getpid()}.new{f.suffix}") for f in (frames_file, facts_file))
    times = []
    try:
        with PyAVReader(path) as reader, open(new_frames, "wb") as handle:
            for chunk in reader.iter_frames():
                handle.write(np.ascontiguousarray(chunk.frames).data)
                times.append(chunk.timestamps)
                frame_shape, fps = chunk.frames.shape[1:], reader.fps
        timestamps = np.concatenate(times)
        np.savez(new_facts, timestamps=timestamps, shape=np.array([len(timestamps), *frame_shape]), fps=fps)
        os.replace(new_frames, frames_file)
        os.replace(new_facts, facts_file)
    finally:  # what a broken video got to
        new_frames.unlink(missing_ok=True)
        new_facts.unlink(missing_ok=True)
