"""The entropy terms of LFQ, exact for 2^18 codes in the memory of a thousand.

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
from torch import Tensor

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
