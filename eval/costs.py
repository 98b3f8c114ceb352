"""What clips cost as video and as tokens: bytes, and how many of them a second can be had.

Schema of `costs`:

    bytes_per_clip      file (mean size of a video file, all of its frames), frames_uint8 (the clip's frames in memory),
                        tokens (bits x cells / 8), tokens_int64 (as `vidtok.extract` and torch hold them)
    clips_per_second    video: opened, decoded, resized and cut; tokens: read from the cache on disk; ratio; clips: how
                        many each; null where there are no files
    trained_per_second  arm -> clips of a training batch per second, mean over seeds
"""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence

from vidtok.datasets import LabelledDataset

from .clip_store import ClipStore
from .labelled_clips import ClipSet


def bytes_per_clip(clips: ClipSet, bits: float, cells: int) -> dict:
    """cells: tokens of one view of a clip."""
    sizes = [os.path.getsize(path) for path in clips.paths if path]
    return {
        "file": sum(sizes) / len(sizes) if sizes else None,
        "frames_uint8": math.prod(clips.video.shape[2:]),
        "tokens": bits * cells / 8,
        "tokens_int64": 8 * cells,
    }


def loading_speed(dataset: LabelledDataset, store: ClipStore, tokens: str, count: int) -> dict | None:
    """Clips per second from the video files and from the token cache, one after the other in this process: the first
    `count` of each."""
    if not dataset.paths:  # rendered, not decoded
        return None
    dataset[0], store.read(tokens, 0)  # what is paid once
    video = _rate(dataset.__getitem__, count)
    cached = _rate(lambda index: store.read(tokens, index), count)
    return {"video": video, "tokens": cached, "ratio": cached / video, "clips": count}


def training_speed(entries: Sequence[Mapping], batch_size: int) -> dict[str, float]:
    rates = {}
    for entry in entries:
        if entry["input"] == entry["tested_on"]:
            runs = entry["runs"]
            rates[entry["name"]] = sum(batch_size * run["steps"] / run["seconds"] for run in runs) / len(runs)
    return rates


def costs(
    clips: ClipSet, dataset: LabelledDataset, store: ClipStore, tokens: str, bits: float, cells: int,
    entries: Sequence[Mapping], batch_size: int,
) -> dict:  # fmt: skip
    """All of them. tokens: name of the token cache in `store`."""
    return {
        "bytes_per_clip": bytes_per_clip(clips, bits, cells),
        "clips_per_second": loading_speed(dataset, store, tokens, min(len(clips), 64)),
        "trained_per_second": training_speed(entries, batch_size),
    }


def _rate(read: Callable[[int], object], count: int) -> float:
    start = time.perf_counter()
    for index in range(count):
        read(index)
    return count / (time.perf_counter() - start)
