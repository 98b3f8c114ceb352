"""Bits of token ids: packing, and token factorization into low and high bits (MAGVIT-v2, section 3.2: 18 = 9 + 9)."""

import torch
from torch import Tensor


def signs(z: Tensor) -> Tensor:
    """Return +1 if z > 0, else -1 (also for 0), in z's dtype."""
    return (z > 0).to(z.dtype) * 2 - 1


def pack_bits(bits_BKthw: Tensor) -> Tensor:
    """Pack boolean channels into int64 ids [B, t, h, w], channel 0 the lowest bit; exact up to 60 bits."""
    weights = 2 ** torch.arange(bits_BKthw.shape[1], device=bits_BKthw.device)
    return (bits_BKthw.long() * weights.view(1, -1, 1, 1, 1)).sum(1)


def unpack_bits(ids_Bthw: Tensor, bits: int) -> Tensor:
    """Unpack int64 ids into boolean channels [B, bits, t, h, w], channel 0 the lowest bit."""
    shifts = torch.arange(bits, device=ids_Bthw.device).view(1, -1, 1, 1, 1)
    return (ids_Bthw[:, None] >> shifts & 1).bool()


def factor_bits(bits: int) -> tuple[int, int]:
    """Return the numbers of low and high bits; with an odd number, the low factor has one more."""
    return bits - bits // 2, bits // 2


def factorize_ids(ids: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Factorize int64 ids of any shape into (low, high), id = low + 2^low_bits * high."""
    low_bits, _ = factor_bits(bits)
    return ids & (2**low_bits - 1), ids >> low_bits


def combine_ids(low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Combine low and high bits into ids, the inverse of `factorize_ids`."""
    return low + (high << factor_bits(bits)[0])


def ids_to_signs(ids: Tensor, bits: int) -> Tensor:
    """Convert int64 ids of any shape to the +-1 codes of LFQ, float32 [..., bits], lowest bit first."""
    return (ids[..., None] >> torch.arange(bits, device=ids.device) & 1).float() * 2 - 1


def signs_to_ids(z_BNK: Tensor) -> Tensor:
    """Convert the signs of real values [B, N, K] to int64 ids [B, N]; 0 counts as -1, as in LFQ."""
    return ((z_BNK > 0).long() << torch.arange(z_BNK.shape[-1], device=z_BNK.device)).sum(-1)
