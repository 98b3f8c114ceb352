"""Comparisons as one Markdown table: python -m vidtok.eval.markdown runs/*/result.json

A row for each result file of `vidtok eval compare`: top-1 in percent, mean over seeds and their deviation (one seed: 95
% interval), of every arm; the majority class; tokens over pixels with its 95 % interval.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def comparison_table(results: Mapping[str, Mapping]) -> str:
    """results: name of the set -> result."""
    arms = list(dict.fromkeys(entry["name"] for result in results.values() for entry in result["results"]))
    head = ["set", "classes", "test clips", "protocol", *arms, "shuffled", "majority", "tokens / pixels"]
    lines = [_row(head), _row(["---"] * len(head))]
    for name, result in results.items():
        entries = {entry["name"]: entry for entry in result["results"]}
        ratios = {pair["ours"]: pair["ratio"] for pair in result["comparisons"]}
        control = result["controls"]["majority"]["top1"]["value"]
        cells = [name, str(len(result["data"]["classes"])), str(result["n_used"])]
        cells.append(f"`{result['protocol']['name']}`, {result['protocol']['size']} px")
        cells += [_accuracy(entries[arm]["top1"]) if arm in entries else "" for arm in arms]
        shuffled = entries["tokens"]["shuffled_frames"] if "tokens" in entries else None
        cells += [f"{100 * shuffled['mean']:.1f}" if shuffled else "", f"{100 * control:.1f}"]
        lines.append(_row([*cells, _ratio(ratios["tokens"]) if "tokens" in ratios else ""]))
    return "\n".join(lines)


def _accuracy(top1: Mapping) -> str:
    if top1["deviation"] is None:
        return f"{100 * top1['mean']:.1f} ({100 * top1['low']:.0f} to {100 * top1['high']:.0f})"
    return f"{100 * top1['mean']:.1f} ± {100 * top1['deviation']:.1f}"


def _ratio(ratio: Mapping) -> str:
    return f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _named(path: str) -> tuple[str, dict]:
    """(name of the set, with the column of labels where it is not `label`; the result)."""
    result = json.loads(Path(path).read_text())
    data = result["data"]
    name = Path(data["source"]).stem
    return name if data["label_column"] in (None, "label") else f"{name}, {data['label_column']}", result


if __name__ == "__main__":
    print(comparison_table(dict(map(_named, sys.argv[1:]))))
