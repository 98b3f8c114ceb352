"""Arithmetic: how much a model does, and how fast this machine does such arithmetic by itself."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

MATMUL_SIDE = 1024


def count_flops(work: Callable[[], object]) -> int:
    """Floating point operations of all matrix products and convolutions of one call (a multiply-add is two)."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


class _ConvolutionLog(TorchDispatchMode):
    """Counts the convolutions that are called, by their shapes and settings."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution.default:
            x, weight, bias, *settings = args
            settings = tuple(tuple(s) if isinstance(s, list) else s for s in settings)
            self.calls[tuple(x.shape), tuple(weight.shape), bias is not None, x.dtype, settings] += 1
        return function(*args, **(kwargs or {}))


def convolutions_of(work: Callable[[], object], device: torch.device, layout: str) -> Callable[[], None]:
    """All convolutions that one call of `work` makes, alone, on random numbers of the same shapes and dtypes.

    layout: "contiguous" or "channels-last", of inputs and weights.
    """
    with _ConvolutionLog() as log:
        work()
    calls = []
    for (x, weight, has_bias, dtype, settings), count in log.calls.items():
        x, weight = (in_layout(torch.randn(s, device=device, dtype=dtype), layout) for s in (x, weight))
        bias = torch.randn(len(weight), device=device, dtype=dtype) if has_bias else None
        calls.append((count, (x, weight, bias, *settings)))

    @torch.no_grad()
    def replay() -> None:
        for count, arguments in calls:
            for _ in range(count):
                torch.convolution(*arguments)

    return replay


def in_layout(x: Tensor, layout: str) -> Tensor:
    """The same values in "contiguous" or, of a 4- or 5-dimensional tensor, "channels-last" memory."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d} if layout == "channels-last" else {}
    return x.contiguous(memory_format=formats.get(x.ndim, torch.contiguous_format))


def matmul(device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    """One product of two square matrices of side MATMUL_SIDE."""
    a, b = (torch.randn(MATMUL_SIDE, MATMUL_SIDE, device=device, dtype=dtype) for _ in range(2))
    return lambda: a @ b
