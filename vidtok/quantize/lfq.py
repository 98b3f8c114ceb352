"""Lookup-free quantization (MAGVIT-v2, section 3.1): the code is the sign of every latent channel."""

import torch
from torch import Tensor, nn

from vidtok.quantize.entropy import lfq_entropy


def signs(z: Tensor) -> Tensor:
    """+1 where z > 0, -1 elsewhere (so 0 is -1), in z's dtype."""
    return (z > 0).to(z.dtype) * 2 - 1


def pack_bits(bits_BKthw: Tensor) -> Tensor:
    """Boolean channels to int64 ids, channel 0 the lowest bit; integer arithmetic, exact up to 60 bits."""
    weights = 2 ** torch.arange(bits_BKthw.shape[1], device=bits_BKthw.device)
    return (bits_BKthw.long() * weights.view(1, -1, 1, 1, 1)).sum(1)


def unpack_bits(ids_Bthw: Tensor, bits: int) -> Tensor:
    """int64 ids to boolean channels [B, bits, t, h, w]."""
    shifts = torch.arange(bits, device=ids_Bthw.device).view(1, -1, 1, 1, 1)
    return (ids_Bthw[:, None] >> shifts & 1).bool()


class LFQ(nn.Module):
    """id = sum_i 2^i [z_i > 0]; the decoder sees the +-1 vector.

    The residual form (levels > 1) spends several bits on each of bits / levels encoder channels: every next bit is the
    sign of what the earlier ones left over, z_{l+1} = 2 z_l - sign(z_l), which for |z| <= 1 is the binary expansion of
    z. It has the same ids and codes; one level is LFQ itself.

    Args:
        bits: K, 1 to 60; the codebook has 2^K entries.
        levels: successive signs per encoder channel. With more than one, the encoder's output is first squashed into
            [-1, 1] by tanh.
        temperature, groups: of the entropy terms, see `lfq_entropy`.
    """

    def __init__(self, bits: int = 18, levels: int = 1, temperature: float = 1.0, groups: int = 1):
        super().__init__()
        if not 1 <= bits <= 60:
            raise ValueError(f"LFQ ids hold 1 to 60 bits, not {bits}")
        if levels < 1 or bits % levels:
            raise ValueError(f"{bits} bits don't divide into {levels} levels")
        self.bits, self.levels = bits, levels
        self.in_channels, self.code_channels = bits // levels, bits
        self.temperature, self.groups = temperature, groups

    def latents(self, x_BDthw: Tensor) -> Tensor:
        """Values before the sign, [B, bits, t, h, w] float32; bit l * D + c is level l of channel c."""
        x = x_BDthw.float()
        levels = [x if self.levels == 1 else torch.tanh(x)]
        while len(levels) < self.levels:
            levels.append(2 * levels[-1] - signs(levels[-1]))
        return torch.cat(levels, 1)

    def quantize(self, z_BKthw: Tensor) -> Tensor:
        """Codes of -1 and +1 in z's dtype."""
        # Level l moves the represented value by 2^-l, and its gradient to the encoder is scaled alike; the expansion
        # multiplies by 2 at each level on the way back, so that two factors are undone here.
        scale = torch.arange(self.levels, device=z_BKthw.device).repeat_interleave(self.in_channels)
        scale = (0.25**scale).view(1, -1, 1, 1, 1).to(z_BKthw.dtype)
        return signs(z_BKthw) + (z_BKthw - z_BKthw.detach()) * scale

    def codes_to_ids(self, codes_BKthw: Tensor) -> Tensor:
        return pack_bits(codes_BKthw > 0)

    def ids_to_codes(self, ids_Bthw: Tensor) -> Tensor:
        return unpack_bits(ids_Bthw, self.bits).float() * 2 - 1

    def losses(self, z_BKthw: Tensor, codes_BKthw: Tensor) -> dict[str, Tensor]:
        """commitment: mean (z - sign z)^2; entropy: per-sample minus codebook, nats (section 3.1); both parts apart."""
        per_sample, codebook = lfq_entropy(z_BKthw, self.temperature, self.groups)
        return {
            "commitment": (z_BKthw - codes_BKthw.detach()).square().mean(),
            "entropy": per_sample - codebook,
            "entropy_per_sample": per_sample.detach(),
            "entropy_codebook": codebook.detach(),
        }
