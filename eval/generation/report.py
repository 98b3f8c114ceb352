"""Report of a comparison of generators: tables, chart, verdict, and pages of generated clips.

A row is the measurement of one trained model at one number of sampling steps, see `vidtok.eval.generation.comparison`.
Models of one name that differ in the seed of their training are averaged.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from pathlib import Path
from typing import Any

from torch import Tensor

from vidtok.eval.metrics.intervals import wilson_interval
from vidtok.eval.report import markdown_row, short_seconds
from vidtok.eval.report.page import chart_figure, encode_movie, html_table, page_end, page_head, text_lines

FOLDS = 4  # for equal generators, the ranges over 4 folds are disjoint in 2 of 70 cases; those over 3 folds in 2 of 20
COLORS = {"masked": "#3465a4", "autoregressive": "#4e9a06", "diffusion": "#cc0000"}
VARIANT_COLORS = ("C1", "C4", "C5", "C6", "C8", "C9")


def name_of(row: Mapping) -> str:
    """Return the name of a row's model: its kind, or that of a variant."""
    return row.get("name", row["generator"]["kind"])


def over_seeds(rows: Sequence[Mapping]) -> list[Mapping]:
    """Average the rows of each model and number of steps over the seeds of training; a single row stays as it is.

    Returns:
        Rows whose metrics are {mean, deviation (sample standard deviation over seeds), seeds: [mean of each], folds:
        [those of all seeds]}, or for agreement {value, deviation, seeds, n, low, high (Wilson, of all clips together)}.
        They have the metrics of all seeds; earlier versions measured fewer. seconds_per_clip is the mean; runs: [name
        of each training run].
    """
    groups: dict[tuple, list[Mapping]] = {}
    for place, row in enumerate(rows):
        key = (name_of(row), row["steps"]) if "run" in row else (place,)  # earlier versions trained each kind once
        groups.setdefault(key, []).append(row)
    return [group[0] if len(group) == 1 else _average(group) for group in groups.values()]


def _average(rows: Sequence[Mapping]) -> dict:
    names = [name for name in rows[0]["metrics"] if all(name in row["metrics"] for row in rows)]
    metrics = {name: _average_metric([row["metrics"][name] for row in rows]) for name in names}
    seconds = statistics.fmean(row["seconds_per_clip"] for row in rows)
    own = {"metrics": metrics, "seconds_per_clip": seconds, "runs": [row["run"] for row in rows]}
    return {**{key: value for key, value in rows[0].items() if key not in ("run", "seed")}, **own}


def _average_metric(metrics: Sequence[Mapping]) -> dict:
    kind = "mean" if "mean" in metrics[0] else "value"
    values = [metric[kind] for metric in metrics]
    found: dict[str, Any] = {kind: statistics.fmean(values), "deviation": statistics.stdev(values), "seeds": values}
    if "folds" in metrics[0]:
        found["folds"] = [value for metric in metrics for value in metric["folds"]]
    if "low" in metrics[0]:
        found["n"] = sum(metric["n"] for metric in metrics)
        right = sum(metric[kind] * metric["n"] for metric in metrics)
        found["low"], found["high"] = wilson_interval(round(right), found["n"])
    return found


def best_rows(rows: Sequence[Mapping]) -> dict[str, Mapping]:
    """Return the row of each model with the lowest FVD, or with the highest agreement if FVD wasn't measured; averages
    where there are several seeds."""

    def rank(row: Mapping) -> float:
        metrics = row["metrics"]
        return metrics["fvd"]["mean"] if "fvd" in metrics else -metrics["agreement"]["value"]

    best: dict[str, Mapping] = {}
    for row in over_seeds(rows):
        name = name_of(row)
        if name not in best or rank(row) < rank(best[name]):
            best[name] = row
    return best


def fvd_range(row: Mapping) -> tuple[float, float]:
    """Return the lowest and the highest FVD of the folds, of all seeds."""
    folds = row["metrics"]["fvd"]["folds"]
    return min(folds), max(folds)


def verdict(rows: Sequence[Mapping]) -> str:
    """Return a sentence on whether masked beats diffusion.

    One is better than the other if their FVD ranges over at least `FOLDS` folds, those of all seeds, don't overlap.
    Each kind is represented by its best number of steps, which favors the kind that was measured at more numbers.
    """
    best = best_rows(rows)
    if not {"masked", "diffusion"} <= best.keys() or "fvd" not in best["masked"]["metrics"]:
        return "masked and diffusion were not both measured by FVD"
    ours, theirs = fvd_range(best["masked"]), fvd_range(best["diffusion"])
    seeds = len(best["masked"]["metrics"]["fvd"].get("seeds", (0,)))
    over = "over folds" if seeds == 1 else f"over folds of {seeds} seeds"
    words = f"masked {ours[0]:.1f} to {ours[1]:.1f}, diffusion {theirs[0]:.1f} to {theirs[1]:.1f} (FVD, {over})"
    if (folds := len(best["masked"]["metrics"]["fvd"]["folds"])) < FOLDS:
        return f"{folds} folds don't tell which is better, {FOLDS} might: {words}"
    if ours[1] < theirs[0]:
        return f"masked beats diffusion: {words}"
    return f"{'diffusion beats masked' if theirs[1] < ours[0] else 'no difference beyond the folds'}: {words}"


# Metrics of the table, those that are present: metric -> column.
COLUMNS = {
    "fvd": "FVD",
    "fvd_to_reconstructions": "FVD to reconstructions",
    "fvd_precision": "precision (I3D)",
    "fvd_recall": "recall (I3D)",
    "frd": "FRD",
    "frd_to_reconstructions": "FRD to reconstructions",
    "frd_precision": "precision (recognizer)",
    "frd_recall": "recall (recognizer)",
    "agreement": "agreement, %",
}


# Rows of the table below the models, those that were measured: limit -> title.
LIMITS = {
    "floor": "other real clips",
    "reconstruction": "reconstructions of those",
    "repeated": "last given frame repeated",
}


def markdown_table(result: Mapping) -> str:
    """Return the table of `table_rows` in Markdown."""
    head, *rows = table_rows(result)
    return "\n".join([markdown_row(head), markdown_row(["---"] * len(head)), *map(markdown_row, rows)])


def table_rows(result: Mapping) -> list[list[str]]:
    """Return a row for each model and number of steps, averaged over seeds, and rows for the limits; the first row has
    the names of the columns.

    There are columns for FVD and agreement, and for training FLOPs and further metrics of `COLUMNS` that a row has.
    """
    rows, training = over_seeds(result["rows"]), result["training"]
    present = {metric for row in rows for metric in row["metrics"]} | {"fvd", "agreement"}
    metrics = [metric for metric in COLUMNS if metric in present]
    counted = any("flops" in facts for facts in training.values())
    several = any("runs" in row for row in rows)
    head = ["generator", *(["seeds"] if several else []), "parameters", "trained, s"]
    head += [*(["training FLOPs"] if counted else []), "samples seen", "steps", "s per clip"]
    lines = [[*head, *(COLUMNS[metric] for metric in metrics)]]
    for row in rows:
        runs = row.get("runs") or [row.get("run", name_of(row))]

        def mean(fact: str, runs=runs) -> float:
            return statistics.fmean(training[run].get(fact, 0) for run in runs)

        cells = [name_of(row), *([f"{len(runs)}"] if several else []), f"{row['generator']['parameters']:,}"]
        cells += [f"{mean('seconds'):.0f}", *([f"{mean('flops'):.3g}"] if counted else [])]
        cells += [f"{mean('samples'):,.0f}", f"{row['steps']}", short_seconds(row["seconds_per_clip"])]
        lines.append([*cells, *(_cell(row["metrics"].get(metric), metric) for metric in metrics)])
    for name, limits in {"": result["limits"], **result.get("other_limits", {})}.items():
        for limit, title in LIMITS.items():
            if name and limit == "floor":
                continue
            found = {metric: limits.get(f"{metric}_{limit}") for metric in metrics}
            if limit == "floor":
                found["agreement"] = limits.get("real_agreement")
            if any(found.values()):
                cells = [f"{title}, tokenizer of {name}" if name else title, *[""] * (len(head) - 1)]
                lines.append([*cells, *(_cell(found[metric], metric) for metric in metrics)])
    return lines


def guidance_table(results: Sequence[Mapping]) -> str:
    """Return a table of results with different guidance, a row per result and a column per kind: FVD and agreement at
    the number of steps with the best FVD."""
    kinds = list(dict.fromkeys(name_of(row) for result in results for row in result["rows"]))
    lines = [markdown_row(["guidance", *kinds]), markdown_row(["---"] * (1 + len(kinds)))]
    for result in results:
        best, settings = best_rows(result["rows"]), result["config"]["settings"]
        guidances = dict.fromkeys(settings[row["generator"]["kind"]]["guidance"] or 1 for row in best.values())
        cells = [", ".join(f"{guidance:g}" for guidance in guidances)]
        for row in (best.get(kind) for kind in kinds):
            parts = [_cell(row["metrics"].get(name), name) for name in ("fvd", "agreement")] if row else []
            cells.append(", ".join(filter(None, parts)))
        lines.append(markdown_row(cells))
    return "\n".join(lines)


def caption(result: Mapping) -> str:
    """Describe in one line how the numbers of the table were measured."""
    row = result["rows"][0]
    protocol = row["protocol"]
    words = [f"{protocol['convention']} convention", f"real clips of {protocol['source']}, split {protocol['split']}"]
    if row["n_real"]:
        words.append(f"{row['n_real']} real clips")
    seeds = len({row.get("seed") for row in result["rows"]})
    words.append(f"{row['folds']} x {row['n_fake']} generated ones of each {'row' if seeds == 1 else 'seed'}")
    return ", ".join([*words, *(f"{name} by {text}" for name, text in row["detector"].items())]) + "."


def draw_chart(result: Mapping, path: Path) -> None:
    """Plot FVD (or agreement) against sampling steps and against seconds per clip; bars span the folds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    scored = "fvd" in result["rows"][0]["metrics"]
    assert scored or "agreement" in result["rows"][0]["metrics"], "there is nothing to draw"
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    averages, spare = over_seeds(result["rows"]), cycle(VARIANT_COLORS)
    for kind in dict.fromkeys(map(name_of, averages)):
        rows = sorted((row for row in averages if name_of(row) == kind), key=lambda row: row["seconds_per_clip"])
        color = COLORS.get(kind) or next(spare)
        for place, x in zip(axes, ("steps", "seconds_per_clip"), strict=True):
            metric = [row["metrics"]["fvd" if scored else "agreement"] for row in rows]
            y = [value["mean"] if scored else 100 * value["value"] for value in metric]
            if scored:
                ends = [fvd_range(row) for row in rows]
            else:
                ends = [(100 * value["low"], 100 * value["high"]) for value in metric]
            error = [[a - low for a, (low, _) in zip(y, ends, strict=True)]]
            error.append([high - a for a, (_, high) in zip(y, ends, strict=True)])
            place.errorbar([row[x] for row in rows], y, error, fmt="o-", color=color, label=kind, capsize=3)
    for name, style in (("fvd_floor", "--"), ("fvd_reconstruction", ":"), ("fvd_repeated", "-.")):
        if scored and name in result["limits"]:
            for place in axes:
                label = name.removeprefix("fvd_")
                place.axhline(result["limits"][name]["value"], ls=style, lw=1, color="#888a85", label=label)
    axes[0].set_xlabel("sampling steps")
    axes[1].set_xlabel("seconds per clip")
    axes[0].set_ylabel("FVD, bars span the folds" if scored else "agreement, % (95 %)")
    for place in axes:
        place.set_xscale("log")
        if scored:
            place.set_yscale("log")
        for axis in (place.xaxis, place.yaxis)[: 1 + scored]:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _cell(metric: Mapping | None, name: str) -> str:
    """Format a metric of a row, {mean, deviation}, or of a limit, {value}; or a share with its interval in percent."""
    if metric is None:
        return ""
    if name == "agreement" and "deviation" in metric:
        return f"{100 * metric['value']:.1f} ± {100 * metric['deviation']:.1f}"
    if name == "agreement":
        return f"{100 * metric['value']:.1f} ({100 * metric['low']:.0f} to {100 * metric['high']:.0f})"
    form = ".2f" if name.endswith(("precision", "recall")) else ".3g" if name.startswith("frd") else ".1f"
    if "value" in metric:
        return f"{metric['value']:{form}}"
    deviation = "" if metric["deviation"] is None else f" ± {metric['deviation']:{form}}"
    return f"{metric['mean']:{form}}{deviation}"


@dataclass(frozen=True)
class SampleClip:
    """A generated clip on a page.

    Attributes:
        name: name of the clip.
        video: float [3, T, H, W] in [-1, 1], or uint8.
        requested: class that it was generated for; None, no class.
        predicted: class that a recognizer takes it for; None, no recognizer.
    """

    name: str
    video: Tensor
    requested: str | None = None
    predicted: str | None = None


def write_samples_page(
    path: Path,
    title: str,
    lines: Sequence[str],
    sections: Mapping[str, Sequence[SampleClip]],
    fps: float,
    schema: str,
    provenance: Mapping,
    table: Sequence[Sequence[str]] = (),
    charts: Mapping[str, Path] | None = None,
) -> None:
    """Write a page of generated clips, each with the requested class and the verdict of a recognizer.

    Args:
        path: html file to write.
        title: heading. lines: text below it.
        sections: heading -> the clips below it.
        fps: frame rate of the clips.
        schema, provenance: what the results are, for the last line.
        table: rows of a table, the first one its column names; empty, no table.
        charts: caption of each chart -> its file.
    """
    parts = [page_head(escape(title)), f"<p>{text_lines(lines)}</p>"]
    if table:
        parts.append(html_table(table, "Results of each generator"))
    if charts:
        parts += [
            "<h2>Charts</h2><div class='row'>",
            *(chart_figure(what, file) for what, file in charts.items()),
            "</div>",
        ]
    for heading, clips in sections.items():
        parts.append(f"<h2>{escape(heading)}</h2>")
        if marked := [clip for clip in clips if clip.requested and clip.predicted]:
            right = sum(clip.requested == clip.predicted for clip in marked)
            parts.append(f"<p>Below each clip the requested class, and what the recognizer took it for: {right} of ")
            parts.append(f"{len(marked)} as requested.</p>")
        parts += ["<div class='row'>", *(_sample(clip, fps) for clip in clips), "</div>"]
    parts.append(page_end(schema, provenance))
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _sample(clip: SampleClip, fps: float) -> str:
    requested, predicted = escape(clip.requested or ""), escape(clip.predicted or "")
    verdict = ""
    if clip.requested and clip.predicted:
        right = clip.requested == clip.predicted
        verdict = f"<br><span class='{'right' if right else 'wrong'}'>{'✓' if right else '✗'} {predicted}</span>"
    elif clip.predicted:
        verdict = f"<br>{predicted}"
    return (
        f"<figure class='sample'><video controls loop muted autoplay playsinline aria-label='{escape(clip.name)}' "
        f"src='data:video/mp4;base64,{encode_movie(clip.video, fps)}'></video>"
        f"<figcaption><b>{requested}</b>{verdict}<br><small>{escape(clip.name)}</small></figcaption></figure>"
    )
