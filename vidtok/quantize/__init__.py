"""Quantizers: latents in, codes and integer ids out, behind one protocol (`base.Quantizer`).

lfq      sign of every channel, the paper's lookup-free quantization, and its residual form
fsq      a few levels per channel (Mentzer et al. 2023)
vq       a learned codebook, the paper's VQ-VAE baseline
entropy  the two entropy terms of LFQ, exact and cheap

What every quantizer offers, so that a tokenizer doesn't know which one it holds.
"""

from typing import Protocol

from torch import Tensor

from vidtok.quantize.fsq import FSQ as FSQ
from vidtok.quantize.lfq import LFQ as LFQ
from vidtok.quantize.lfq import lfq_entropy as lfq_entropy
from vidtok.quantize.vq import VQ as VQ


class Quantizer(Protocol):
    """Legend: B batch, D encoder channels, K latent channels, C code channels, t h w the latent grid.

    Attributes:
        bits: log2 of the codebook size (a float where the size is no power of two).
        in_channels: D, what the encoder's last layer must give.
        code_channels: C, what the decoder gets.
    """

    bits: float
    in_channels: int
    code_channels: int

    def latents(self, x_BDthw: Tensor) -> Tensor:
        """The values about to be quantized, [B, K, t, h, w] (K = D but for residual LFQ)."""

    def quantize(self, z_BKthw: Tensor) -> Tensor:
        """Codes [B, C, t, h, w] in z's dtype. Their gradient is passed straight through to z."""

    def codes_to_ids(self, codes_BCthw: Tensor) -> Tensor:
        """int64 ids [B, t, h, w] in 0 .. codebook size - 1."""

    def ids_to_codes(self, ids_Bthw: Tensor) -> Tensor:
        """float32 codes [B, C, t, h, w]."""

    def losses(self, z_BKthw: Tensor, codes_BCthw: Tensor) -> dict[str, Tensor]:
        """Scalars for training, by name; never called outside it. The caller owns the weights."""


QUANTIZERS = {"lfq": LFQ, "fsq": FSQ, "vq": VQ}
