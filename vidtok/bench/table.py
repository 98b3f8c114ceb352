"""Text tables of benchmark results."""

from collections.abc import Callable
from typing import Any

from vidtok.bench.generation import describe


def print_part(part: dict) -> None:
    """Print one part of a result, as `vidtok.bench.suite.run_benchmark` reports it."""
    for key, value in part.items():
        PRINTERS[key](value)


def _memory(row: dict) -> str:
    return "" if row.get("peak_mb") is None else f"  {row['peak_mb']:.0f} MB"


def _times(row: dict) -> str:
    return f"{1e3 * row['median_s']:9.1f} ms ({1e3 * row['best_s']:.1f} .. {1e3 * row['worst_s']:.1f})"


def _codec(rows: list[dict]) -> None:
    size = "{batch} x {frames} x {side} x {side}".format(**rows[0])
    print(f"{size:45}{'frames/s':>9}{'best':>9}  GFLOP/s: own, convolutions, matmul; share")
    for row in rows:
        name = f"{row['what']} {row['precision']} {row['layout']}{' compiled' if row['compiled'] else ''}"
        print(
            f"  {name:43}{row['frames_per_s']:>9.1f}{row['best_frames_per_s']:>9.1f}"
            f"  {row['gflop_per_s']:.0f}, {row['conv_gflop_per_s']:.0f}, {row['matmul_gflop_per_s']:.0f};"
            f" {row['share_of_conv']:.0%}{_memory(row)}",
            flush=True,
        )


def _peer(peer: dict) -> None:
    if peer["version"] is None:
        print("magvit2-pytorch is not installed: no comparison of encode")
        return
    for row in peer["rows"]:
        print(f"  encode by {row['of']:33}{row['frames_per_s']:>9.1f} frames/s {_times(row)}")
    _ratio("  that is", peer["ratio"])


def _ratio(what: str, ratio: dict) -> None:
    print(f"{what} {ratio['median']:.3g} times as fast ({ratio['lowest']:.3g} .. {ratio['highest']:.3g})", flush=True)


def _streaming(rows: list[dict]) -> None:
    print("streams, one latent after another")
    for row in rows:
        name = f"{row['what']} {row['precision']}, {row['frames']} frames of {row['side']} x {row['side']}"
        print(f"  {name:43}{_times(row)}  {row['frames_per_s']:.0f} frames/s", flush=True)


def _loss(loss: dict) -> None:
    print(f"LFQ loss and gradient, {loss['bits']} bits")
    for row in loss["rows"]:
        entropies = f"entropies {row['per_sample_nats']:.3f}, {row['codebook_nats']:.3f} nats"
        print(f"  {row['of'] + ', ' + str(row['tokens']) + ' tokens':43}{_times(row)}{_memory(row)}  {entropies}")
    if loss["peer"] is None:
        print("vector-quantize-pytorch is not installed: no comparison of the loss")
    else:
        _ratio("  that is", loss["ratio"])


def _train(rows: list[dict]) -> None:
    print("training, {batch} clips of {frames} x {side} x {side} a step".format(**rows[0]))
    for row in rows:
        print(f"  {row['what'] + ' ' + row['precision']:43}{_times(row)}{_memory(row)}", flush=True)


def _reader(row: dict) -> None:
    if "mb" in row:
        peak = "unknown" if row["mb"] is None else f"{row['mb']:.0f} MB above the start"
        print(f"  {row['of']}: {peak}", flush=True)
        return
    ratio = "" if row["ratio"] is None else f", {row['ratio']:.2f}x decord (lowest {row['lowest']:.2f}x)"
    quality = "" if row["psnr"] is None else f", {row['psnr']:.1f} dB"
    print(f"  {row['of']:40}{row['reader']:12}{row['frames_per_s']:7.0f} frames/s{ratio}{quality}", flush=True)


def _loader(row: dict) -> None:
    if "workers" not in row:
        return _reader(row)
    who = f"{row['workers']} worker{'s' * (row['workers'] > 1)}" if row["workers"] else "this process"
    share = f", {row['share']:.0%} of this process alone" if row["workers"] else ""
    print(
        f"  {row['of']}, {who:14}{row['clips_per_s']:7.1f} clips/s ({row['worst_clips_per_s']:.1f} .. "
        f"{row['best_clips_per_s']:.1f}), {row['cpu_ms']:.1f} ms of processor time a clip{share}",
        flush=True,
    )


PRINTERS: dict[str, Callable[[Any], None]] = {
    "header": lambda words: print(words, flush=True),
    "generate": lambda row: print(describe(row), flush=True),
    "loader": _loader,
    "tokenizer": _codec,
    "encode_peer": _peer,
    "magvit2": _codec,
    "magvit2_ratio": lambda ratio: _ratio("  bf16 and channels-last is", ratio),
    "streaming": _streaming,
    "loss": _loss,
    "train": _train,
}
