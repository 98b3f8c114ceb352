"""Where a result comes from: code, libraries, machine."""

import platform
from datetime import datetime, timezone
from importlib.metadata import version

import torch

from vidtok.provenance import git_hash

LIBRARIES = ("vidtok", "torch", "torchvision", "torchmetrics", "numpy", "av")


def provenance(device: str | torch.device = "cpu") -> dict:
    """git hash (None outside a checkout), library versions, device in words, UTC time; plain values for JSON."""
    device = torch.device(device)
    return {
        "git": git_hash(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
