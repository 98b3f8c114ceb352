"""Charts of a recognition result, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

INK, GREY = "#3465a4", "#888a85"


def draw_charts(result: Mapping, folder: Path) -> dict[str, Path]:
    """Draw accuracy.png, confusion.png, and where the result has comparisons and costs, ratio.png and cost.png."""
    folder.mkdir(parents=True, exist_ok=True)
    charts = {"accuracy": accuracy_chart(result)}
    if result.get("comparisons"):
        charts["ratio"] = ratio_chart(result)
    if result.get("costs"):
        charts["cost"] = cost_chart(result)
    charts["confusion"] = confusion_chart(result)
    for name, figure in charts.items():
        figure.savefig(folder / f"{name}.png", dpi=120, bbox_inches="tight")
        plt.close(figure)
    return {name: folder / f"{name}.png" for name in charts}


def accuracy_chart(result: Mapping):
    """Plot top-1 of each entry with its 95 % interval: dots are seeds, crosses shuffled frames, a line the majority."""
    entries = result["results"]
    figure, axes = plt.subplots(figsize=(5, 0.5 * len(entries) + 1.6))
    for y, entry in enumerate(entries):
        top1 = entry["top1"]
        axes.barh(y, top1["mean"], 0.6, color=INK, alpha=0.6)
        axes.errorbar(top1["mean"], y, xerr=_error(top1["mean"], top1), color="black", capsize=4, lw=1)
        seeds = [run["top1"]["value"] for run in entry["runs"]]
        axes.plot(seeds, np.full(len(seeds), y + 0.2), "o", ms=3, color="black")
        if entry["shuffled_frames"]:
            axes.plot(entry["shuffled_frames"]["mean"], y, "x", color="#cc0000")
    lines = ["whiskers: 95 %; dots: seeds; crosses: shuffled frames"]
    if (control := result["controls"]["majority"]) is not None:
        axes.axvline(control["top1"]["value"], ls="--", lw=1, color="black")
        lines.append(f"dashed: always {control['class']}")
    axes.set_title("\n".join(lines), fontsize=9)
    _name_rows(axes, [entry["name"] for entry in entries])
    axes.set_xlabel("top-1 accuracy")
    axes.set_xlim(0, 1.03)
    return figure


def overview_chart(results: Mapping[str, Mapping], arms: Sequence[str]):
    """Plot accuracies of several comparisons (name of the set -> result), a panel for each. arms: names of the rows."""
    size = (1.9 * len(results) + 1.2, 0.3 * len(arms) + 1.2)
    figure, axes = plt.subplots(1, len(results), figsize=size, squeeze=False, sharey=True, layout="constrained")
    for place, (name, result) in zip(axes[0], results.items(), strict=True):
        for entry in result["results"]:
            top1 = entry["top1"]
            error = _error(top1["mean"], top1)
            place.errorbar(top1["mean"], arms.index(entry["name"]), xerr=error, fmt="o", ms=4, color=INK, capsize=3)
        place.axvline(result["controls"]["majority"]["top1"]["value"], ls="--", lw=1, color=GREY)
        place.grid(axis="x", alpha=0.3)
        place.set_title(f"{name}\n{result['n_used']} clips", fontsize=9)
        place.set_xlim(0, 1.03)
    _name_rows(axes[0, 0], arms)
    figure.supxlabel("top-1 accuracy, 95 %; dashed: always the most frequent class", fontsize=9)
    return figure


def ratio_chart(result: Mapping):
    """Plot the accuracy of each arm relative to the reference's, with 95 % intervals."""
    pairs = result["comparisons"]
    figure, axes = plt.subplots(figsize=(5, 0.5 * len(pairs) + 1.2))
    for y, pair in enumerate(pairs):
        ratio = pair["ratio"]
        axes.errorbar(ratio["value"], y, xerr=_error(ratio["value"], ratio), fmt="o", color=INK, capsize=4)
    axes.axvline(1, ls="--", lw=1, color=GREY)
    _name_rows(axes, [pair["ours"] for pair in pairs])
    axes.set_xlabel(f"top-1 over that of {pairs[0]['theirs']} (95 %, paired bootstrap)")
    return figure


def cost_chart(result: Mapping):
    """Plot bytes per clip, and clips per second from disk."""
    costs = result["costs"]
    sizes = {name.replace("_", " "): size for name, size in costs["bytes_per_clip"].items() if size}
    panels = {"bytes per clip": sizes}
    if speed := costs["clips_per_second"]:
        panels["clips per second"] = {"decoded video": speed["video"], "cached tokens": speed["tokens"]}
    heights = [len(bars) + 1 for bars in panels.values()]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(5, 0.45 * sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for place, (title, bars) in zip(axes[:, 0], panels.items(), strict=True):
        drawn = place.barh(range(len(bars)), bars.values(), color=INK, alpha=0.6)
        place.bar_label(drawn, fmt="{:,.0f}", padding=3, fontsize=9)
        place.set_xscale("log")
        place.margins(x=0.25)
        _name_rows(place, list(bars))
        place.set_xlabel(title)
    return figure


def confusion_chart(result: Mapping):
    """Plot the confusion matrix of the first entry over all seeds; each row, a true class, sums to 1."""
    entry, classes = result["results"][0], result["data"]["classes"]
    counts = np.sum([run["confusion"] for run in entry["runs"]], axis=0)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    side = min(0.35 * len(classes) + 2.5, 12)
    figure, axes = plt.subplots(figsize=(side, side))
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    if len(classes) <= 20:
        axes.set_xticks(range(len(classes)), classes, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(range(len(classes)), classes, fontsize=8)
        for (row, column), share in np.ndenumerate(shares):
            color = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=color)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"{entry['name']}, % of each class", fontsize=9)
    return figure


def _error(value: float, interval: Mapping) -> list[list[float]]:
    """Return the distances of an interval's ends from a value, as matplotlib takes them."""
    return [[max(value - interval["low"], 0)], [max(interval["high"] - value, 0)]]


def _name_rows(axes, names: Sequence[str]) -> None:
    """Label the rows, from the top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
