"""Record which code, libraries and machine made a result."""

import platform
import subprocess
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


@cache
def git_hash() -> str | None:
    """Return the commit hash of the checkout that tracks this file, with "-dirty" appended if files are changed.

    Return None outside a checkout or without git.
    """
    here = Path(__file__).resolve()

    def git(*args: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(here.parent), *args], capture_output=True, text=True)

    try:
        # Only a tracked file counts, because site-packages may lie inside an unrelated repository.
        if git("ls-files", "--error-unmatch", here.name).returncode:
            return None
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").stdout.strip()
    except FileNotFoundError:  # no git
        return None


LIBRARIES = ("vidtok", "torch", "torchvision", "torchmetrics", "numpy", "av")


def provenance(device: str | torch.device = "cpu") -> dict:
    """Return git hash, library versions, device, threads and UTC time, as plain values for JSON.

    The hash is None outside a checkout. A version is None if the library isn't installed as a package.
    """
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
