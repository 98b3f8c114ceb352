"""Summaries, tables and charts of a comparison of codecs."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image
from torch import Tensor

from vidtok.eval.compression.codecs import CAUSAL, LOW_DELAY, MODES
from vidtok.eval.metrics.intervals import bootstrap_interval

ANCHOR = "x265 random-access"
CROP = 256  # largest side of a crop in pixels

# metric -> whether higher is better
HIGHER_IS_BETTER = {
    "psnr": True, "psnr_y": True, "ms_ssim": True, "lpips": False, "vmaf": True, "frame_agreement": True,
    "frame_confidence": True, "i3d_agreement": True, "i3d_confidence": True,
}  # fmt: skip
SPEEDS = ("encode_fps", "decode_fps")


def summarize(rows: Sequence[Mapping], modes: Mapping[str, str], left_out: list[dict]) -> dict:
    """Compute points, comparisons and bd_rate of the result, see the top of this file.

    Args:
        rows: `clips` of the result. modes: label of each codec -> its mode.
        left_out: an entry is added if the package bjontegaard is missing.
    """
    metrics = [metric for metric in HIGHER_IS_BETTER if any(metric in row for row in rows)]
    groups: dict[tuple[str, str], list[Mapping]] = {}
    for row in rows:
        groups.setdefault((row["codec"], row["rate"]), []).append(row)
    points: list[dict] = [
        {"codec": codec, "mode": modes[codec], "rate": rate}
        | {key: summary([row[key] for row in group if key in row]) for key in ("bpp", *metrics, *SPEEDS)}
        for (codec, rate), group in groups.items()
    ]
    others = [codec for codec, mode in modes.items() if mode in MODES and any(p["codec"] == codec for p in points)]
    return {
        "points": points,
        "comparisons": [
            {
                "point": f"{codec} {rate}",
                "bpp": summary([row["bpp"] for row in group]),
                "codec": other,
                "metrics": {metric: _at_equal_rate(group, rows, other, metric) for metric in metrics},
            }
            for (codec, rate), group in groups.items()
            if modes[codec] not in MODES
            for other in others
        ],
        "bd_rate": _bd_rates(points, metrics, left_out) if ANCHOR in others else None,
    }


def summary(values: Sequence[float]) -> dict | None:
    """Summarize values over clips: {mean, stderr, low, high, n}; None for no values."""
    if not len(values):
        return None
    x = np.array(values)
    low, high = bootstrap_interval(lambda i: float(x[i].mean()), len(x))
    stderr = float(x.std(ddof=1) / len(x) ** 0.5) if len(x) > 1 else None
    return {"mean": float(x.mean()), "stderr": stderr, "low": low, "high": high, "n": len(x)}


def _at_equal_rate(group: Sequence[Mapping], rows: Sequence[Mapping], other: str, metric: str) -> dict | None:
    """Summarize the differences to another codec, interpolated on each clip in the logarithm of the rate."""
    differences, outside = [], 0
    for row in group:
        curve = sorted((o["bpp"], o[metric]) for o in rows if (o["name"], o["codec"]) == (row["name"], other))
        if metric not in row or not curve or not curve[0][0] <= row["bpp"] <= curve[-1][0]:
            outside += 1
            continue
        bpp, values = np.array(curve).T
        differences.append(row[metric] - float(np.interp(np.log(row["bpp"]), np.log(bpp), values)))
    found = summary(differences)
    return None if found is None else found | {"n_outside": outside}


def _bd_rates(points: Sequence[Mapping], metrics: Sequence[str], left_out: list[dict]) -> dict | None:
    try:
        import bjontegaard
    except ImportError:
        left_out.append({"name": "BD-rate", "reason": "needs bjontegaard: pip install 'vidtok[compression]'"})
        return None

    def curve(codec: str, metric: str) -> tuple[list[float], list[float]] | None:
        """Return (rates, values that increase with the rate and with quality); None for fewer than four points."""
        sign = 1 if HIGHER_IS_BETTER[metric] else -1
        own = [point for point in points if point["codec"] == codec and point[metric]]
        found = sorted((point["bpp"]["mean"], sign * point[metric]["mean"]) for point in own)
        rising: list[tuple[float, float]] = []
        for bpp, value in found:
            if not rising or value > rising[-1][1]:
                rising.append((bpp, value))
        return ([bpp for bpp, _ in rising], [value for _, value in rising]) if len(rising) >= 4 else None

    def rate(codec: str, metric: str) -> float | None:
        ours, anchor = curve(codec, metric), curve(ANCHOR, metric)
        if ours is None or anchor is None or min(ours[1][-1], anchor[1][-1]) <= max(ours[1][0], anchor[1][0]):
            return None
        options = {"method": "akima", "require_matching_points": False, "min_overlap": 0}
        return float(bjontegaard.bd_rate(*anchor, *ours, **options))

    labels = dict.fromkeys(point["codec"] for point in points)
    found = {label: {m: rate(label, m) for m in metrics} for label in labels if label != ANCHOR}
    return {"anchor": ANCHOR, "method": "akima, on means over clips", "codecs": found}


def save_frame(path: Path, clip: Tensor) -> None:
    """Save the middle of the middle frame of a clip, uint8 [1, 3, T, H, W], as PNG."""
    frame_HW3 = clip[0, :, clip.shape[2] // 2].permute(1, 2, 0).numpy()
    top, left = (max(side - CROP, 0) // 2 for side in frame_HW3.shape[:2])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(frame_HW3[top : top + CROP, left : left + CROP]).save(path)


def write_report(result: Mapping, folder: Path, pictures: Mapping[str, Mapping[str, Path]]) -> None:
    """Write points.csv, clips.csv, charts/METRIC.png, charts/overview.png, crops/NUMBER.png and page.html.

    Args:
        pictures: clip -> codec -> folder with original.png and RATE.png, see `save_frame`.
    """
    points = [
        {"codec": point["codec"], "mode": point["mode"], "rate": point["rate"]}
        | {f"{key}_{part}": value for key in _measured(point) for part, value in point[key].items()}
        for point in result["points"]
    ]
    pd.DataFrame(points).to_csv(folder / "points.csv", index=False)
    pd.DataFrame(result["clips"]).to_csv(folder / "clips.csv", index=False)
    charts = {}
    for metric in HIGHER_IS_BETTER:
        if any(point.get(metric) for point in result["points"]):
            charts[metric] = folder / "charts" / f"{metric}.png"
            charts[metric].parent.mkdir(exist_ok=True)
            figure = rate_chart(result, [metric])
            figure.savefig(charts[metric], dpi=120, bbox_inches="tight")
            plt.close(figure)
    figure = rate_chart(result, [metric for metric in charts if metric != "psnr_y"])
    figure.savefig(folder / "charts" / "overview.png", dpi=70)
    plt.close(figure)
    crops = {}
    for number, (name, folders) in enumerate(pictures.items()):
        crops[name] = folder / "crops" / f"{number}.png"
        crops[name].parent.mkdir(exist_ok=True)
        figure = crop_figure([row for row in result["clips"] if row["name"] == name], folders)
        figure.savefig(crops[name], dpi=120, bbox_inches="tight")
        plt.close(figure)
    (folder / "page.html").write_text(_page(result, charts, crops), encoding="utf-8")


def rate_chart(result: Mapping, metrics: Sequence[str]):
    """Plot each metric against bits per pixel in a panel of its own: means over clips with 95 % intervals."""
    columns = min(len(metrics), 3)
    lines = -(-len(metrics) // columns)
    size = (5.2 * columns, 4.2 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for spare in axes.flat[len(metrics) :]:
        spare.axis("off")
    labels = list(dict.fromkeys(point["codec"] for point in result["points"]))
    for panel, metric in zip(axes.flat, metrics, strict=False):
        for number, label in enumerate(labels):
            found = [point for point in result["points"] if point["codec"] == label and point[metric]]
            found.sort(key=lambda point: point["bpp"]["mean"])
            if not found:
                continue
            mean, low, high = (np.array([point[metric][key] for point in found]) for key in ("mean", "low", "high"))
            mode = found[0]["mode"]
            style = {CAUSAL: "-", LOW_DELAY: ":"}.get(mode, "--")
            panel.errorbar(
                [point["bpp"]["mean"] for point in found], mean, yerr=[mean - low, high - mean], label=label,
                ls=style, marker="s" if mode == CAUSAL else "o", ms=4, lw=1.2, elinewidth=0.6, color=f"C{number % 10}",
            )  # fmt: skip
        panel.set_xscale("log")
        panel.set_xlabel("bits per pixel")
        panel.set_ylabel(metric if HIGHER_IS_BETTER[metric] else f"{metric} (lower is better)")
        panel.grid(alpha=0.3, which="both")
    axes[0, 0].legend(fontsize=7)
    return figure


def crop_figure(rows: Sequence[Mapping], folders: Mapping[str, Path]):
    """Draw the original of one clip, and each codec at the rate nearest to the first rate of the first tokenizer."""
    target = next((row["bpp"] for row in rows if row["codec"] in folders), 0.0)
    shown = [("original", next(iter(folders.values())) / "original.png")]
    for label, folder in folders.items():
        own = [row for row in rows if row["codec"] == label]
        if own:
            row = min(own, key=lambda row: abs(np.log(row["bpp"] / target)))
            shown.append((f"{label}, {row['rate']}\n{row['bpp']:.4f} bits per pixel", folder / f"{row['rate']}.png"))
    columns = min(len(shown), 4)
    lines = -(-len(shown) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(3 * columns, 3.3 * lines), squeeze=False, layout="constrained")
    for panel in axes.flat:
        panel.axis("off")
    for panel, (title, file) in zip(axes.flat, shown, strict=False):
        panel.imshow(np.asarray(Image.open(file)), interpolation="nearest")
        panel.set_title(title, fontsize=8)
    return figure


def table(result: Mapping) -> list[list[str]]:
    """Return the rows of a table of all points; the first row has the names of the columns."""
    metrics = [metric for metric in HIGHER_IS_BETTER if any(point.get(metric) for point in result["points"])]
    lines = [["codec", "rate", "bits/pixel", *metrics, "encode frames/s", "decode frames/s"]]
    for point in result["points"]:
        cells = [point["codec"], point["rate"], f"{point['bpp']['mean']:.4f}"]
        cells += [_value(point[metric]) for metric in metrics]
        lines.append([*cells, *(f"{point[key]['mean']:.1f}" for key in ("encode_fps", "decode_fps"))])
    return lines


def comparison_table(result: Mapping) -> list[list[str]]:
    """Return the rows of a table of differences (tokenizer minus codec, 95 % interval) at equal bits per pixel."""
    comparisons = result["comparisons"]
    metrics = list(comparisons[0]["metrics"]) if comparisons else []
    lines = [["at the bits/pixel of", "bits/pixel", "minus", *metrics]]
    for pair in comparisons:
        cells = []
        for metric in metrics:
            found = pair["metrics"][metric]
            if found is None:
                cells.append("rate not reached")
                continue
            digits = _digits(metric)
            interval = f"{found['low']:+.{digits}f} to {found['high']:+.{digits}f}, n = {found['n']}"
            cells.append(f"{found['mean']:+.{digits}f} ({interval})")
        lines.append([pair["point"], f"{pair['bpp']['mean']:.4f}", pair["codec"], *cells])
    return lines


def bd_table(result: Mapping) -> list[list[str]]:
    """Return the rows of a table of BD-rates in percent; [] if there are none."""
    if not (found := result["bd_rate"]):
        return []
    metrics = list(next(iter(found["codecs"].values()), {}))
    lines = [[f"BD-rate to {found['anchor']}, %", *metrics]]
    for label, values in found["codecs"].items():
        lines.append([label, *("" if values[m] is None else f"{values[m]:+.1f}" for m in metrics)])
    return lines


def markdown(result: Mapping) -> str:
    """Return two tables in Markdown: all points as means with standard errors over clips, and `differences`."""
    metrics = [metric for metric in HIGHER_IS_BETTER if any(point.get(metric) for point in result["points"])]
    rows = [["codec", "rate", "bits/pixel", *metrics]]
    for point in result["points"]:
        rows.append([point["codec"], point["rate"], f"{point['bpp']['mean']:.4f}"])
        for metric in metrics:
            found, digits = point[metric], _digits(metric)
            stderr = "" if found["stderr"] is None else f" ± {found['stderr']:.{digits}f}"
            rows[-1].append(f"{found['mean']:.{digits}f}{stderr}")
    return f"{_markdown(rows)}\n\n{differences(result, [ANCHOR])}"


def differences(result: Mapping, others: Sequence[str]) -> str:
    """Return a table in Markdown: differences of tokenizers to other codecs at equal bits per pixel, with 95 %
    intervals over clips."""
    pairs = [pair for other in others for pair in result["comparisons"] if pair["codec"] == other]
    return _markdown(comparison_table({**result, "comparisons": pairs}))


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(map(_line, (rows[0], ["---"] * len(rows[0]), *rows[1:])))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def format_result(result: Mapping) -> str:
    """Format the result for a terminal: protocol, settings of every codec, tables, codecs and metrics left out."""
    lines = [*_above(result), ""]
    for rows in (table(result), comparison_table(result), bd_table(result)):
        if len(rows) > 1:
            widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
            lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
            lines.append("")
    return "\n".join([*lines, *_below(result)])


def _above(result: Mapping) -> list[str]:
    protocol = result["protocol"]
    lines = [
        f"{protocol['source']}: {protocol['crop']}, fps {protocol['fps']}",
        f"{result['n_used']} of {result['n_total']} clips used, {result['n_failed']} failed",
    ]
    for codec in result["codecs"]:
        facts = [f"{key} {value}" for key, value in codec.items() if key not in ("label", "codec", "mode", "rates")]
        lines.append(f"{codec['label']}: {', '.join(facts)}")
    return lines


def _below(result: Mapping) -> list[str]:
    lines = [f"left out: {each['name']}: {each['reason']}" for each in result["left_out"]]
    return lines + [f"failed: {failure['name']}: {failure['reason']}" for failure in result["failures"]]


def _measured(point: Mapping) -> list[str]:
    return [key for key, value in point.items() if isinstance(value, Mapping)]


def _digits(metric: str) -> int:
    return 2 if metric in ("psnr", "psnr_y", "vmaf") else 3


def _value(found: Mapping | None) -> str:
    return "" if found is None else f"{found['mean']:.3f}"


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 1em auto; padding: 0 1em }
.scroll { overflow-x: auto } img { max-width: 100% }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: .2em .6em; text-align: right; white-space: nowrap; border-bottom: 1px solid #bbb }
td:first-child, th:first-child { text-align: left }
"""


def _page(result: Mapping, charts: Mapping[str, Path], crops: Mapping[str, Path]) -> str:
    """Return the HTML of the page, which has no scripts and no external resources."""
    above, below = ("<br>\n".join(map(escape, lines)) for lines in (_above(result), _below(result)))
    provenance = f"{result['schema']}, git {result['provenance']['git']}, {result['provenance']['date']}"
    return "\n".join(
        [
            "<!doctype html><html lang='en'><meta charset='utf-8'>",
            "<meta name='viewport' content='width=device-width, initial-scale=1'><link rel='icon' href='data:,'>",
            f"<title>Codecs</title><style>{_STYLE}</style><h1>Codecs</h1><p>{above}</p><p>{below}</p>",
            "<h2>Charts</h2>",
            *(_picture(metric, file) for metric, file in charts.items()),
            "<h2>Differences at equal bits per pixel</h2>",
            _html_table(comparison_table(result)),
            *(["<h2>BD-rate</h2>", _html_table(bd_table(result))] if result["bd_rate"] else []),
            "<h2>All points</h2>",
            _html_table(table(result)),
            "<h2>Crops at equal bits per pixel</h2>",
            *(_picture(name, file) for name, file in crops.items()),
            f"<p><small>{escape(provenance)}</small></p></html>\n",
        ]
    )


def _html_table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in rows[0])
    body = ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:]]
    return "\n".join([f"<div class='scroll' tabindex='0'><table><tr>{head}</tr>", *body, "</table></div>"])


def _picture(name: str, file: Path) -> str:
    source = base64.b64encode(file.read_bytes()).decode()
    return f"<h3>{escape(name)}</h3><img alt='{escape(name)}' src='data:image/png;base64,{source}'>"


def summarize_tokens(rows: Sequence[Mapping]) -> dict:
    """Summarize rows of `codecs.token_sizes` of one tokenizer, for `vidtok.eval.compression.compare_entropy`."""
    raw = np.array([row["bytes"]["raw"] for row in rows])
    summary: dict = {"saved": {}, "encode_kbs": {}, "decode_kbs": {}}
    for model in rows[0]["bytes"]:
        sizes = np.array([row["bytes"][model] for row in rows])
        summary["saved"][model] = {"total": 1 - sizes.sum() / raw.sum(), "median": float(np.median(1 - sizes / raw))}
        for way in ("encode", "decode") if model in rows[0]["encode_s"] else ():
            seconds = sum(row[f"{way}_s"][model] for row in rows)
            summary[f"{way}_kbs"][model] = raw.sum() / 1000 / seconds
    return summary


def format_tokens(result: Mapping) -> str:
    """Format a result of `vidtok.eval.compression.compare_entropy` as a Markdown table."""
    lines = [_line(["tokenizer", "entropy model", "saved", "saved, median clip", "encode kB/s", "decode kB/s"])]
    lines.append(_line(["---"] * 6))
    for name, values in result["models"].items():
        for model, saved in values["saved"].items():
            speeds = [values[f"{way}_kbs"].get(model) for way in ("encode", "decode")]
            shown = ["" if speed is None else f"{speed:.0f}" for speed in speeds]
            lines.append(_line([name, model, f"{saved['total']:.1%}", f"{saved['median']:.1%}", *shown]))
    return "\n".join(lines)
