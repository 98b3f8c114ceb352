"""Charts of a recognition result, and a self-contained page of a comparison: table, charts, playable clips.

The page is one file without scripts or external resources, so that it can be mailed and opened on a phone. Pages of
generated clips are in `vidtok.eval.generation.report`.
"""

import base64
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import PowerNorm
from torch import Tensor

from vidtok.datasets import write_video
from vidtok.eval.report import table_parts

INK, GREY = "#3465a4", "#888a85"

_STYLE = """
:root { color-scheme: light dark; --right: #1a7f37; --wrong: #b42318; --line: #d0d0d0 }
@media (prefers-color-scheme: dark) { :root { --right: #57c878; --wrong: #ff8a80; --line: #555 } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 1em auto; padding: 0 1em;
  overflow-wrap: anywhere }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; overflow-wrap: normal }
th, td { padding: .2em .6em; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
th:first-child { text-align: left; white-space: normal; min-width: 7em; position: sticky; left: 0; background: Canvas }
.row { display: flex; flex-wrap: wrap; gap: 1em; align-items: start }
figure { margin: 0; max-width: 100% }
figcaption { font-size: 13px }
img { max-width: 100% }
.chart { width: 530px } .clip { width: 330px } .sample { width: 160px }
.wide { max-width: 100% } .wide img { max-width: none }
.frequent { flex: 1 1 20em }
ol { columns: 20em; font-size: 13px; padding-left: 3em }
.sides { display: grid; grid-template-columns: 1fr 1fr; font-size: 12px; text-align: center }
video { width: 100%; image-rendering: pixelated; background: #000 }
ul { margin: 0; padding: 0; list-style: none }
.right { color: var(--right) } .wrong { color: var(--wrong) }
"""

# Captions of the charts of `draw_charts`. The numbers are in the table above them.
_CHARTS = {
    "accuracy": "Top-1 accuracy with its 95 % interval, and the same heads on shuffled frames",
    "ratio": "Top-1 accuracy divided by that of the reference, with its 95 % interval",
    "cost": "What a clip costs: bytes, and clips read per second",
    "classes": "Accuracy of each class, mean over the seeds",
}
MANY = 30  # classes, above which charts show the best and worst, and matrices have numbers in place of names
FREQUENT = 12  # confusions listed


def write_page(
    path: Path, result: Mapping, charts: Mapping[str, Path], clips: Sequence[tuple[dict, Tensor]], fps: float
):
    """Write the page.

    Args:
        path: html file to write.
        result: result of schema "vidtok.recognition/1".
        charts: name of each chart -> its file, see `draw_charts`.
        clips: (row of the result's `clips`, float or uint8 [3,T,H,2W] with the original beside the reconstruction).
            Each is shown with the prediction of each arm's first seed.
        fps: frame rate of the clips.
    """
    name, title = result["results"][0]["name"], escape(_title(result))
    above, table, below = table_parts(result)
    parts = [
        page_head(title),
        f"<p>{text_lines(above)}</p>{html_table(table)}<p>{text_lines(below)}</p>",
        "<h2>Charts</h2><div class='row'>",
        *(chart_figure(_CHARTS[key], file) for key, file in charts.items() if key in _CHARTS),
        "</div><h2>Confusions</h2>",
        *_confusions(result, [file for key, file in charts.items() if key not in _CHARTS]),
        "<h2>Clips</h2><p>Left the original, right what the tokens keep of it; below, what the first seed of",
        "each arm took the clip for, with ✓ where that is right and ✗ where it is wrong.</p>",
    ]
    for right, heading in ((True, f"What {name} got right"), (False, f"What {name} got wrong")):
        if chosen := [(row, video) for row, video in clips if _is_right(row, name) == right]:
            parts.append(f"<h3>{escape(heading)}</h3><div class='row'>")
            parts += [_clip(row, video, fps) for row, video in chosen]
            parts.append("</div>")
    parts.append(page_end(result["schema"], result["provenance"]))
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def page_head(title: str) -> str:
    """Return the beginning of a page. title: HTML."""
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'><link rel='icon' href='data:,'>\n"
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>"
    )


def page_end(schema: str, provenance: Mapping) -> str:
    """Return the end of a page."""
    about = f"{schema}, git {provenance['git']}, {provenance['date']}"
    return f"<p><small>{escape(about)}</small></p></html>"


def choose_clips(result: Mapping, count: int) -> list[int]:
    """Choose clips for the page: alternately one that the first seed of the first entry classified correctly and one
    that it didn't, from as many classes as possible."""
    name, rows = result["results"][0]["name"], result["clips"]
    sides: tuple[list[int], list[int]] = ([], [])
    seen: dict[tuple[bool, str], int] = {}
    order = []
    for place, row in enumerate(rows):
        right = _is_right(row, name)
        key = (right, row["label"])
        order.append((seen.get(key, 0), place, right))
        seen[key] = seen.get(key, 0) + 1
    for _, place, right in sorted(order):
        sides[0 if right else 1].append(place)
    half = max(count // 2, count - len(sides[1]))
    chosen = sides[0][:half]
    return chosen + sides[1][: count - len(chosen)]


def _is_right(row: Mapping, name: str) -> bool:
    """Return whether the first seed of that entry classified the clip correctly."""
    return row["predicted"][name][0] == row["label"]


def _title(result: Mapping) -> str:
    return f"{Path(result['data']['source']).stem}: {result['kind']}, {result['protocol']['name']}"


def text_lines(lines: Sequence[str]) -> str:
    """Return lines of text as HTML."""
    return "<br>\n".join(map(escape, lines))


def html_table(rows: Sequence[Sequence[str]], label: str = "Accuracies, percent") -> str:
    """Format rows as HTML; the first row and column are headers. A wide table scrolls by touch and by keyboard."""
    head = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in rows[0])
    body = [
        f"<tr><th scope='row'>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows[1:]
    ]
    box = f"<div class='scroll' tabindex='0' role='region' aria-label='{escape(label)}'>"
    return "\n".join([f"{box}<table><tr>{head}</tr>", *body, "</table></div>"])


def chart_figure(what: str, file: Path) -> str:
    """Return a chart with its caption as HTML."""
    text = escape(what)
    return f"<figure class='chart'><img alt='{text}' src='{_png(file)}'><figcaption>{text}</figcaption></figure>"


def _confusions(result: Mapping, files: Sequence[Path]) -> list[str]:
    """Format what is taken for what: a list for each entry, and its matrix at its own size, which scrolls."""
    classes, parts = result["data"]["classes"], []
    for entry, file in zip(result["results"], files, strict=True):
        text = escape(f"Confusion matrix of {entry['name']}, all seeds")
        height, width = (round(side / 1.25) for side in plt.imread(file).shape[:2])  # 120 dpi as 96
        image = f"<img alt='{text}' width='{width}' height='{height}' src='{_png(file)}'>"
        box = f"<div class='scroll wide' tabindex='0' role='region' aria-label='{text}'>{image}</div>"
        lines = "".join(f"<li>{escape(line)}</li>" for line in _most_frequent(confusion_counts(entry), classes))
        frequent = f"<div class='frequent'>Most frequent confusions, all seeds:<ul>{lines}</ul></div>" if lines else ""
        parts.append(f"<h3>{escape(entry['name'])}</h3><div class='row'>{box}{frequent}</div>")
    if len(classes) > MANY:
        names = "".join(f"<li>{escape(name)}</li>" for name in classes)
        parts.append(f"<details><summary>Classes by number</summary><ol start='0'>{names}</ol></details>")
    return parts


def _most_frequent(counts: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Return at most `FREQUENT` lines, the most clips first: which share of a class was taken for which other class."""
    wrong, totals = counts - np.diag(np.diagonal(counts)), counts.sum(1)
    pairs = [np.unravel_index(i, wrong.shape) for i in np.argsort(-wrong, axis=None, kind="stable")[:FREQUENT]]
    return [
        f"{100 * count / totals[true]:.0f} %: {classes[true]} → {classes[taken]} ({count} of {totals[true]})"
        for true, taken in pairs
        if (count := wrong[true, taken])
    ]


def _clip(row: Mapping, video: Tensor, fps: float) -> str:
    label = escape(row["label"])
    marks = {True: "class='right'>✓", False: "class='wrong'>✗"}
    took = "".join(f"<li {marks[_is_right(row, a)]} {escape(f'{a}: {s[0]}')}</li>" for a, s in row["predicted"].items())
    return (
        "<figure class='clip'><div class='sides'><span>original</span><span>reconstruction</span></div>"
        f"<video controls loop muted autoplay playsinline aria-label='{label}: original, reconstruction' "
        f"src='data:video/mp4;base64,{encode_movie(video, fps)}'></video>"
        f"<figcaption><b>{label}</b><ul>{took}</ul>{escape(row['id'])}</figcaption></figure>"
    )


def _png(file: Path) -> str:
    return f"data:image/png;base64,{_encoded(file)}"


def _encoded(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def encode_movie(video_3THW: Tensor, fps: float) -> str:
    """Encode a clip, uint8 or float in [-1, 1], as mp4 in base64."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "clip.mp4"
        write_video(file, video_3THW[None], fps)
        return _encoded(file)


def write_report(
    result: Mapping, folder: Path, shown: Sequence[int], original_n3THW: Tensor, decoded_n3THW: Tensor, fps: float
) -> None:
    """Write page.html and charts/ of a comparison.

    Args:
        shown: indices of the n clips to play, see `choose_clips`.
        original_n3THW, decoded_n3THW: these clips and their reconstructions, uint8, played at `fps` frames per second.
    """
    pairs = torch.cat([original_n3THW, decoded_n3THW], dim=-1)
    clips = [(result["clips"][i], pair) for i, pair in zip(shown, pairs, strict=True)]
    write_page(folder / "page.html", result, draw_charts(result, folder / "charts"), clips, fps)


# ---------------------------------------------------------------- charts


def draw_charts(result: Mapping, folder: Path) -> dict[str, Path]:
    """Draw accuracy.png, classes.png, a confusion-N.png of each entry, and, where the result has comparisons and costs,
    ratio.png and cost.png; return their files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    charts = {"accuracy": accuracy_chart(result)}
    if result.get("comparisons"):
        charts["ratio"] = ratio_chart(result)
    if result.get("costs"):
        charts["cost"] = cost_chart(result)
    charts["classes"] = class_chart(result)
    for number, entry in enumerate(result["results"], 1):
        charts[f"confusion-{number}"] = confusion_chart(entry, result["data"]["classes"])
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
        lines.append(f"dashed: always {_shorten(control['class'])}")
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
    axes.locator_params(axis="x", nbins=5)
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


def class_chart(result: Mapping):
    """Plot the accuracy of each class: bars of the first entry, which orders them, and markers of the others.

    Of more than `MANY` classes, it shows the half of `MANY` with the highest and that with the lowest accuracies.
    """
    entries, classes = result["results"], result["data"]["classes"]
    counts = [confusion_counts(entry) for entry in entries]
    shares = [np.diagonal(matrix) / matrix.sum(1).clip(1) for matrix in counts]
    order = np.argsort(-shares[0], kind="stable")
    order = order[counts[0].sum(1)[order] > 0]  # classes without test clips have no accuracy
    few = [*order[: MANY // 2], *order[-(MANY // 2) :]] if len(order) > MANY else [*order]
    figure, axes = plt.subplots(figsize=(5.5, 0.2 * len(few) + 1.4), layout="constrained")
    axes.barh(range(len(few)), shares[0][few], 0.7, color=INK, alpha=0.6, label=entries[0]["name"])
    for entry, share, marker in zip(entries[1:], shares[1:], "os^Dv<>P*X" * len(entries), strict=False):
        axes.plot(share[few], range(len(few)), marker, ms=4, mfc="none", label=entry["name"])
    names = classes if len(classes) <= MANY else [f"{i} {name}" for i, name in enumerate(classes)]
    _name_rows(axes, [_shorten(names[i]) for i in few])
    axes.tick_params("y", labelsize=8)
    if len(few) < len(order):
        axes.axhline(MANY // 2 - 0.5, ls="--", lw=1, color=GREY)
        axes.set_title(f"{MANY // 2} highest and {MANY // 2} lowest of {len(order)} classes", fontsize=9)
    axes.set_xlim(0, 1.03)
    axes.set_xlabel("accuracy")
    handles, arms = axes.get_legend_handles_labels()  # lines come before bars
    handles, arms = [handles[-1], *handles[:-1]], [arms[-1], *arms[:-1]]
    figure.legend(handles, arms, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def confusion_counts(entry: Mapping) -> np.ndarray:
    """Return the confusion matrix of an entry of `results` over all seeds, int [K,K], true class by row."""
    return np.sum([run["confusion"] for run in entry["runs"]], axis=0)


def confusion_chart(entry: Mapping, classes: Sequence[str]):
    """Plot the confusion matrix of an entry over all seeds; each row, a true class, sums to 1."""
    counts = confusion_counts(entry)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    named = len(classes) <= MANY
    side = 0.35 * len(classes) + 0.5 if named else min(0.05 * len(classes) + 1, 14)
    figure, axes = plt.subplots(figsize=(side, side))
    drawn = axes.imshow(shares, norm=PowerNorm(0.5, 0, 1), cmap="Blues", interpolation="nearest")
    if named:
        names = [_shorten(name) for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(range(len(classes)), names, fontsize=8)
        for (row, column), share in np.ndenumerate(shares):
            if counts[row, column]:
                color = "white" if share > 0.35 else "black"
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=color)
    else:
        figure.colorbar(drawn, ax=axes, fraction=0.03, pad=0.02)
    axes.set_xlabel("predicted" if named else "predicted, number of the class")
    axes.set_ylabel("true" if named else "true, number of the class")
    axes.set_title(
        f"{entry['name']}, % of each class" if named else f"{entry['name']}, share of each class", fontsize=9
    )
    return figure


def _shorten(name: str, length: int = 32) -> str:
    """Cut a name for a chart."""
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _error(value: float, interval: Mapping) -> list[list[float]]:
    """Return the distances of an interval's ends from a value, in the form of matplotlib's error bars."""
    return [[max(value - interval["low"], 0)], [max(interval["high"] - value, 0)]]


def _name_rows(axes, names: Sequence[str]) -> None:
    """Label the rows, from the top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
