"""Lookup-free quantization (MAGVIT-v2, section 3.1): the code is the sign of every latent channel.

LFQ's entropy loss is E[H(p(.|z))] - H[E p(.|z)]: it makes the assignment of each token confident, and the use of the
codebook uniform. p(c|z) is the softmax of 2 z.c / temperature over all 2^K sign vectors c, which factorizes over the
bits: P(bit i = 1 | z) = sigmoid(4 z_i / temperature). Both terms are therefore computed exactly, without 2^K
probabilities per token:

* per sample: the entropy of independent bits is the sum of their binary entropies, O(N K).
* codebook: p(.|z_n) is the outer product of the distributions a_n and b_n over the low and the high bits, so the mean
  over tokens is A^T B / N, one matrix product of [2^(K/2), N] and [N, 2^(K/2)]: O(N 2^(K/2) + 2^K) memory.

Also the bits of token ids: packing, and token factorization into low and high bits (section 3.2: 18 = 9 + 9).
"""

from functools import reduce
from operator import add

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

MAX_GROUP_BITS = 20  # 2^20 probabilities take 4 MB; with more bits, one group costs more than the model


class _AllReduceSum(torch.autograd.Function):
    """Sum over ranks, whose backward pass sums gradients over ranks.

    The loss is then the same scalar on every rank, and the mean of the ranks' gradients, as computed by
    DistributedDataParallel, is the gradient of one process with the whole batch. The result is that of
    torch.distributed.nn.functional.all_reduce, which torch 2.14 deprecates, with a warning in every run.
    """

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        return _AllReduceSum.apply(grad.contiguous())


def _sum_over_ranks(x: Tensor) -> Tensor:
    # Checked at every call: a result cached before init_process_group would disable the reduction.
    return _AllReduceSum.apply(x) if dist.is_available() and dist.is_initialized() else x


def _bit_patterns(bits: int, device: torch.device) -> Tensor:
    """Return [bits, 2^bits] of 0 and 1; column c holds the bits of c, lowest first."""
    codes = torch.arange(2**bits, device=device)
    return (codes[None] >> torch.arange(bits, device=device)[:, None] & 1).float()


def _code_probabilities(logits_NK: Tensor) -> Tensor:
    """Compute p(c|z_n) of all codes of K bits, [N, 2^K]."""
    ones_KC = _bit_patterns(logits_NK.shape[1], logits_NK.device)
    log_p_NC = F.logsigmoid(logits_NK) @ ones_KC + F.logsigmoid(-logits_NK) @ (1 - ones_KC)
    return log_p_NC.exp()


def _mean_entropy(logits_NK: Tensor, count: Tensor) -> Tensor:
    """Compute the entropy of the mean distribution over 2^K codes; the mean is over the tokens of all ranks."""
    half = logits_NK.shape[1] // 2
    low, high = _code_probabilities(logits_NK[:, :half]), _code_probabilities(logits_NK[:, half:])
    mean = _sum_over_ranks(low.T @ high) / count
    # The clamp keeps codes that underflow to 0 from giving -inf * 0 in the backward pass.
    return -(mean * mean.clamp_min(1e-30).log()).sum()


def lfq_entropy(z: Tensor, temperature: float = 1.0, groups: int = 1) -> tuple[Tensor, Tensor]:
    """Compute both entropy terms of LFQ's soft assignment: the mean entropy per token, and the entropy of the mean.

    Args:
        z: latents before the sign, [N, K] or [B, K, ...], any float dtype (computed in float32).
        temperature: temperature of the soft assignment, above 0; the paper does not state it. With a low temperature
            nearly all assignments are confident, and the codebook term can't exceed log(number of tokens).
        groups: number of groups of K / groups bits whose codebook terms are summed, a divisor of K. With more than one
            group the sum is an upper bound of the true value (subadditivity of entropy); required above 20 bits.

    Returns:
        (per_sample, codebook): scalars in nats, means over the tokens of all ranks (their numbers may differ).
        Gradients averaged over the ranks equal those of one process with all tokens.

    Raises:
        ValueError: K is not a multiple of groups, a group has more than 20 bits, or an illegal temperature or z.
    """
    if z.ndim < 2 or not z.is_floating_point():
        raise ValueError(f"latents are float [N, K] or [B, K, ...], not {z.dtype} {list(z.shape)}")
    if not temperature > 0:
        raise ValueError(f"a temperature is above 0, not {temperature}")
    bits = z.shape[1]
    if groups < 1 or bits % groups:
        raise ValueError(f"{bits} bits don't divide into {groups} groups")
    if bits // groups > MAX_GROUP_BITS:
        raise ValueError(
            f"the codebook term over 2^{bits // groups} codes needs too much memory: "
            f"give groups= so that a group has at most {MAX_GROUP_BITS} bits (it is then an upper bound)"
        )
    with torch.autocast(z.device.type, enabled=False):
        logits_NK = z.float().movedim(1, -1).reshape(-1, bits) * (4 / temperature)
        count = _sum_over_ranks(torch.tensor(float(len(logits_NK)), device=z.device))
        size = logits_NK.abs()
        per_sample = (F.softplus(-size) + size * torch.sigmoid(-size)).sum()
        per_sample = _sum_over_ranks(per_sample) / count
        codebook = reduce(add, (_mean_entropy(group, count) for group in logits_NK.chunk(groups, dim=1)))
    return per_sample, codebook


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


def factor_bits(bits: int, factors: int = 2) -> tuple[int, int]:
    """Return the numbers of low and high bits; with an odd number, the low factor has one more.

    With a single factor all bits are low ones, and the high factor has one value.

    Raises:
        ValueError: another number of factors.
    """
    if factors not in (1, 2):
        raise ValueError(f"a token has 1 or 2 factors, not {factors}")
    return (bits, 0) if factors == 1 else (bits - bits // 2, bits // 2)


def factorize_ids(ids: Tensor, bits: int, factors: int = 2) -> tuple[Tensor, Tensor]:
    """Factorize int64 ids of any shape into (low, high), id = low + 2^low_bits * high."""
    low_bits, _ = factor_bits(bits, factors)
    return ids & (2**low_bits - 1), ids >> low_bits


def combine_ids(low: Tensor, high: Tensor, bits: int, factors: int = 2) -> Tensor:
    """Combine low and high bits into ids, the inverse of `factorize_ids`."""
    return low + (high << factor_bits(bits, factors)[0])


def ids_to_signs(ids: Tensor, bits: int) -> Tensor:
    """Convert int64 ids of any shape to LFQ's codes of +-1, float32 [..., bits], lowest bit first."""
    return (ids[..., None] >> torch.arange(bits, device=ids.device) & 1).float() * 2 - 1


def signs_to_ids(z_BNK: Tensor) -> Tensor:
    """Convert the signs of real values [B, N, K] to int64 ids [B, N]; 0 counts as -1, as in LFQ."""
    return ((z_BNK > 0).long() << torch.arange(z_BNK.shape[-1], device=z_BNK.device)).sum(-1)


class LFQ(nn.Module):
    """Lookup-free quantizer: id = sum_i 2^i [z_i > 0]; codes are +-1 vectors.

    Residual LFQ (levels > 1) has several bits for each of bits / levels encoder channels: the next bit is the sign of
    the residual, z_{l+1} = 2 z_l - sign(z_l), which for |z| <= 1 is the binary expansion of z. Ids and codes have the
    same form; one level is plain LFQ.

    Args:
        bits: K, 1 to 60; the codebook has 2^K entries.
        levels: bits per encoder channel, a divisor of `bits`. With more than one, the encoder's output is bounded to
            [-1, 1] by tanh.
        temperature, groups: arguments of the entropy terms, see `lfq_entropy`.

    Raises:
        ValueError: bits or levels out of range.
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
        """Compute the values before the sign, float32 [B, bits, t, h, w]; bit l * D + c is level l of channel c."""
        x = x_BDthw.float()
        levels = [x if self.levels == 1 else torch.tanh(x)]
        while len(levels) < self.levels:
            levels.append(2 * levels[-1] - signs(levels[-1]))
        return torch.cat(levels, 1)

    def quantize(self, z_BKthw: Tensor) -> Tensor:
        """Quantize to codes of -1 and +1 in z's dtype, with a straight-through gradient."""
        # Level l changes the represented value by 2^-l, and its gradient to the encoder should have the same scale. The
        # backward pass of the expansion multiplies by 2 per level, hence 4^-l.
        scale = torch.arange(self.levels, device=z_BKthw.device).repeat_interleave(self.in_channels)
        scale = (0.25**scale).view(1, -1, 1, 1, 1).to(z_BKthw.dtype)
        return signs(z_BKthw) + (z_BKthw - z_BKthw.detach()) * scale

    def hold(self, z_BDthw: Tensor, threshold: float) -> Tensor:
        """Quantize the latents of a sequence of frames with hysteresis, so that codes change less often.

        A sign keeps the value of the previous latent while |z| is below the threshold. With residual LFQ, the threshold
        applies to the represented value, and further levels code the residual of the signs that were kept.

        Args:
            z_BDthw: the first level of the latents of `latents`, float.
            threshold: at least 0; with 0 the result is that of `quantize`.

        Returns:
            Codes of -1 and +1, [B, bits, t, h, w].
        """
        frames: list[Tensor] = []
        for x_BDhw in z_BDthw.unbind(2):
            codes: list[Tensor] = []
            for level in range(self.levels):
                code_BDhw = signs(x_BDhw)
                if frames:
                    before = frames[-1][:, level * self.in_channels : (level + 1) * self.in_channels]
                    code_BDhw = torch.where(x_BDhw.abs() < threshold * 2**level, before, code_BDhw)
                codes.append(code_BDhw)
                x_BDhw = 2 * x_BDhw - code_BDhw
            frames.append(torch.cat(codes, 1))
        return torch.stack(frames, 2)

    def codes_to_ids(self, codes_BKthw: Tensor) -> Tensor:
        return pack_bits(codes_BKthw > 0)

    def ids_to_codes(self, ids_Bthw: Tensor) -> Tensor:
        return unpack_bits(ids_Bthw, self.bits).float() * 2 - 1

    def losses(self, z_BKthw: Tensor, codes_BKthw: Tensor) -> dict[str, Tensor]:
        """Compute the losses.

        Returns:
            commitment: mean (z - sign z)^2. entropy: per-sample minus codebook entropy in nats (section 3.1). Both
            terms are also returned, detached, as entropy_per_sample and entropy_codebook.
        """
        per_sample, codebook = lfq_entropy(z_BKthw, self.temperature, self.groups)
        return {
            "commitment": (z_BKthw - codes_BKthw.detach()).square().mean(),
            "entropy": per_sample - codebook,
            "entropy_per_sample": per_sample.detach(),
            "entropy_codebook": codebook.detach(),
        }
