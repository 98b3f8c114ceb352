"""How much of what one process decodes and resizes arrives through a loader of one process, or two."""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from vidtok.datasets import (
    ClipFolder,
    EvalTransform,
    LabeledVideos,
    VideoError,
    demo_clip,
    dense_clips,
    open_dataset,
    write_video,
)

FRAMES, SIDE, BATCH = 17, 128, 8
CACHE_GB = 2  # of decoded videos in the temporary folder
RENDERED = 16  # clips, where the user gives none


def bench_loader(
    data: str | None = None,
    batches: int = 12,
    runs: int = 3,
    workers: tuple[int, ...] = (1, 2),
) -> Iterator[dict]:
    """Times clips of 17 x 128 x 128, read in this process and through a loader, in turns, start-up not counted.

    Args:
        data: a folder of videos or an annotation file, the videos beside it; None: clips that are rendered for it,
          240 x 320.
        batches: of 8 clips, in each run. runs: of each. workers: numbers of processes.

    Yields:
        A row for each of "labeled" (a labeled dataset's `loader`), "training" (`ClipFolder`) and "training, cached"
        (the same, its videos decoded beforehand, see `vidtok.datasets.yuv_store`) and each number of workers, 0 for
        this process alone: {"of", "workers", "clips_per_s" (median; "best_...", "worst_..."), "share" (of what this
        process reads alone, median over the rounds), "cpu_ms" (processor time a clip takes in all processes, median),
        "runs"}.

    Raises:
        ValueError: where there are no videos.
    """
    with tempfile.TemporaryDirectory(prefix="vidtok-bench-") as made:
        videos, cache = Path(made, "videos"), Path(made, "cache")
        if data is None:
            videos.mkdir()
            for i in range(RENDERED):
                write_video(videos / f"{i}.mp4", demo_clip(2 * FRAMES, 320, seed=i)[..., :240, :], 25)
        labeled, training, cached = _datasets(data or str(videos), batches * BATCH, cache)
        yield from _rows("labeled", partial(_labeled, labeled), runs, workers)
        yield from _rows("training", partial(_training, training, batches), runs, workers)
        yield from _rows("training, cached", partial(_training, cached, batches), runs, workers)


def _datasets(data: str, clips: int, cache: Path) -> tuple[LabeledVideos, ClipFolder, ClipFolder]:
    found = open_dataset(data)
    if not found.paths:
        raise ValueError(f"{data} is rendered, not decoded: give a folder of videos, or an annotation file")
    places = [*itertools.islice(itertools.cycle(range(len(found.paths))), clips)]
    paths, ids = [found.paths[i] for i in places], [found.ids[i] for i in places]
    labels = [found.labels[i] for i in places]
    reading: dict[str, Any] = {
        "sampler": partial(dense_clips, frames=FRAMES),
        "transform": EvalTransform(SIDE),
        "on_error": "return",
    }
    folder = data if Path(data).is_dir() else Path(data).parent
    training, cached = (
        ClipFolder(folder, FRAMES, size=SIDE, crop=SIDE, images=False, batch_size=BATCH, cache=where, cache_gb=CACHE_GB)
        for where in (None, cache)
    )
    return LabeledVideos(paths, ids, labels, found.classes, **reading), training, cached


def _labeled(dataset: LabeledVideos, workers: int) -> Iterator[int]:
    """Reads the samples; says how many came each time."""
    if workers:
        return (len(batch.label) for batch in dataset.loader(BATCH, workers))
    return (int(not isinstance(dataset[i], VideoError)) for i in range(len(dataset)))


def _training(dataset: ClipFolder, batches: int, workers: int) -> Iterator[int]:
    return (len(batch) for batch in dataset.loader(stop=batches, workers=workers))


def _rows(of: str, read: Callable[[int], Iterator[int]], runs: int, workers: tuple[int, ...]) -> Iterator[dict]:
    rates: dict[int, list[float]] = {count: [] for count in (0, *workers)}
    costs: dict[int, list[float]] = {count: [] for count in rates}
    for _ in read(0):  # files into memory, libraries loaded
        pass
    for _ in range(runs):
        for count in rates:
            seconds, processor, clips = _measure(read(count))
            rates[count].append(clips / seconds)
            costs[count].append(1e3 * processor / clips)
    for count, values in rates.items():
        yield {
            "of": of,
            "workers": count,
            "clips_per_s": statistics.median(values),
            "best_clips_per_s": max(values),
            "worst_clips_per_s": min(values),
            "share": statistics.median(ours / alone for ours, alone in zip(values, rates[0], strict=True)),
            "cpu_ms": statistics.median(costs[count]),
            "runs": runs,
        }


def _measure(arrivals: Iterator[int]) -> tuple[float, float, int]:
    """(seconds, processor seconds, clips) from the first arrival on, when all processes are up, to the last."""
    next(arrivals)
    processor, start, clips = _processor_time(), time.perf_counter(), 0
    for count in arrivals:
        clips, processor_now, now = clips + count, _processor_time(), time.perf_counter()
    return now - start, processor_now - processor, clips


def _processor_time() -> float:
    """Seconds, user's and system's, of this process and all below it."""
    me = psutil.Process()
    return sum(sum(p.cpu_times()[:2]) for p in [me, *me.children(recursive=True)])
