"""Chart of a result of `vidtok bench`."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OURS, PEERS, MACHINE = "#2a6f97", "#b0b0b0", "#e09f3e"


def draw_chart(result: dict, path: str | Path) -> None:
    """Draw a result as a PNG, with a panel for each kind of measurement that it holds.

    The panels show frames per second, FLOP rate, latency, and the times of the loss and of a training step.

    Args:
        result: what `vidtok.bench.suite.run_benchmark` returned.
        path: the PNG file; a missing folder is created.
    """
    panels = [panel for key, panel in PANELS if key in result]
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, grid = plt.subplots(lines, columns, figsize=(4.8 * columns, 3 * lines), squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for panel, axes in zip(panels, grid.flat, strict=False):
        panel(result, axes)
    about = result["provenance"]
    title = f"{result['model']} on {about['machine']['cpu']}, threads: {about['threads']}"
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)


def _bars(axes, bars: list[tuple[str, float, str]], unit: str, log: bool = True) -> None:
    """Draw horizontal bars, given as (label, value, color), the first one on top."""
    names, values, colors = zip(*bars, strict=True)
    axes.barh(range(len(bars)), values, color=colors)
    axes.set_yticks(range(len(bars)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(unit, fontsize=9)
    if log:
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 3, max(values) * 6)
    else:
        axes.set_xlim(0, max(values) * 1.2)
    for i, value in enumerate(values):
        axes.text(value, i, f" {value:,.0f}" if value >= 1000 else f" {value:.3g}", va="center", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _first_size(rows: list[dict]) -> list[dict]:
    size = [rows[0][key] for key in ("batch", "frames", "side")]
    return [row for row in rows if [row[key] for key in ("batch", "frames", "side")] == size]


def _speed(result: dict, axes) -> None:
    rows = _first_size(result["tokenizer"])
    bars = [(_name(row), row["frames_per_s"], OURS) for row in rows]
    for row in result.get("encode_peer", {}).get("rows", [])[1:]:
        bars.append((f"encode {row['of']}", row["frames_per_s"], PEERS))
    _bars(axes, bars, f"frames per second, at {_size(rows[0])}")


def _arithmetic(result: dict, axes) -> None:
    bars = []
    for row in _first_size(result["tokenizer"]):
        if row["what"] == "encode" and row["layout"] == "channels-last" and not row["compiled"]:
            bars.append((f"encode, {row['precision']}", row["gflop_per_s"], OURS))
            bars.append((f"its convolutions alone, {row['precision']}", row["conv_gflop_per_s"], MACHINE))
            bars.append((f"matrix product, {row['precision']}", row["matmul_gflop_per_s"], MACHINE))
    _bars(axes, bars, "GFLOP per second", log=False)


def _magvit2(result: dict, axes) -> None:
    rows = result["magvit2"]
    _bars(axes, [(_name(row), row["median_s"], OURS) for row in rows], f"magvit2 at {_size(rows[0])}, s", log=False)


def _streaming(result: dict, axes) -> None:
    rows = result["streaming"]
    bars = [(f"{row['what']} {row['precision']}", 1e3 * row["median_s"], OURS) for row in rows]
    _bars(axes, bars, f"latency of a latent, {rows[0]['side']} x {rows[0]['side']}, ms", log=False)


def _loss(result: dict, axes) -> None:
    rows = result["loss"]["rows"]
    bars = [
        (f"{r['of']}, {r['tokens']} tokens", 1e3 * r["median_s"], OURS if r["of"] == "vidtok" else PEERS) for r in rows
    ]
    _bars(axes, bars, f"LFQ loss, {result['loss']['bits']} bits, ms")


def _train(result: dict, axes) -> None:
    bars = [(f"{row['what']}, {row['precision']}", row["median_s"], OURS) for row in result["train"]]
    _bars(axes, bars, f"training step of {_size(result['train'][0])}, s", log=False)


def _size(row: dict) -> str:
    return "{batch} x {frames} x {side} x {side}".format(**row)


def _name(row: dict) -> str:
    layout = "" if row["layout"] == "channels-last" else " contiguous"
    return f"{row['what']} {row['precision']}{layout}{' compiled' if row['compiled'] else ''}"


PANELS = (
    ("tokenizer", _speed),
    ("tokenizer", _arithmetic),
    ("magvit2", _magvit2),
    ("streaming", _streaming),
    ("loss", _loss),
    ("train", _train),
)
