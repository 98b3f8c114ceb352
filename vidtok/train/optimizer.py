"""timm's optimisers, at full speed on CPUs that have no bf16 arithmetic of their own."""

import torch
from timm.optim import create_optimizer_v2, muon
from torch import Tensor, nn
from torch.optim import Optimizer

_timms = muon.zeropower_via_newtonschulz


def create_optimizer(model: nn.Module, **arguments) -> Optimizer:
    """`timm.optim.create_optimizer_v2`. Muon's Newton-Schulz steps, which timm always does in bf16, are done in fp32
    where bf16 is only emulated: there they would take most of a training step.

    arguments: timm's (opt, lr, ...), which raises ValueError for what it doesn't know."""
    # timm hands no dtype down to them.
    muon.zeropower_via_newtonschulz = _orthogonalise
    return create_optimizer_v2(model, **arguments)


def has_fast_bf16() -> bool:
    """Whether products of bf16 matrices are done by this CPU's own instructions; on x86 they need AVX-512."""
    # None of torch's public functions says it for every kind of CPU; this is what its own compiler asks.
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _orthogonalise(G: Tensor, *args, **kwargs) -> Tensor:
    if G.device.type == "cpu" and not has_fast_bf16():
        kwargs.setdefault("dtype", torch.float32)
    return _timms(G, *args, **kwargs)
