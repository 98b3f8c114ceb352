"""Frames a second of a tokenizer."""

from collections.abc import Iterator

import torch

from vidtok.bench.timing import time_runs
from vidtok.tokenizer import PRECISIONS, VideoTokenizer

FRAMES, SIDE = 17, 128


def bench_tokenizer(
    name: str,
    device: torch.device,
    batch_sizes: tuple[int, ...] = (1, 8),
    runs: int = 15,
    compiled: bool = False,
) -> Iterator[dict]:
    """Times `encode` and `decode` of clips of 17 x 128 x 128 in every precision, checks and id packing included.

    Args:
        name: what `VideoTokenizer.from_pretrained` takes.
        batch_sizes: clips at a time.
        compiled: measure the networks under `torch.compile`, too.

    Yields:
        {"what": "encode" or "decode", "precision", "batch", "compiled", "frames_per_s" (median), "best_frames_per_s",
        "median_s", "best_s", "worst_s", "runs"} as each is measured.
    """
    for precision in PRECISIONS:
        for use_compile in (False, True) if compiled else (False,):
            tokenizer = VideoTokenizer.from_pretrained(name, device, precision)
            if use_compile:
                tokenizer.encoder.compile()
                tokenizer.decoder.compile()
            for batch in batch_sizes:
                video = torch.rand(batch, 3, FRAMES, SIDE, SIDE, device=device) * 2 - 1
                ids = tokenizer.encode(video)
                for what, argument in (("encode", video), ("decode", ids)):
                    method = getattr(tokenizer, what)
                    times = time_runs(lambda method=method, argument=argument: method(argument), device, runs)
                    frames = batch * FRAMES
                    yield {
                        "what": what,
                        "precision": precision,
                        "batch": batch,
                        "compiled": use_compile,
                        "frames_per_s": frames / times["median_s"],
                        "best_frames_per_s": frames / times["best_s"],
                        **times,
                    }
