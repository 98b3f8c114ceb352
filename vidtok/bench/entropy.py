"""Time and memory of the LFQ entropy terms, forward and backward."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from vidtok.bench.timing import time_runs
from vidtok.quantize import lfq_entropy


def bench_entropy(device: torch.device, bits: int = 18, tokens: int = 1280, runs: int = 30) -> dict:
    """Times `lfq_entropy` and its gradient, and measures the memory they take beyond the latents.

    Returns:
        {"bits", "tokens", "median_s", "best_s", "worst_s", "runs", "peak_mb"}. peak_mb, in 10^6 bytes: on CUDA of the
        allocator; on a CPU what the resident memory of a fresh process grows to in one pass, libraries' buffers
        included; None where the system doesn't say (not Linux).
    """
    z = torch.randn(tokens, bits, device=device, requires_grad=True)
    times = time_runs(lambda: _step(z), device, runs)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        _step(z)
        peak = (torch.cuda.max_memory_allocated(device) - before) / 1e6
    else:
        peak = _in_fresh_process(bits, tokens)
    return {"bits": bits, "tokens": tokens, **times, "peak_mb": peak}


def _step(z: torch.Tensor) -> None:
    per_sample, codebook = lfq_entropy(z, 1.0)
    torch.autograd.grad(per_sample - codebook, z)


def _in_fresh_process(bits: int, tokens: int) -> float | None:
    call = f"from vidtok.bench.entropy import print_growth; print_growth({bits}, {tokens}, {torch.get_num_threads()})"
    out = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=True).stdout
    return json.loads(out)


def print_growth(bits: int, tokens: int, threads: int) -> None:
    """Prints by how many 10^6 bytes the peak of this process' resident memory exceeds what it was before one pass."""
    torch.set_num_threads(threads)
    z = torch.randn(tokens, bits, requires_grad=True)
    _step(torch.randn(4, 4, requires_grad=True))  # loads what is loaded on first use
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.exists():
        print("null")
        return
    clear.write_text("5")  # the peak so far, of imports, is forgotten
    before = _kilobytes(status, "VmRSS")
    _step(z)
    print((_kilobytes(status, "VmHWM") - before) * 1024 / 1e6)


def _kilobytes(status: Path, field: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))
