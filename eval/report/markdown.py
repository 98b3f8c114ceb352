"""Comparisons as one Markdown table and one chart, or probes as a table:

    python -m vidtok.eval.report.markdown runs/*/result.json
    python -m vidtok.eval.report.markdown runs/*/result.json --chart chart.png --into README.md
    python -m vidtok.eval.report.markdown droid-probe.json rt1-probe.json --into README.md
    python -m vidtok.eval.report.markdown runs/generation*/result.json --into README.md

A row for each result file of `vidtok eval compare`: top-1 in percent, mean over seeds and their deviation (one seed: 95
% interval), of every arm; the majority class; tokens over pixels with its 95 % interval. Of two results of one set, the
second is told apart by its steps. Of `vidtok eval probe`, a row likewise, with 95 % intervals. Of `vidtok eval
generation-compare`, a row for each guidance. --into replaces what stands between the lines `<!-- recognition -->` and
`<!-- end of recognition -->` of a file, or those of `probes` or `guidance`.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from vidtok.eval.generation.comparison import SCHEMA, guidance_table
from vidtok.eval.recognition.comparison import TRANSFER
from vidtok.eval.report.charts import overview_chart

ORDER = ("tokens", "codes", "latents", "hidden", "pixels", TRANSFER, "recon")


def arms_of(results: Mapping[str, Mapping]) -> list[str]:
    """Names of all entries of some results, in order."""
    found = {entry["name"] for result in results.values() for entry in result["results"]}
    return [arm for arm in ORDER if arm in found]


def comparison_table(results: Mapping[str, Mapping]) -> str:
    """results: name of the set -> result."""
    arms = arms_of(results)
    head = ["set", "protocol", "train, test clips", "steps", *arms, "tokens, shuffled", "majority", "tokens / pixels"]
    lines = [_row(head), _row(["---"] * len(head))]
    for name, result in results.items():
        entries = {entry["name"]: entry for entry in result["results"]}
        ratios = {pair["ours"]: pair["ratio"] for pair in result["comparisons"]}
        cells = [f"{name}, {len(result['data']['classes'])} classes"]
        cells.append(f"`{result['protocol']['name']}`, {result['protocol']['size']} px")
        config = result["config"]
        views = config["data"].get("train_views")
        cells.append(f"{result['data']['n_train']}{f' x {views}' if views else ''}, {result['n_used']}")
        cells.append(f"{config['trainer']['max_steps']} x {config['data']['batch_size']}")
        cells += [_accuracy(entries[arm]["top1"]) if arm in entries else "" for arm in arms]
        shuffled = entries["tokens"]["shuffled_frames"] if "tokens" in entries else None
        cells.append(f"{100 * shuffled['mean']:.1f}" if shuffled else "")
        cells.append(f"{100 * result['controls']['majority']['top1']['value']:.1f}")
        lines.append(_row([*cells, _ratio(ratios["tokens"]) if "tokens" in ratios else ""]))
    return "\n".join(lines)


def cost_table(results: Mapping[str, Mapping]) -> str:
    """Of the same: bytes per clip, clips loaded and trained per second."""
    head = ["set", "bytes per clip: file", "frames", "tokens", "clips/s: video", "cached tokens", "ratio", "trained/s"]
    lines = [_row(head), _row(["---"] * len(head))]
    for name, result in results.items():
        costs = result["costs"]
        size, speed, trained = costs["bytes_per_clip"], costs["clips_per_second"], costs["trained_per_second"]
        cells = [name, *(f"{size[key]:,.0f}" if size[key] else "" for key in ("file", "frames_uint8", "tokens"))]
        cells += [f"{speed[key]:,.0f}" if speed else "" for key in ("video", "tokens", "ratio")]
        cells.append(", ".join(f"{arm} {rate:.0f}" for arm, rate in trained.items()))
        lines.append(_row(cells))
    return "\n".join(lines)


def probe_table(results: Mapping[str, Mapping]) -> str:
    """Of results of probes: top-1 in percent of every input, with its 95 % interval."""
    inputs = list(dict.fromkeys(entry["input"] for result in results.values() for entry in result["results"]))
    head = ["set", "protocol", "train, test clips", *inputs, "majority"]
    lines = [_row(head), _row(["---"] * len(head))]
    for name, result in results.items():
        entries = {entry["input"]: entry["top1"] for entry in result["results"]}
        cells = [f"{name}, {len(result['data']['classes'])} classes"]
        cells.append(f"`{result['protocol']['name']}`, {result['protocol']['size']} px")
        cells.append(f"{result['data']['n_train']}, {result['n_used']}")
        cells += [_accuracy(entries[input]) if input in entries else "" for input in inputs]
        lines.append(_row([*cells, f"{100 * result['controls']['majority']['top1']['value']:.1f}"]))
        shuffled = {entry["input"]: entry["shuffled_frames"] for entry in result["results"]}
        if any(shuffled.values()):
            cells = [f"{name}, frames shuffled", "", ""]
            cells += [f"{100 * shuffled[input]['mean']:.1f}" if shuffled.get(input) else "" for input in inputs]
            lines.append(_row([*cells, ""]))
    return "\n".join(lines)


def replace_between(text: str, new: str, name: str = "recognition") -> str:
    """Raises ValueError for a text without the two lines."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    if begin not in text or end not in text:
        raise ValueError(f"want the lines {begin.strip()} and {end.strip()}")
    before, rest = text.split(begin, 1)
    return f"{before}{begin}{new}\n{end}{rest.split(end, 1)[1]}"


def _accuracy(top1: Mapping) -> str:
    if top1["deviation"] is None:
        return f"{100 * top1['mean']:.1f} ({100 * top1['low']:.0f} to {100 * top1['high']:.0f})"
    return f"{100 * top1['mean']:.1f} ± {100 * top1['deviation']:.1f}"


def _ratio(ratio: Mapping) -> str:
    value, low, high = (float(ratio[key]) for key in ("value", "low", "high"))  # one without bound is a string in JSON
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _named(result: dict) -> tuple[str, dict]:
    """(name of the set, with the column of labels where it is not `label`; the result)."""
    data = result["data"]
    name = Path(data["source"]).stem
    return name if data["label_column"] in (None, "label") else f"{name}, {data['label_column']}", result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "results", nargs="+", metavar="RESULT", help="result.json of comparisons, of probes, or of generators"
    )
    parser.add_argument("--chart", metavar="PNG", help="accuracies of all, drawn")
    parser.add_argument("--into", metavar="FILE", help="put the tables there instead of printing them")
    args = parser.parse_args()
    read = [json.loads(Path(path).read_text()) for path in args.results]
    if strange := [path for path, result in zip(args.results, read, strict=True) if "schema" not in result]:
        parser.error(f"{strange[0]} is no result file")
    generation = [result["schema"] == SCHEMA for result in read]
    if args.chart and (any(generation) or any(result.get("kind") == "probe" for result in read)):
        parser.error("--chart is of comparisons of recognition")
    if all(generation):
        put(guidance_table(read), args.into, "guidance")
        return
    if any(generation):
        parser.error("comparisons of recognition and of generators make two tables: give one kind")
    found, results = [_named(result) for result in read], {}
    kinds = {result["kind"] for _, result in found}
    if kinds == {"probe"}:
        put(probe_table(dict(found)), args.into, "probes")
        return
    if "probe" in kinds:
        parser.error("comparisons and probes make two tables: give one kind")
    for name, result in found:
        if name in results:
            name = f"{name}, {result['config']['trainer']['max_steps']} steps"
        results[name] = result
    for result in results.values():
        result["results"].sort(key=lambda entry: ORDER.index(entry["name"]))
    text = f"{comparison_table(results)}\n\n{cost_table(results)}"
    if args.chart:
        overview_chart(results, arms_of(results)).savefig(args.chart, dpi=120, bbox_inches="tight")
    put(text, args.into, "recognition")


def put(text: str, into: str | None, name: str) -> None:
    """Prints the text, or puts it between the lines of that name in the file `into`."""
    if into is None:
        print(text)
    else:
        file = Path(into)
        file.write_text(replace_between(file.read_text(), text, name))


if __name__ == "__main__":
    main()
