"""Where a result comes from: code, libraries, machine."""

import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version

import torch

from vidtok.provenance import git_hash

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
