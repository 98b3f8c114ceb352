"""Latency of a stream: from the frames of one latent to its ids, and from its ids to its frames."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from vidtok.bench.timing import summary, time_together
from vidtok.bench.tokenizer import Variant, open_tokenizer


def bench_streaming(
    name: str, device: torch.device, side: int = 128, precisions: tuple[str, ...] = ("fp32", "bf16"), runs: int = 30
) -> list[dict]:
    """Times one latent after another of endless streams.

    Returns:
        One row for encode and decode in each precision: {"what", "precision", "side", "frames" (that a latent stands
        for), "frames_per_s", "median_s", "best_s", "worst_s", "runs"}.
    """
    works, frames = {}, {}
    for precision in precisions:
        tokenizer = open_tokenizer(name, device, Variant(precision))
        depth, height, width = tokenizer.stride

        def clips(first: int, depth: int = depth) -> Iterator[Tensor]:
            yield torch.rand(1, 3, first, side, side, device=device) * 2 - 1
            while True:
                yield torch.rand(1, 3, depth, side, side, device=device) * 2 - 1

        def ids(shape=(1, 1, side // height, side // width), bits: float = tokenizer.bits) -> Iterator[Tensor]:
            while True:
                yield torch.randint(0, int(2**bits), shape, device=device)

        works["encode", precision] = partial(next, tokenizer.stream_encode(clips(1)))
        works["decode", precision] = partial(next, tokenizer.stream_decode(ids()))
        frames[precision] = depth
    # The warm-up holds the first latent, which is one frame.
    seconds = time_together(works, device, runs, warmup=3)
    return [
        {
            "what": what,
            "precision": precision,
            "side": side,
            "frames": frames[precision],
            "frames_per_s": frames[precision] / (times := summary(seconds[what, precision]))["median_s"],
            **times,
        }
        for what, precision in works
    ]
