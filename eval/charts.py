"""Charts of a recognition result, as PNG files."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

INK, GREY = "#3465a4", "#888a85"


def draw_charts(result: Mapping, folder: Path) -> dict[str, Path]:
    """accuracy.png, ratio.png (where there are comparisons), cost.png (where there are costs) and confusion.png."""
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
    """Top-1 of each entry with its 95 % interval; dots, the seeds; crosses, shuffled frames; the line, the majority."""
    entries = result["results"]
    figure, axes = plt.subplots(figsize=(1.2 * len(entries) + 2, 3.5))
    for x, entry in enumerate(entries):
        top1 = entry["top1"]
        axes.bar(x, top1["mean"], 0.6, color=INK, alpha=0.6)
        low, high = top1["mean"] - top1["low"], top1["high"] - top1["mean"]
        axes.errorbar(x, top1["mean"], [[max(low, 0)], [max(high, 0)]], color="black", capsize=4, lw=1)
        seeds = [run["top1"]["value"] for run in entry["runs"]]
        axes.plot(np.full(len(seeds), x + 0.2), seeds, "o", ms=3, color="black")
        if entry["shuffled_frames"]:
            axes.plot(x, entry["shuffled_frames"]["mean"], "x", color="#cc0000")
    if (control := result["controls"]["majority"]) is not None:
        axes.axhline(control["top1"]["value"], ls="--", lw=1, color=GREY, label=f"always {control['class']}")
        axes.legend(loc="lower right", fontsize=8)
    axes.set_xticks(range(len(entries)), [entry["name"].replace(" on ", "\non ") for entry in entries])
    axes.set_ylabel("top-1 accuracy")
    axes.set_ylim(0, 1)
    axes.set_title("bars: 95 %; dots: seeds; crosses: shuffled frames", fontsize=9)
    return figure


def overview_chart(results: Mapping[str, Mapping]):
    """Accuracies of several comparisons, a panel for each; name of the set -> result."""
    figure, axes = plt.subplots(1, len(results), figsize=(3.2 * len(results), 3.2), squeeze=False, sharey=True)
    for place, (name, result) in zip(axes[0], results.items(), strict=True):
        entries = result["results"]
        for x, entry in enumerate(entries):
            top1 = entry["top1"]
            error = [[max(top1["mean"] - top1["low"], 0)], [max(top1["high"] - top1["mean"], 0)]]
            place.errorbar(x, top1["mean"], error, fmt="o", color=INK, capsize=3)
        place.axhline(result["controls"]["majority"]["top1"]["value"], ls="--", lw=1, color=GREY)
        place.set_xticks(range(len(entries)), [entry["name"] for entry in entries], rotation=50, ha="right", fontsize=8)
        place.set_title(f"{name}, {result['n_used']} clips", fontsize=9)
        place.set_ylim(0, 1.03)
    axes[0, 0].set_ylabel("top-1 accuracy, 95 %")
    return figure


def ratio_chart(result: Mapping):
    """Accuracy of each arm over the reference's, with 95 % intervals."""
    pairs = result["comparisons"]
    figure, axes = plt.subplots(figsize=(5, 0.5 * len(pairs) + 1.2))
    for y, pair in enumerate(pairs):
        ratio = pair["ratio"]
        error = [[max(ratio["value"] - ratio["low"], 0)], [max(ratio["high"] - ratio["value"], 0)]]
        axes.errorbar(ratio["value"], y, xerr=error, fmt="o", color=INK, capsize=4)
    axes.axvline(1, ls="--", lw=1, color=GREY)
    axes.set_yticks(range(len(pairs)), [pair["ours"] for pair in pairs])
    axes.set_ylim(len(pairs) - 0.5, -0.5)
    axes.set_xlabel(f"top-1 over that of {pairs[0]['theirs']} (95 %, paired bootstrap)")
    return figure


def cost_chart(result: Mapping):
    """Bytes per clip, and clips per second from disk."""
    costs = result["costs"]
    bars = {name.replace("_", "\n"): size for name, size in costs["bytes_per_clip"].items() if size}
    speed = costs["clips_per_second"]
    figure, axes = plt.subplots(1, 2 if speed else 1, figsize=(9 if speed else 5, 3.2), squeeze=False)
    left = axes[0, 0]
    left.bar(bars.keys(), bars.values(), color=INK, alpha=0.6)
    left.set_yscale("log")
    left.set_ylabel("bytes per clip")
    left.tick_params(axis="x", labelsize=8)
    if speed:
        right = axes[0, 1]
        right.bar(["decoded video", "cached tokens"], [speed["video"], speed["tokens"]], color=INK, alpha=0.6)
        right.set_yscale("log")
        right.set_ylabel("clips per second")
    figure.tight_layout()
    return figure


def confusion_chart(result: Mapping):
    """Of the first entry, all seeds together; each row, a true class, sums to 1."""
    entry, classes = result["results"][0], result["data"]["classes"]
    counts = np.sum([run["confusion"] for run in entry["runs"]], axis=0)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    side = min(0.35 * len(classes) + 2.5, 12)
    figure, axes = plt.subplots(figsize=(side, side))
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    if len(classes) <= 20:
        axes.set_xticks(range(len(classes)), classes, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(len(classes)), classes, fontsize=8)
        for (row, column), share in np.ndenumerate(shares):
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"{entry['name']}, % of each class", fontsize=9)
    return figure
