"""Other libraries of the same purpose, where they are installed; nothing here needs them.

magvit2-pytorch: the model of its README, with the adversarial and the perceptual part off (the latter would download
weights). vector-quantize-pytorch: `LFQ` in training mode.
"""

import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch

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
    """Installed version of each of PEERS, None where there is none."""
    versions = {}
    for name in PEERS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def magvit2_pytorch_encode(device: torch.device, clip: tuple[int, int, int]) -> Callable[[], object]:
    """clip: (batch, frames, side). From pixels to ids, as `VideoTokenizer.encode` goes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls what is deprecated
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
    """Codes, ids, loss and its gradient. Returns (per-sample entropy, codebook entropy) in nats.

    `inv_temperature` 1 is vidtok's temperature 1: both are the softmax over codes c of 2 z.c.
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
