"""Comparison with other libraries, where they are installed; no other module needs them.

magvit2-pytorch: encoding with the model of its README, without its adversarial and perceptual losses (the latter would
download weights).

vector-quantize-pytorch: time and memory of the LFQ loss, forward and backward. Both libraries do one training pass of
the quantizer on the same random latents: codes, ids, entropy and commitment terms with the paper's weights, and the
gradient of their sum. vector-quantize-pytorch holds several copies of a probability for every token and code, about 5
GB at PEER_TOKENS, half of a 17 x 128 x 128 clip. The ratio of the times grows with the number of tokens.
"""

import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch

from vidtok.bench.timing import peak_mb, ratio, summary, time_together
from vidtok.quantize import LFQ

PEERS = ("magvit2-pytorch", "vector-quantize-pytorch")

README_LAYERS = (
    "residual",
    "compress_space",
    ("consecutive_residual", 2),
    "compress_space",
    ("consecutive_residual", 2),
    "linear_attend_space",
    "compress_space",
    ("consecutive_residual", 2),
    "attend_space",
    "compress_time",
    ("consecutive_residual", 2),
    "compress_time",
    ("consecutive_residual", 2),
    "attend_time",
)


def peer_versions() -> dict[str, str | None]:
    """Return the installed version of each of `PEERS`, None if it is not installed."""
    versions: dict[str, str | None] = {}
    for name in PEERS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def magvit2_pytorch_encode(device: torch.device, clip: tuple[int, int, int]) -> Callable[[], object]:
    """Build a function that encodes a random clip, (batch, frames, side), to ids, as `VideoTokenizer.encode` does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses deprecated functions
        from magvit2_pytorch import VideoTokenizer

    batch, frames, side = clip
    model = VideoTokenizer(
        image_size=side,
        init_dim=64,
        max_dim=512,
        codebook_size=1024,
        layers=README_LAYERS,
        use_gan=False,
        perceptual_loss_weight=0.0,
    )
    model.to(device).eval()
    video = torch.rand(batch, 3, frames, side, side, device=device) * 2 - 1
    return lambda: model.tokenize(video)


def vector_quantize_pytorch_loss(
    device: torch.device, bits: int, tokens: int, entropy: float, commitment: float
) -> Callable[[], tuple[float, float]]:
    """Build a function that computes codes, ids, the loss and its gradient with vector-quantize-pytorch.

    The function returns (per-sample entropy, codebook entropy) in nats. `inv_temperature` 1 is vidtok's temperature 1:
    both are the softmax over codes c of 2 z.c.
    """
    from vector_quantize_pytorch import LFQ

    lfq = LFQ(dim=bits, codebook_size=2**bits, entropy_loss_weight=entropy, commitment_loss_weight=commitment).to(
        device
    )
    lfq.train()
    z = torch.randn(1, tokens, bits, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()

    def step():
        (_, _, loss), parts = lfq(z, inv_temperature=1.0, return_loss_breakdown=True)
        torch.autograd.grad(loss, z)
        return parts.per_sample_entropy.item(), parts.batch_entropy.item()

    return step


PEER = "vector-quantize-pytorch"
BITS, TOKENS, PEER_TOKENS = 18, 1280, 640
ENTROPY, COMMITMENT = 0.1, 0.25  # the paper's weights


def vidtok_loss(
    device: torch.device, bits: int, tokens: int, entropy: float, commitment: float
) -> Callable[[], tuple[float, float]]:
    """Build a function that computes codes, ids, the loss and its gradient with vidtok.

    The function returns (per-sample entropy, codebook entropy) in nats.
    """
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
    """Measure time and memory of the LFQ loss and its gradient, alone and against vector-quantize-pytorch.

    Args:
        device: device of the computation.
        bits: log2 of the codebook size.
        tokens: number of tokens of the measurement without the peer.
        peer_tokens: number of tokens of the comparison.
        runs: number of runs of the measurement without the peer.
        peer_runs: number of rounds of the comparison.
        memory: whether to measure peak memory.

    Returns:
        {"bits", "rows", "peer", "ratio"}. A row is {"of" ("vidtok" or the peer), "tokens", "median_s", "best_s",
        "worst_s", "runs", "peak_mb", "per_sample_nats", "codebook_nats"}. "peer" is the peer's version, and "ratio" its
        time over vidtok's in the same rounds (see `vidtok.bench.timing.ratio`). Both are None if it is not installed.
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
