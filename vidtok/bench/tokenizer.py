"""Speed, memory and FLOP rate of a tokenizer's encode and decode, and latency of its streams.

The latency of a stream is the time from the frames of one latent to its ids, or from its ids to its frames.
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
    """Size of the input: batch size, frames per clip, and height and width in pixels."""

    batch: int
    frames: int
    side: int


class Variant(NamedTuple):
    """Execution settings of a tokenizer.

    Attributes:
        precision: "fp32" or "bf16".
        layout: memory layout of the weights, "channels-last" or "contiguous".
        compiled: whether encoder and decoder run with torch.compile.
    """

    precision: str
    layout: str = "channels-last"
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.precision} {self.layout}{' compiled' if self.compiled else ''}"


NAIVE = Variant("fp32", "contiguous")


def open_tokenizer(name: str, device: torch.device, variant: Variant) -> VideoTokenizer:
    """Load a tokenizer, or create an untrained one if `name` is a config without shipped weights.

    Weights don't affect the speed.
    """
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
    """Build a function that calls `encode` on a random clip, or `decode` on random ids, with checks and id packing."""
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
    """Time encode and decode of all variants in turns, with the model's convolutions alone for comparison.

    Args:
        name: see `open_tokenizer`.
        device: device of the tokenizer.
        clip: size of the input.
        variants: execution settings to measure.
        runs: number of rounds.
        whats: "encode", "decode" or both.
        memory: whether to measure peak memory.

    Returns:
        One row for each variant and each of `whats`, and the seconds of every round by "what variant". A row is
        {"what", "precision", "layout", "compiled", "batch", "frames", "side", "frames_per_s" (median),
        "best_frames_per_s", "median_s", "best_s", "worst_s", "runs", "gflop", "gflop_per_s", "conv_gflop_per_s",
        "matmul_gflop_per_s", "share_of_conv", "peak_mb"}. "conv_gflop_per_s" is the rate of the model's convolutions
        alone, in the faster of the two layouts. "matmul_gflop_per_s" is the rate of a square matrix product. Both are
        measured in the row's precision and in the same rounds. "peak_mb" (see `vidtok.bench.timing.peak_mb`) is None
        without `memory`.
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
    """Time single latents of endless streams.

    Args:
        name: see `open_tokenizer`.
        device: device of the tokenizer.
        side: height and width of the frames in pixels.
        precisions: precisions to measure.
        runs: number of latents timed.

    Returns:
        One row for encode and decode in each precision: {"what", "precision", "side", "frames" (frames per latent),
        "frames_per_s", "median_s", "best_s", "worst_s", "runs"}.
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
    # The warm-up includes the first latent, which is a single frame.
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
