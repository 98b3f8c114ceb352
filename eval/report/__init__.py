"""Reports of results: tables, charts, pages and Markdown.

This file holds the table of a recognition result, with accuracies in percent.
"""

from collections.abc import Mapping, Sequence

import numpy as np


def format_table(result: Mapping) -> str:
    """Format a result for a terminal: protocol, accuracies with intervals, controls, failures."""
    above, table, below = table_parts(result)
    aligned = ("<24", ">8", ">14", ">16", ">8", ">11", ">10")
    rows = ["".join(map(format, row, aligned)).rstrip() for row in table]
    return "\n".join([*above, "", *rows, *below])


def table_parts(result: Mapping) -> tuple[list[str], list[list[str]], list[str]]:
    """Return (lines above the table; its rows, the first with the column names; lines below: ratios and failures)."""
    data, protocol = result["data"], result["protocol"]
    used = f"{result['n_used']} of {result['n_total']} clips used, {result['n_failed']} failed"
    above = [
        f"{data['source']}, split {data['splits']['test']}: {len(data['classes'])} classes, {used}",
        f"protocol {protocol['name']} at {protocol['size']} pixels, fps {protocol['fps'] or 'native'}"
        + (f"; trained on {data['n_train']} clips" if data["n_train"] else "")
        + (f", {len(data['train_failures'])} more could not be read" if data.get("train_failures") else ""),
    ]
    table = [["", "top-1", "seeds", "95 %", "top-5", "per class", "shuffled"]]
    for entry in result["results"]:
        top1, shuffled = entry["top1"], entry["shuffled_frames"]
        deviation = "" if top1["deviation"] is None else f"+- {100 * top1['deviation']:.1f}, {top1['seeds']}"
        row = [entry["name"], _percent(top1["mean"]), deviation, _interval(top1), _percent(entry["top5"])]
        table.append([*row, _percent(entry["mean_class"]), _percent(shuffled and shuffled["mean"])])
    if (control := result["controls"]["majority"]) is not None:
        top1 = control["top1"]
        table.append([f"always {control['class']!r}", _percent(top1["value"]), "", _interval(top1), "", "", ""])
    below = []
    for pair in result.get("comparisons", ()):
        ratio = pair["ratio"]
        interval = f"95 %: {ratio['low']:.3f} - {ratio['high']:.3f}"
        below.append(f"{pair['ours']} / {pair['theirs']} = {ratio['value']:.3f} ({interval})")
    for task in result["results"][0].get("tasks", ()):
        rows = [(entry["name"], entry["tasks"][task]) for entry in result["results"]]
        parts = [f"{name} {_percent(top1['mean'])} ({_interval(top1)})" for name, top1 in rows]
        for pair in result.get("comparisons", ()):
            ratio = pair["tasks"][task]["ratio"]
            interval = f"95 %: {ratio['low']:.3f} - {ratio['high']:.3f}"
            parts.append(f"{pair['ours']} / {pair['theirs']} = {ratio['value']:.3f} ({interval})")
        below.append(f"{task}: {', '.join(parts)}")
    if result["n_failed"]:
        shares = (
            f"{entry['name']} {_percent(np.mean([run['top1_of_total']['value'] for run in entry['runs']]))}"
            for entry in result["results"]
        )
        below.append(f"top-1 of all {result['n_total']} clips, the failed ones being wrong: {', '.join(shares)}")
    below += [f"failed: {failure['name']}: {failure['reason']}" for failure in result["failures"]]
    return above, table, below


def task_table(result: Mapping, few: Mapping) -> str:
    """Return top-1 accuracies in percent with 95 % intervals of heads for several motion tasks, a row per task.

    Args:
        result: comparison of inputs. few: the same with fewer training clips and some of the inputs, for the last row.
    """
    names = [entry["name"] for entry in result["results"]]
    head = ["task", "chance", *names, "tokens / pixels"]
    lines = [markdown_row(head), markdown_row(["---"] * len(head))]
    (pair,) = (each for each in result["comparisons"] if each["ours"] == "tokens")
    chances = {}
    for task in result["results"][0]["tasks"]:
        chances[task] = 1 / sum(name.startswith(f"{task}/") for name in result["data"]["classes"])
        top1 = {entry["name"]: entry["tasks"][task] for entry in result["results"]}
        lines.append(_task_row(task, chances[task], names, top1, pair["tasks"][task]))
    chance = sum(chances.values()) / len(chances)
    for each, name in ((result, "all"), (few, f"all, {few['data']['n_train']} clips")):
        (pair,) = (pair for pair in each["comparisons"] if pair["ours"] == "tokens")
        top1 = {entry["name"]: entry["top1"] for entry in each["results"]}
        lines.append(_task_row(name, chance, names, top1, pair))
    return "\n".join(lines)


def pretraining_table(scratch: Mapping, masked: Mapping, pretrained: Mapping) -> str:
    """Return top-1 accuracies in percent of heads for several motion tasks with and without pretraining.

    Args:
        scratch: comparison with the arm tokens. masked: the same with heads from a backbone that predicted masked ids.
            pretrained: one of tokens, with heads from a backbone that had teachers, and of pixels.
    """
    head = ["task", "tokens", "pixels", "tokens, masked ids", "tokens, pretrained"]
    lines = [markdown_row(head), markdown_row(["---"] * len(head))]
    entries = [{entry["name"]: entry for entry in result["results"]} for result in (scratch, masked, pretrained)]
    columns = entries[0]["tokens"], entries[2]["pixels"], entries[1]["tokens"], entries[2]["tokens"]
    for task in columns[0]["tasks"]:
        lines.append(markdown_row([task, *(share_cell(entry["tasks"][task]) for entry in columns)]))
    return "\n".join([*lines, markdown_row(["all", *(share_cell(entry["top1"]) for entry in columns)])])


def frozen_table(results: Sequence[Mapping]) -> str:
    """Return top-1 accuracies in percent of probes of several motion tasks, a row per task and a column per input.

    Args:
        results: probes on the same clips, each input with the pool mean. Accuracies by task are of that pool; below
            them is a row per pool with the accuracy on all clips.
    """
    entries = {(entry["input"], entry["runs"][0]["pool"]): entry for result in results for entry in result["results"]}
    inputs = [input for input, pool in entries if pool == "mean"]
    lines = [markdown_row(["task", *inputs]), markdown_row(["---"] * (1 + len(inputs)))]
    for task in entries[inputs[0], "mean"]["tasks"]:
        lines.append(markdown_row([task, *(share_cell(entries[input, "mean"]["tasks"][task]) for input in inputs)]))
    for pool in dict.fromkeys(pool for _, pool in entries):
        name = "all" if pool == "mean" else f"all, {pool}"
        cells = [share_cell(entries[input, pool]["top1"]) if (input, pool) in entries else "" for input in inputs]
        lines.append(markdown_row([name, *cells]))
    return "\n".join(lines)


def _task_row(task: str, chance: float, names: Sequence[str], top1: Mapping, pair: Mapping) -> str:
    cells = [share_cell(top1[name]) if name in top1 else "" for name in names]
    return markdown_row([task, _percent(chance), *cells, ratio_cell(pair["ratio"])])


def share_cell(top1: Mapping) -> str:
    """Return an accuracy in percent with its 95 % interval."""
    return f"{100 * top1['mean']:.1f} ({100 * top1['low']:.0f} to {100 * top1['high']:.0f})"


def ratio_cell(ratio: Mapping) -> str:
    """Return a ratio with its 95 % interval."""
    value, low, high = (float(ratio[key]) for key in ("value", "low", "high"))  # infinity is a string in JSON
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _interval(value: Mapping) -> str:
    return f"{_percent(value['low'])} - {_percent(value['high'])}"


def short_seconds(seconds: float) -> str:
    """Format seconds with two significant digits, without an exponent for large numbers."""
    return f"{seconds:.2g}" if seconds < 1 else f"{seconds:.1f}"


def markdown_row(cells: Sequence[str]) -> str:
    """Return a row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"
