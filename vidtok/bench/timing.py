"""Repeated timing of one thing."""

import statistics
import time
from collections.abc import Callable

import torch


def time_runs(work: Callable[[], object], device: torch.device, runs: int, warmup: int = 2) -> dict:
    """Seconds of `runs` calls after `warmup` others: {"median_s", "best_s", "worst_s", "runs"}.

    On a machine that does other things too, the median says what one gets and the best what there is.
    """

    def finish():
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(warmup):
        work()
    seconds = []
    for _ in range(runs):
        finish()
        start = time.perf_counter()
        work()
        finish()
        seconds.append(time.perf_counter() - start)
    return {
        "median_s": statistics.median(seconds),
        "best_s": min(seconds),
        "worst_s": max(seconds),
        "runs": runs,
    }
