"""What a benchmark ran on."""

import os
import platform
from pathlib import Path

import psutil


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
