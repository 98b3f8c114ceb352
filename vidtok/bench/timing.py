"""Measurements that the benchmarks share.

time_together, summary, ratio            interleaved timing of several functions, and its statistics
peak_mb                                  peak memory of one call
count_flops, convolutions_of, matmul     FLOPs of a model, and reference workloads for the FLOP rate of the machine
machine                                  description of the machine
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
    """Time several functions in turns, so that they can be compared on a machine with varying load.

    Each round calls every function once. A slowdown of the machine then affects all functions alike, and largely
    cancels in the ratio of two times of one round (see `ratio`).

    Args:
        works: the functions, by name.
        device: device on which they run; CUDA is synchronized before and after each call.
        runs: number of timed rounds.
        warmup: number of rounds before them that are not timed.

    Returns:
        The seconds of every timed call, by name.
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
    """Summarize values as {"median", "best" (lowest), "worst" (highest), "runs"}.

    On a shared machine the median is the typical value, and the best is closest to that of an idle machine.
    """
    return {"median": statistics.median(values), "best": min(values), "worst": max(values), "runs": len(values)}


def summary(seconds: list[float]) -> dict:
    """Summarize times in seconds as {"median_s", "best_s", "worst_s", "runs"}, see `spread`."""
    return {name if name == "runs" else f"{name}_s": value for name, value in spread(seconds).items()}


def ratio(slow: list[float], fast: list[float]) -> dict:
    """Summarize the ratio slow / fast of each round as {"median", "lowest", "highest", "runs"}."""
    ratios = spread([a / b for a, b in zip(slow, fast, strict=True)])
    return {
        "median": ratios["median"],
        "lowest": ratios["best"],
        "highest": ratios["worst"],
        "runs": ratios["runs"],
    }


Make = Callable[..., Callable[[], object]]


def peak_mb(make: Make, *arguments, device: torch.device) -> float | None:
    """Measure the peak memory of a function's first call, above the memory in use before the call.

    On CUDA this is memory of torch's allocator. On a CPU it is the resident memory of a fresh process, which includes
    buffers of libraries.

    Args:
        make: builds the function that is measured. On a CPU it must be a function of a module.
        arguments: arguments of `make`. On a CPU they must be picklable.
        device: device on which the function runs.

    Returns:
        The peak in MB (10^6 bytes); None on a CPU of a system other than Linux.
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
    clear.write_text("5")  # reset the peak, which so far is that of the imports
    before = _kilobytes(status, "VmRSS")
    work()
    return (_kilobytes(status, "VmHWM") - before) * 1024 / 1e6


def _kilobytes(status: Path, field: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))


MATMUL_SIDE = 1024


def count_flops(work: Callable[[], object]) -> int:
    """Count the floating-point operations of the matrix products and convolutions of a call; a multiply-add is two."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


class _ConvolutionLog(TorchDispatchMode):
    """Dispatch mode that counts the convolutions that are called, by shapes and settings."""

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
    """Build a function that runs only the convolutions of one call of `work`, on random tensors.

    The tensors have the shapes and dtypes of the originals.

    Args:
        work: the function whose convolutions are recorded.
        device: device of the tensors.
        layout: memory layout of inputs and weights, "contiguous" or "channels-last".
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
    """Convert a tensor to "contiguous" memory, or to "channels-last" memory if it has 4 or 5 dimensions."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d} if layout == "channels-last" else {}
    return x.contiguous(memory_format=formats.get(x.ndim, torch.contiguous_format))


def matmul(device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    """Build a function that multiplies two square matrices of side MATMUL_SIDE."""
    a, b = (torch.randn(MATMUL_SIDE, MATMUL_SIDE, device=device, dtype=dtype) for _ in range(2))
    return lambda: a @ b


def machine() -> dict:
    """Describe the machine.

    Returns:
        {"cpu": name of the processor, "cores": number of logical cores, "memory_gb": memory in 10^9 bytes, "load": load
        average of the last minute, None if unknown}. A load of 1 or more means that other processes ran beside the
        benchmark.
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
