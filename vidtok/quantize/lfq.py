"""Lookup-free quantization (MAGVIT-v2, section 3.1): the code is the sign of every latent channel.

The entropy terms of LFQ, exact for 2^18 codes in the memory of a thousand.

LFQ minimises E[H(p(.|z))] - H[E p(.|z)] (MAGVIT-v2, section 3.1): every token should be sure of its code, and all
tokens together should use all codes. p(c|z) is the softmax over all 2^K sign vectors c of 2 z.c / temperature, which
factorises over the bits: P(bit i = 1 | z) = sigmoid(4 z_i / temperature). From that follow both cheap forms:

* per sample: the entropy of independent bits is the sum of their binary entropies, O(N K);
* codebook: p(.|z_n) is the outer product of the distributions a_n and b_n over the two halves of the bits, so the mean
  over tokens is A^T B / N, one matrix product of [2^(K/2), N] and [N, 2^(K/2)]: O(N 2^(K/2) + 2^K) memory.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vidtok.quantize.bits import pack_bits, signs, unpack_bits

MAX_GROUP_BITS = 20  # 2^20 probabilities are 4 MB; beyond, one group costs more than the model


class _AllReduceSum(torch.autograd.Function):
    """Sum over ranks whose gradient is the sum over ranks too.

    With it the loss is the same scalar on every rank, and the mean of the ranks' gradients, which is what
    DistributedDataParallel takes, is the gradient of one process with the whole batch.
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
    # Asked at every call: a cached answer from before init_process_group would switch the reduction off for good.
    return _AllReduceSum.apply(x) if dist.is_available() and dist.is_initialized() else x


def _bit_patterns(bits: int, device: torch.device) -> Tensor:
    """[bits, 2^bits] of 0 and 1; column c holds the bits of c, lowest first."""
    codes = torch.arange(2**bits, device=device)
    return (codes[None] >> torch.arange(bits, device=device)[:, None] & 1).float()


def _code_probabilities(logits_NK: Tensor) -> Tensor:
    """p(c|z_n) of all codes of K bits, [N, 2^K]."""
    ones_KC = _bit_patterns(logits_NK.shape[1], logits_NK.device)
    log_p_NC = F.logsigmoid(logits_NK) @ ones_KC + F.logsigmoid(-logits_NK) @ (1 - ones_KC)
    return log_p_NC.exp()


def _mean_entropy(logits_NK: Tensor, count: Tensor) -> Tensor:
    """Entropy of the mean distribution over all 2^K codes and all ranks' tokens."""
    half = logits_NK.shape[1] // 2
    low, high = _code_probabilities(logits_NK[:, :half]), _code_probabilities(logits_NK[:, half:])
    mean = _sum_over_ranks(low.T @ high) / count
    # The clamp keeps codes that underflow to 0 from giving -inf * 0 in the backward pass.
    return -(mean * mean.clamp_min(1e-30).log()).sum()


def lfq_entropy(z: Tensor, temperature: float = 1.0, groups: int = 1) -> tuple[Tensor, Tensor]:
    """Mean entropy per token and entropy of the mean token, of the soft assignment of LFQ.

    Args:
        z: latents before the sign, [N, K] or [B, K, ...], any float dtype (computed in float32).
        temperature: of the soft assignment; the paper's value is not known. With a small one nearly every token is sure
            of its code and the codebook term cannot exceed log(number of tokens).
        groups: the codebook term as a sum over this many groups of K / groups bits. More than one group gives an
            upper bound of the true value (subadditivity of entropy); needed above 20 bits.

    Returns:
        (per_sample, codebook): scalars in nats, means over the tokens of all ranks, unequal counts included. Gradients
        averaged over the ranks equal those of one process with all tokens.

    Raises:
        ValueError: if K isn't a multiple of groups, a group has more than 20 bits, or the temperature isn't positive.
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
        codebook = sum(_mean_entropy(group, count) for group in logits_NK.chunk(groups, dim=1))
    return per_sample, codebook


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
