"""The Inception-v3 that FID is defined by (Heusel et al. 2017, arXiv:1706.08500): TensorFlow's of 2015-12-05.

Legend: N frames, C channels, H W pixels.
"""

import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import Inception3
from torchvision.models import inception as blocks

from vidtok.weights import read_state

SIDE = 299  # pixels
INCEPTION_FEATURES = 2048


class InceptionFID(nn.Module):
    """The 2048 features that FID is measured on.

    Args:
        weights: file or URL of a state dict with torchvision's names, `.safetensors` or a checkpoint of tensors alone:
            what `vidtok.eval.inception_weights` writes, or pytorch-fid's pt_inception-2015-12-05-6726825d.pth, which
            torch-fidelity has too.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that does not hold this network.
    """

    def __init__(self, weights: str | Path):
        super().__init__()
        self.network = inception()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that TorchScript isn't tensors: the error says it
                state = read_state(weights)
        except ValueError as error:
            raise ValueError(
                f"{weights} is no file of tensors alone; FID wants a state dict, and vidtok.eval.inception_weights "
                "makes one of a TorchScript file"
            ) from error
        used = {name: tensor for name, tensor in state.items() if not name.startswith(("fc.", "AuxLogits."))}
        # TensorFlow's batch norms have no gain, and nothing counts their batches.
        wanted = self.network.state_dict()
        used = {name: tensor for name, tensor in wanted.items() if name.endswith(_OPTIONAL)} | used
        for name in sorted(wanted.keys() | used.keys()):
            shapes = [list(part[name].shape) if name in part else "none" for part in (used, wanted)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"{weights} does not hold FID's Inception: {name} is {shapes[0]}, not {shapes[1]}")
        self.network.load_state_dict(used)
        self.requires_grad_(False).eval()

    def forward(self, frames_NCHW: Tensor) -> Tensor:
        """float [N, 3, H, W] in [-1, 1] -> float32 [N, 2048]; frames are rounded to 8 bits."""
        pixels = ((frames_NCHW.float() + 1) * 127.5).round().clamp(0, 255)
        return self.network((stretch(pixels, SIDE) - 128) / 128)


_OPTIONAL = (".bn.weight", ".bn.num_batches_tracked")


def inception() -> nn.Module:
    """torchvision's network with TensorFlow's pools, up to its 2048 pooled features; the weights are random."""
    own = [blocks.BasicConv2d, BlockA, blocks.InceptionB, BlockC, blocks.InceptionD, BlockE, blocks.InceptionAux]
    network = Inception3(aux_logits=False, inception_blocks=own, init_weights=False)
    network.Mixed_7c, network.fc = LastBlock(2048), nn.Identity()
    return network


class PoolBranch:
    """A block of torchvision's whose last branch pools as TensorFlow does: padding doesn't count in a mean."""

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
    """The last one takes the largest value instead of the mean."""

    def pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, stride=1, padding=1)


def stretch(x_NCHW: Tensor, side: int) -> Tensor:
    """Bilinear to side x side as TensorFlow 1 does it: pixel i comes from i x (old / new), without half pixels."""
    rows, columns = (_weights(n, side, x_NCHW) for n in x_NCHW.shape[2:])
    return rows @ x_NCHW @ columns.T


def _weights(n: int, side: int, like: Tensor) -> Tensor:
    place = torch.arange(side, device=like.device, dtype=torch.float64) * n / side
    low = place.long()
    share = (place - low)[:, None]
    one_hot = torch.eye(n, device=like.device, dtype=torch.float64)
    return ((1 - share) * one_hot[low] + share * one_hot[(low + 1).clamp(max=n - 1)]).to(like.dtype)
