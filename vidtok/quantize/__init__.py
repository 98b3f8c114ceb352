"""Quantizers: map latents to codes and integer ids, behind one protocol (`Quantizer`).

lfq   lookup-free quantization (the sign of every channel), its residual form, its entropy terms, and the bits of ids
fsq   finite scalar quantization (a few levels per channel)
vq    vector quantization with a learned codebook
"""

from typing import Protocol

from torch import Tensor

from vidtok.quantize.fsq import FSQ as FSQ
from vidtok.quantize.lfq import LFQ as LFQ
from vidtok.quantize.lfq import lfq_entropy as lfq_entropy
from vidtok.quantize.vq import VQ as VQ


class Quantizer(Protocol):
    """Interface of the quantizers.

    Legend: B batch, D encoder channels, K latent channels, C code channels, t h w the latent grid.

    Attributes:
        bits: log2 of the codebook size (a float if the size is not a power of two).
        in_channels: D, output channels of the encoder.
        code_channels: C, input channels of the decoder.
    """

    bits: float
    in_channels: int
    code_channels: int

    def latents(self, x_BDthw: Tensor) -> Tensor:
        """Compute the latents to quantize, float32 [B, K, t, h, w] (K = D except for residual LFQ)."""

    def quantize(self, z_BKthw: Tensor) -> Tensor:
        """Quantize latents to codes [B, C, t, h, w] in z's dtype, with a straight-through gradient."""

    def codes_to_ids(self, codes_BCthw: Tensor) -> Tensor:
        """Convert codes to int64 ids [B, t, h, w] in 0 .. codebook size - 1."""

    def ids_to_codes(self, ids_Bthw: Tensor) -> Tensor:
        """Convert int64 ids to float32 codes [B, C, t, h, w]."""

    def losses(self, z_BKthw: Tensor, codes_BCthw: Tensor) -> dict[str, Tensor]:
        """Compute unweighted scalar training losses by name."""


QUANTIZERS = {"lfq": LFQ, "fsq": FSQ, "vq": VQ}
