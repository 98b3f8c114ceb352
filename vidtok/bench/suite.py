"""The benchmark by kinds, and how much each takes of it: in full some minutes on two cores, or quick.

Kinds: "tokenizer" (encode and decode of any model, and against magvit2-pytorch), "magvit2" (the paper's network, naive
against tuned), "streaming", "loss" (against vector-quantize-pytorch), "train".

What the benchmark is meant to show, and whether a result shows it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from vidtok.bench.peers import PEER_TOKENS, bench_loss, magvit2_pytorch_encode, peer_versions
from vidtok.bench.timing import peak_mb, ratio, summary, time_together
from vidtok.bench.tokenizer import NAIVE, Clip, Variant, bench_streaming, bench_tokenizer, codec_call
from vidtok.bench.training import bench_training

PEER = "magvit2-pytorch"
VARIANTS = (NAIVE, Variant("fp32"), Variant("bf16"))
PEER_CLIP = Clip(1, 17, 128)  # its README's
MAGVIT2_CLIP = Clip(1, 5, 64)  # 17 x 128 x 128 is 14 times as much, a minute for one encode on a core


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        clips: of the kind "tokenizer".
        runs: of what is quick; slow_runs: of what takes seconds.
        peer_tokens: of the loss beside the peer's.
        memory: whether peaks are measured (at the first of the clips), each in a fresh process.
    """

    clips: tuple[Clip, ...] = (Clip(1, 17, 128), Clip(4, 17, 128), Clip(1, 17, 256))
    runs: int = 15
    slow_runs: int = 3
    peer_tokens: int = PEER_TOKENS
    memory: bool = True


QUICK = Effort(clips=(Clip(1, 17, 128),), runs=5, slow_runs=2, peer_tokens=64, memory=False)


def run_tokenizer(model: str, device: torch.device, effort: Effort, compiled: bool) -> Iterator[dict]:
    for clip in effort.clips:
        variants = VARIANTS + (tuple(v._replace(compiled=True) for v in VARIANTS[1:]) if compiled else ())
        memory = effort.memory and clip == effort.clips[0]
        rows, _ = bench_tokenizer(model, device, clip, variants, effort.runs, memory=memory)
        yield {"tokenizer": rows}
    installed = peer_versions()[PEER]
    peer = {"version": installed, "clip": PEER_CLIP._asdict(), "rows": [], "ratio": None}
    if installed is not None:
        works = {
            model: codec_call(model, device, Variant("fp32"), PEER_CLIP, "encode"),
            PEER: magvit2_pytorch_encode(device, PEER_CLIP),
        }
        seconds = time_together(works, device, effort.slow_runs)
        frames = PEER_CLIP.batch * PEER_CLIP.frames
        for of, values in seconds.items():
            times = summary(values)
            peer["rows"].append({"of": of, "frames_per_s": frames / times["median_s"], **times})
        if effort.memory:
            peer["peak_mb"] = peak_mb(magvit2_pytorch_encode, device, PEER_CLIP, device=device)
        peer["ratio"] = ratio(seconds[PEER], seconds[model])
    yield {"encode_peer": peer}


def run_magvit2(model: str, device: torch.device, effort: Effort, compiled: bool) -> Iterator[dict]:
    runs = effort.slow_runs
    rows, seconds = bench_tokenizer("magvit2", device, MAGVIT2_CLIP, VARIANTS, runs, ("encode",), memory=False)
    yield {"magvit2": rows, "magvit2_ratio": ratio(seconds[f"encode {NAIVE}"], seconds[f"encode {VARIANTS[-1]}"])}


def run_streaming(model: str, device: torch.device, effort: Effort, compiled: bool) -> Iterator[dict]:
    yield {"streaming": bench_streaming(model, device, runs=2 * effort.runs)}


def run_loss(model: str, device: torch.device, effort: Effort, compiled: bool) -> Iterator[dict]:
    peer_tokens, peer_runs = effort.peer_tokens, effort.slow_runs
    runs, memory = 2 * effort.runs, effort.memory
    yield {"loss": bench_loss(device, peer_tokens=peer_tokens, runs=runs, peer_runs=peer_runs, memory=memory)}


def run_train(model: str, device: torch.device, effort: Effort, compiled: bool) -> Iterator[dict]:
    yield {"train": bench_training(model, device, runs=effort.slow_runs, memory=effort.memory)}


Kind = Callable[[str, torch.device, Effort, bool], Iterator[dict]]
KINDS: dict[str, Kind] = {
    "tokenizer": run_tokenizer,
    "magvit2": run_magvit2,
    "streaming": run_streaming,
    "loss": run_loss,
    "train": run_train,
}

# What, the goal, whether the value is to be at least (+1) or at most (-1) that, and where the value is in a result.
TARGETS: tuple[tuple[str, float, int, Callable[[dict], float]], ...] = (
    ("encode, times as fast as magvit2-pytorch's", 100, +1, lambda r: r["encode_peer"]["ratio"]["median"]),
    ("LFQ loss, times as fast as vector-quantize-pytorch's", 300, +1, lambda r: r["loss"]["ratio"]["median"]),
    ("magvit2 encode in bf16, times as fast as naive", 2, +1, lambda r: r["magvit2_ratio"]["median"]),
    ("encode, share of the convolution rate, fp32", 0.5, +1, lambda r: _share(r, "fp32")),
    ("encode, share of the convolution rate, bf16", 0.5, +1, lambda r: _share(r, "bf16")),
    ("LFQ loss of 1280 tokens, ms", 40, -1, lambda r: 1e3 * r["loss"]["rows"][0]["median_s"]),
    ("LFQ loss of 1280 tokens, MB", 100, -1, lambda r: r["loss"]["rows"][0]["peak_mb"]),
)


def _share(result: dict, precision: str) -> float:
    """Of the first clip size, one clip at a time."""
    wanted = {"what": "encode", "precision": precision, "layout": "channels-last", "compiled": False}
    return next(row for row in result["tokenizer"] if wanted.items() <= row.items())["share_of_conv"]


def check_targets(result: dict) -> list[dict]:
    """{"what", "target", "at_least" (else at most), "value", "met"} of each target that the result has a value for."""
    rows = []
    for what, target, sign, value_of in TARGETS:
        try:
            value = value_of(result)
        except (KeyError, TypeError):  # another kind was run, or the peer is absent
            continue
        if value is not None:
            met = sign * value >= sign * target
            rows.append({"what": what, "target": target, "at_least": sign > 0, "value": value, "met": met})
    return rows
