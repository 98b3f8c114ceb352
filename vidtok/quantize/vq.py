"""Vector quantization with a learned codebook (VQ-VAE, van den Oord et al. 2017), the baseline of MAGVIT-v2."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VQ(nn.Module):
    """Vector quantizer: the id is the index of the nearest codebook vector.

    Args:
        size: number of codebook vectors, at least 2.
        dim: channels of a codebook vector, at least 1.

    Raises:
        ValueError: size or dim out of range.
    """

    def __init__(self, size: int = 8192, dim: int = 18):
        super().__init__()
        if size < 2 or dim < 1:
            raise ValueError(f"a codebook has 2 or more entries of 1 or more channels, not {size} of {dim}")
        self.bits = size.bit_length() - 1 if size & (size - 1) == 0 else math.log2(size)
        self.in_channels = self.code_channels = dim
        self.codebook = nn.Parameter(torch.randn(size, dim) / math.sqrt(dim))

    def latents(self, x_BDthw: Tensor) -> Tensor:
        return x_BDthw.float()

    def quantize(self, z_BCthw: Tensor) -> Tensor:
        codes = self.ids_to_codes(self._nearest(z_BCthw.detach())).to(z_BCthw.dtype)
        return z_BCthw + (codes - z_BCthw).detach()

    def codes_to_ids(self, codes_BCthw: Tensor) -> Tensor:
        return self._nearest(codes_BCthw)

    def _nearest(self, x_BCthw: Tensor) -> Tensor:
        x_NC = x_BCthw.float().movedim(1, -1).reshape(-1, x_BCthw.shape[1])
        codebook = self.codebook.detach().float()
        with torch.autocast(x_NC.device.type, enabled=False):
            # |x - c|^2 without |x|^2, which is the same for all c; in slices, so that 2^18 vectors fit into memory.
            ids = [
                torch.addmm(codebook.square().sum(1), part, codebook.T, alpha=-2).argmin(1) for part in x_NC.split(1024)
            ]
        return torch.cat(ids).view(x_BCthw.shape[0], *x_BCthw.shape[2:])

    def ids_to_codes(self, ids_Bthw: Tensor) -> Tensor:
        return self.codebook.float()[ids_Bthw].movedim(-1, 1)

    def losses(self, z_BCthw: Tensor, codes_BCthw: Tensor) -> dict[str, Tensor]:
        """Compute the losses of equation 3 of the VQ-VAE paper.

        Returns:
            commitment: mean squared error that moves z to its codebook vector. codebook: the same error, which moves
            the vector to z.
        """
        entries = self.ids_to_codes(self._nearest(z_BCthw.detach()))
        return {
            "commitment": F.mse_loss(z_BCthw, entries.detach()),
            "codebook": F.mse_loss(entries, z_BCthw.detach()),
        }
