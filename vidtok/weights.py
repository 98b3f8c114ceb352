"""Weights as safetensors: half precision on disk, float32 in memory."""

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn


def load_weights(module: nn.Module, path: Path) -> str:
    """Fills `module`; returns the first 16 hex digits of the file's sha256.

    Raises:
        ValueError: where the file is damaged, or holds other tensors than the module does: the first of them.
    """
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} can't be read: {error}") from error
    wanted = module.state_dict()
    for name in sorted(wanted.keys() | tensors.keys()):
        shapes = [list(part[name].shape) if name in part else "none" for part in (tensors, wanted)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"the weights in {path} don't fit their config: {name} is {shapes[0]}, not {shapes[1]}")
    module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def hash_weights(module: nn.Module) -> str:
    """The first 16 hex digits of the sha256 of the weights in memory, for a module that came from no file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_weights(module: nn.Module, path: Path) -> None:
    save_file({name: tensor.detach().half().contiguous().cpu() for name, tensor in module.state_dict().items()}, path)
