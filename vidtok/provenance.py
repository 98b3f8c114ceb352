"""Which code made a result.

Where a result comes from: code, libraries, machine.
"""

import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def git_hash() -> str | None:
    """Commit of the checkout this file is tracked in, 40 hex digits, "-dirty" where tracked files are changed."""
    here = Path(__file__).resolve()

    def git(*args: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(here.parent), *args], capture_output=True, text=True)

    try:
        # Tracked, because site-packages may lie inside somebody else's repository.
        if git("ls-files", "--error-unmatch", here.name).returncode:
            return None
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").stdout.strip()
    except FileNotFoundError:  # no git
        return None


LIBRARIES = ("vidtok", "torch", "torchvision", "torchmetrics", "numpy", "av")


def provenance(device: str | torch.device = "cpu") -> dict:
    """git hash (None outside a checkout), library versions (None of what isn't installed as a package), device in
    words, UTC time; plain values for JSON."""
    device = torch.device(device)
    return {
        "git": git_hash(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
