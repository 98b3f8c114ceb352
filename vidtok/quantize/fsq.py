"""Finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505): each channel is rounded to a few levels."""

import math

import torch
from torch import Tensor, nn


class FSQ(nn.Module):
    """Finite scalar quantizer: channel i takes levels[i] evenly spaced values in [-1, 1].

    Ids are mixed-radix numbers whose lowest digit is channel 0.

    Args:
        levels: number of values of each channel, at least 2, with a product below 2^60; [8, 8, 8, 8, 8, 8] is 18 bits.

    Raises:
        ValueError: illegal levels.
    """

    def __init__(self, levels: tuple[int, ...] = (8, 8, 8, 8, 8, 8)):
        super().__init__()
        if not levels or any(n < 2 for n in levels) or math.prod(levels) >= 2**60:
            raise ValueError(f"FSQ levels are 2 or more each with a product below 2^60, not {list(levels)}")
        self.levels = tuple(levels)
        size = math.prod(levels)
        self.bits = size.bit_length() - 1 if size & (size - 1) == 0 else math.log2(size)
        self.in_channels = self.code_channels = len(levels)

    def _steps(self, like: Tensor) -> Tensor:
        """Return the number of steps between -1 and 1 of each channel, [1, C, 1, 1, 1]."""
        return torch.tensor(self.levels, device=like.device, dtype=like.dtype).view(1, -1, 1, 1, 1) - 1

    def latents(self, x_BDthw: Tensor) -> Tensor:
        """Bound the encoder's output by tanh, in float32: in bfloat16 rounding would give other ids."""
        return torch.tanh(x_BDthw.float())

    def quantize(self, z_BCthw: Tensor) -> Tensor:
        steps = self._steps(z_BCthw)
        codes = ((z_BCthw + 1) / 2 * steps).round() / steps * 2 - 1
        return z_BCthw + (codes - z_BCthw).detach()

    def codes_to_ids(self, codes_BCthw: Tensor) -> Tensor:
        codes = codes_BCthw.float()
        digits = ((codes + 1) / 2 * self._steps(codes)).round().long()
        radix = [math.prod(self.levels[:i]) for i in range(len(self.levels))]
        return (digits * torch.tensor(radix, device=codes.device).view(1, -1, 1, 1, 1)).sum(1)

    def ids_to_codes(self, ids_Bthw: Tensor) -> Tensor:
        digits = []
        for n in self.levels:
            digits.append(ids_Bthw % n)
            ids_Bthw = ids_Bthw // n
        codes = torch.stack(digits, 1).float()
        return codes / self._steps(codes) * 2 - 1

    def losses(self, z_BCthw: Tensor, codes_BCthw: Tensor) -> dict[str, Tensor]:
        """Return no losses: bounded rounding needs neither a commitment nor an entropy loss."""
        return {}
