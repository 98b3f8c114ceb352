"""Speed, memory and arithmetic of a tokenizer's encode and decode.

Latency of a stream: from the frames of one latent to its ids, and from its ids to its frames.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from vidtok.bench.timing import (
    MATMUL_SIDE,
    convolutions_of,
    count_flops,
    in_layout,
    matmul,
    peak_mb,
    summary,
    time_together,
)
from vidtok.hub import list_shipped
from vidtok.tokenizer import PRECISIONS, VideoTokenizer, create_tokenizer, list_tokenizers


class Clip(NamedTuple):
    """Size of the input: clips at a time, frames, and height and width in pixels."""

    batch: int
    frames: int
    side: int


class Variant(NamedTuple):
    """How the networks run: "fp32" or "bf16"; weights in "channels-last" or "contiguous" memory; torch.compile."""

    precision: str
    layout: str = "channels-last"
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.precision} {self.layout}{' compiled' if self.compiled else ''}"


NAIVE = Variant("fp32", "contiguous")


def open_tokenizer(name: str, device: torch.device, variant: Variant) -> VideoTokenizer:
    """A tokenizer as `from_pretrained` takes it, or an untrained one by config name: weights don't change speed."""
    if name in list_tokenizers() and name not in list_shipped():
        tokenizer = create_tokenizer(name).eval().set_precision(variant.precision).to(device)
    else:
        tokenizer = VideoTokenizer.from_pretrained(name, device, variant.precision)
    for parameter in tokenizer.parameters():
        parameter.data = in_layout(parameter.data, variant.layout)
    if variant.compiled:
        tokenizer.encoder.compile()
        tokenizer.decoder.compile()
    return tokenizer


def codec_call(name: str, device: torch.device, variant: Variant, clip: Clip, what: str) -> Callable[[], object]:
    """`encode` or `decode` of a random clip or random ids, checks and id packing included."""
    tokenizer = open_tokenizer(name, device, variant)
    return _calls(tokenizer, clip)[what]


def _calls(tokenizer: VideoTokenizer, clip: Clip) -> dict[str, Callable[[], object]]:
    batch, frames, side = clip
    video = torch.rand(batch, 3, frames, side, side, device=tokenizer.device) * 2 - 1
    depth, height, width = tokenizer.stride
    grid = (batch, 1 + (frames - 1) // depth, side // height, side // width)
    ids = torch.randint(int(2**tokenizer.bits), grid, device=tokenizer.device)
    return {"encode": lambda: tokenizer.encode(video), "decode": lambda: tokenizer.decode(ids)}


def bench_tokenizer(
    name: str,
    device: torch.device,
    clip: Clip,
    variants: tuple[Variant, ...],
    runs: int,
    whats: tuple[str, ...] = ("encode", "decode"),
    memory: bool = True,
) -> tuple[list[dict], dict[str, list[float]]]:
    """Times all variants together, and beside them what this machine does with the same convolutions alone.

    Returns:
        One row for each variant and each of `whats`: {"what", "precision", "layout", "compiled", "batch", "frames",
        "side", "frames_per_s" (median), "best_frames_per_s", "median_s", "best_s", "worst_s", "runs", "gflop",
        "gflop_per_s", "conv_gflop_per_s", "matmul_gflop_per_s", "share_of_conv", "peak_mb"}, and the seconds of every
        round by "what variant". conv_gflop_per_s is of the model's own convolutions without the model, in the faster
        of both memory layouts; matmul_gflop_per_s of a square product; both in the row's precision and in the same
        rounds. peak_mb as `vidtok.bench.timing.peak_mb`, or None where not asked for.
    """
    works, flops = {}, {}
    for variant in variants:
        calls = _calls(open_tokenizer(name, device, variant), clip)
        for what in whats:
            works[f"{what} {variant}"] = calls[what]
    for variant in (v for v in variants if not v.compiled):
        for what in whats:
            call = works[f"{what} {variant}"]
            flops[what] = count_flops(call)
            for layout in ("contiguous", "channels-last"):
                key = f"convolutions of {what} {variant.precision} {layout}"
                if key not in works:
                    works[key] = convolutions_of(call, device, layout)
                    flops[f"convolutions of {what} {variant.precision}"] = count_flops(works[key])
    for precision in {v.precision for v in variants}:
        works[f"matmul {precision}"] = matmul(device, PRECISIONS[precision])
    with torch.no_grad():
        seconds = time_together(works, device, runs)
    times = {key: summary(values) for key, values in seconds.items()}

    rows = []
    for variant in variants:
        for what in whats:
            own = times[f"{what} {variant}"]
            convolutions = f"convolutions of {what} {variant.precision}"
            conv_s = min(times[f"{convolutions} {layout}"]["median_s"] for layout in ("contiguous", "channels-last"))
            rate, conv_rate = flops[what] / own["median_s"], flops[convolutions] / conv_s
            frames = clip.batch * clip.frames
            rows.append(
                {
                    "what": what,
                    **variant._asdict(),
                    **clip._asdict(),
                    "frames_per_s": frames / own["median_s"],
                    "best_frames_per_s": frames / own["best_s"],
                    **own,
                    "gflop": flops[what] / 1e9,
                    "gflop_per_s": rate / 1e9,
                    "conv_gflop_per_s": conv_rate / 1e9,
                    "matmul_gflop_per_s": 2 * MATMUL_SIDE**3 / times[f"matmul {variant.precision}"]["median_s"] / 1e9,
                    "share_of_conv": rate / conv_rate,
                    "peak_mb": peak_mb(codec_call, name, device, variant, clip, what, device=device)
                    if memory
                    else None,
                }
            )
    return rows, seconds


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
