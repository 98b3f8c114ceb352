"""The benchmark suite; it takes some minutes on two CPU cores, less with `quick`.

Kinds of "all": "tokenizer" (encode and decode of any model, and encode against magvit2-pytorch), "magvit2" (the paper's
network, naive against tuned), "streaming", "loss" (against vector-quantize-pytorch) and "train". The kinds "generate"
and "loader" run only if asked for by name.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch

from vidtok.bench import generation, loader
from vidtok.bench.peers import PEER_TOKENS, bench_loss, magvit2_pytorch_encode, peer_versions
from vidtok.bench.timing import machine, peak_mb, ratio, summary, time_together
from vidtok.bench.tokenizer import NAIVE, Clip, Variant, bench_streaming, bench_tokenizer, codec_call
from vidtok.bench.training import bench_training
from vidtok.checks import pick_device
from vidtok.errors import UserError, nearest
from vidtok.provenance import provenance

PEER = "magvit2-pytorch"
VARIANTS = (NAIVE, Variant("fp32"), Variant("bf16"))
PEER_CLIP = Clip(1, 17, 128)  # that of its README
MAGVIT2_CLIP = Clip(1, 5, 64)  # 17 x 128 x 128 is 14 times as many pixels, a minute per encode on one core


@dataclass(frozen=True)
class Effort:
    """Sizes and repetitions of a benchmark.

    Attributes:
        clips: clip sizes of the kind "tokenizer".
        runs: number of runs of fast measurements.
        slow_runs: number of runs of measurements that take seconds.
        peer_tokens: number of tokens in the comparison of the loss.
        memory: whether to measure peak memory, at the first clip size, each time in a fresh process.
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
    peer: dict[str, Any] = {"version": installed, "clip": PEER_CLIP._asdict(), "rows": [], "ratio": None}
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

ALONE = ("generate", "loader")  # they take minutes, and are not part of "all"


def run_benchmark(
    kind: str = "all",
    data: str | None = None,
    *,
    model: str = "vidtok-t",
    device: str = "auto",
    threads: int | None = None,
    runs: int | None = None,
    quick: bool = False,
    compile: bool = False,
    report: Callable[[dict, dict], None] = lambda part, result: None,
) -> dict:
    """Measure speed and memory.

    Args:
        kind: one of `KINDS`, "all" of them, or one of `ALONE`.
        data: folder of videos or annotation file for "loader"; None, rendered clips and a comparison of video readers.
        model: tokenizer of "tokenizer", "streaming" and "train": a name, folder or hub id that
            `VideoTokenizer.from_pretrained` accepts, or the name of a config (untrained).
        device: "auto", "cpu", "cuda", "cuda:1", ...
        threads: number of torch's CPU threads, set for the whole process; None, torch's default.
        runs: number of runs of each fast measurement; None, 15, or 3 for "generate" and "loader".
        quick: measure one size in few runs, and no memory.
        compile: also measure with torch.compile.
        report: called with each part of the result as it is measured, and with the result so far. The first part is
            {"header": a description of the benchmark}. `vidtok.bench.table.print_part` prints a part.

    Returns:
        The result, made of plain values that JSON can hold.

    Raises:
        UserError: an unknown kind, data for a kind that takes none, or a device that is not available.
    """
    kinds = ("all", *KINDS, *ALONE)
    if kind not in kinds:
        raise UserError(f"unknown benchmark {kind!r}: {nearest(kind, kinds)}")
    if data is not None and kind != "loader":
        raise UserError(f"bench {kind} takes no dataset, {data}: loader does")
    if threads:
        torch.set_num_threads(threads)
    place = pick_device("cpu" if kind == "loader" else device)
    about = provenance(place)
    if kind in ALONE:
        return _run_alone(kind, data, place, about, runs or 3, quick, compile, report)
    effort = QUICK if quick else Effort()
    effort = replace(effort, runs=runs) if runs else effort
    about |= {"machine": machine()}
    about["versions"] |= peer_versions()
    result: dict[str, Any] = {
        "schema": "vidtok.bench/1",
        "model": model,
        "kind": kind,
        "quick": quick,
        "provenance": about,
    }
    words = f"{model} on {about['device']}, {about['threads']} threads, torch {torch.__version__}"
    report({"header": words}, result)
    for name in KINDS if kind == "all" else [kind]:
        for part in KINDS[name](model, place, effort, compile):
            for key, value in part.items():
                result[key] = result[key] + value if key in result and isinstance(value, list) else value
            report(part, result)
    return result


def _run_alone(
    kind: str, data: str | None, device: torch.device, about: dict, runs: int, quick: bool, compile: bool, report
) -> dict:
    result: dict[str, Any] = {"schema": f"vidtok.bench.{kind}/1", "rows": [], "provenance": about}
    if kind == "generate":
        words = f"generators on {about['device']}, {about['threads']} threads"
        batches = (1,) if quick else (1, 8)
        rows = generation.bench_generation(device, batches, runs, uncached=not quick, compiled=compile)
    else:
        words = f"clips of {loader.FRAMES} x {loader.SIDE} x {loader.SIDE}, of {data or 'rendered videos'}"
        heights = dict.fromkeys(loader.HEIGHTS, 8) if quick else loader.HEIGHTS
        rows = chain(
            loader.bench_readers(1 if quick else 5, heights) if data is None else (),
            loader.bench_loader(data, batches=3 if quick else 12, runs=runs),
        )
    report({"header": words}, result)
    for row in rows:
        result["rows"].append(row)
        report({kind: row}, result)
    return result
