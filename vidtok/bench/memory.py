"""Peak memory of one call."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

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
