"""Repeated timing, of one thing or of several that are to be compared."""

import statistics
import time
from collections.abc import Callable

import torch


def time_together(
    works: dict[str, Callable[[], object]], device: torch.device, runs: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of every call, by name: `runs` rounds after `warmup` others, each round one call of each.

    What else the machine does at the time then hits all alike, and the ratio of two in one round has it on both sides.
    """

    def finish():
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    seconds = {name: [] for name in works}
    for i in range(warmup + runs):
        for name, work in works.items():
            finish()
            start = time.perf_counter()
            work()
            finish()
            if i >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: list[float]) -> dict:
    """{"median", "best" (lowest), "worst" (highest), "runs"}.

    On a machine that does other things too, the median says what one gets and the best what there is.
    """
    return {"median": statistics.median(values), "best": min(values), "worst": max(values), "runs": len(values)}


def summary(seconds: list[float]) -> dict:
    """`spread` of times: {"median_s", "best_s", "worst_s", "runs"}."""
    return {name if name == "runs" else f"{name}_s": value for name, value in spread(seconds).items()}


def ratio(slow: list[float], fast: list[float]) -> dict:
    """How many times as long `slow` took as `fast`, round by round: {"median", "lowest", "highest", "runs"}."""
    ratios = spread([a / b for a, b in zip(slow, fast, strict=True)])
    return {
        "median": ratios["median"],
        "lowest": ratios["best"],
        "highest": ratios["worst"],
        "runs": ratios["runs"],
    }
