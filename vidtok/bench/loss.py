"""Time and memory of the LFQ loss, forward and backward, beside vector-quantize-pytorch's.

Both do one training pass of the quantizer: codes, ids, entropy and commitment terms with the paper's weights, and the
gradient of their sum, on the same random latents. The peer holds a probability for every token and code, several times
over, so that the comparison is at PEER_TOKENS, half of a 17 x 128 x 128 clip, for some 5 GB of its memory; with more
tokens the ratio grows, with fewer it falls.
"""

from collections.abc import Callable

import torch

from vidtok.bench.memory import peak_mb
from vidtok.bench.peers import peer_versions, vector_quantize_pytorch_loss
from vidtok.bench.timing import ratio, summary, time_together
from vidtok.quantize import LFQ

PEER = "vector-quantize-pytorch"
BITS, TOKENS, PEER_TOKENS = 18, 1280, 640
ENTROPY, COMMITMENT = 0.1, 0.25  # the paper's weights


def vidtok_loss(
    device: torch.device, bits: int, tokens: int, entropy: float, commitment: float
) -> Callable[[], tuple[float, float]]:
    """Codes, ids, loss and its gradient. Returns (per-sample entropy, codebook entropy) in nats."""
    lfq = LFQ(bits)
    z_NK = torch.randn(1, tokens, bits, generator=torch.Generator().manual_seed(0))[0]
    z_BKthw = z_NK.T.reshape(1, bits, tokens, 1, 1).to(device).requires_grad_()

    def step():
        codes = lfq.quantize(z_BKthw)
        lfq.codes_to_ids(codes)
        terms = lfq.losses(z_BKthw, codes)
        torch.autograd.grad(entropy * terms["entropy"] + commitment * terms["commitment"], z_BKthw)
        return terms["entropy_per_sample"].item(), terms["entropy_codebook"].item()

    return step


def bench_loss(
    device: torch.device,
    bits: int = BITS,
    tokens: int = TOKENS,
    peer_tokens: int = PEER_TOKENS,
    runs: int = 15,
    peer_runs: int = 5,
    memory: bool = True,
) -> dict:
    """Returns:
    {"bits", "rows", "peer", "ratio"}. A row: {"of" ("vidtok" or the peer), "tokens", "median_s", "best_s", "worst_s",
    "runs", "peak_mb", "per_sample_nats", "codebook_nats"}. `peer` is its version and `ratio` the peer's time over ours
    in the same rounds, both None where it isn't installed.
    """
    makes = {"vidtok": vidtok_loss, PEER: vector_quantize_pytorch_loss}

    def row(of: str, count: int, work: Callable, seconds: list[float]) -> dict:
        per_sample, codebook = work()
        return {
            "of": of,
            "tokens": count,
            **summary(seconds),
            "peak_mb": peak_mb(makes[of], device, bits, count, ENTROPY, COMMITMENT, device=device) if memory else None,
            "per_sample_nats": per_sample,
            "codebook_nats": codebook,
        }

    own = vidtok_loss(device, bits, tokens, ENTROPY, COMMITMENT)
    rows = [row("vidtok", tokens, own, time_together({"own": own}, device, runs, warmup=2)["own"])]
    result = {"bits": bits, "rows": rows, "peer": peer_versions()[PEER], "ratio": None}
    if result["peer"] is not None:
        works = {of: make(device, bits, peer_tokens, ENTROPY, COMMITMENT) for of, make in makes.items()}
        seconds = time_together(works, device, peer_runs)
        rows += [row(of, peer_tokens, works[of], seconds[of]) for of in works]
        result["ratio"] = ratio(seconds[PEER], seconds["vidtok"])
    return result
