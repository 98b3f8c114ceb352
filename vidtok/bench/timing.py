"""Repeated timing, of one thing or of several that are to be compared.

Peak memory of one call.

Arithmetic: how much a model does, and how fast this machine does such arithmetic by itself.

What a benchmark ran on.
"""

import multiprocessing
import os
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

Name = TypeVar("Name")


def time_together(
    works: Mapping[Name, Callable[[], object]], device: torch.device, runs: int, warmup: int = 1
) -> dict[Name, list[float]]:
    """Seconds of every call, by name: `runs` rounds after `warmup` others, each round one call of each.

    What else the machine does at the time then hits all alike, and the ratio of two in one round has it on both sides.
    """

    def finish():
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    seconds: dict[Name, list[float]] = {name: [] for name in works}
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


Make = Callable[..., Callable[[], object]]


def peak_mb(make: Make, *arguments, device: torch.device) -> float | None:
    """10^6 bytes that the first call of `make(*arguments)` takes beyond what was there when it began.

    On CUDA of the allocator. On a CPU what the resident memory of a fresh process grows to, libraries' buffers
    included (`make` is a function of a module, its arguments can be pickled); None where the system doesn't say (not
    Linux).
    """
    if device.type == "cuda":
        work = make(*arguments)
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_growth, torch.get_num_threads(), make, arguments).result()


def _growth(threads: int, make: Make, arguments: tuple) -> float | None:
    torch.set_num_threads(threads)
    work = make(*arguments)
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.exists():
        return None
    clear.write_text("5")  # the peak so far, of imports, is forgotten
    before = _kilobytes(status, "VmRSS")
    work()
    return (_kilobytes(status, "VmHWM") - before) * 1024 / 1e6


def _kilobytes(status: Path, field: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))


MATMUL_SIDE = 1024


def count_flops(work: Callable[[], object]) -> int:
    """Floating point operations of all matrix products and convolutions of one call (a multiply-add is two)."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


class _ConvolutionLog(TorchDispatchMode):
    """Counts the convolutions that are called, by their shapes and settings."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution.default:
            x, weight, bias, *settings = args
            settings = tuple(tuple(s) if isinstance(s, list) else s for s in settings)
            self.calls[tuple(x.shape), tuple(weight.shape), bias is not None, x.dtype, settings] += 1
        return function(*args, **(kwargs or {}))


def convolutions_of(work: Callable[[], object], device: torch.device, layout: str) -> Callable[[], None]:
    """All convolutions that one call of `work` makes, alone, on random numbers of the same shapes and dtypes.

    layout: "contiguous" or "channels-last", of inputs and weights.
    """
    with _ConvolutionLog() as log:
        work()
    calls = []
    for (x, weight, has_bias, dtype, settings), count in log.calls.items():
        x, weight = (in_layout(torch.randn(s, device=device, dtype=dtype), layout) for s in (x, weight))
        bias = torch.randn(len(weight), device=device, dtype=dtype) if has_bias else None
        calls.append((count, (x, weight, bias, *settings)))

    @torch.no_grad()
    def replay() -> None:
        for count, arguments in calls:
            for _ in range(count):
                torch.convolution(*arguments)

    return replay


def in_layout(x: Tensor, layout: str) -> Tensor:
    """The same values in "contiguous" or, of a 4- or 5-dimensional tensor, "channels-last" memory."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d} if layout == "channels-last" else {}
    return x.contiguous(memory_format=formats.get(x.ndim, torch.contiguous_format))


def matmul(device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    """One product of two square matrices of side MATMUL_SIDE."""
    a, b = (torch.randn(MATMUL_SIDE, MATMUL_SIDE, device=device, dtype=dtype) for _ in range(2))
    return lambda: a @ b


def machine() -> dict:
    """{"cpu", "cores", "memory_gb", "load"}: name of the processor, logical cores, 10^9 bytes, and how many processes
    wanted a core in the last minute, on average (None where unknown): at 1 and more, others ran beside the benchmark.
    """
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.exists() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
