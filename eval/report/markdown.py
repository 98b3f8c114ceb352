"""Write results as Markdown tables, and comparisons as a chart.

    python -m vidtok.eval.report.markdown runs/*/result.json
    python -m vidtok.eval.report.markdown runs/*/result.json --chart chart.png --into page.md
    python -m vidtok.eval.report.markdown droid-probe.json rt1-probe.json --into page.md
    python -m vidtok.eval.report.markdown runs/generation*/result.json --into page.md
    python -m vidtok.eval.report.markdown --update README.md docs/pages/*.md  # all published tables, from eval/results

Comparisons (`vidtok eval compare`): a row per result file with the top-1 of every arm in percent, mean and standard
deviation over seeds (one seed: 95 % interval), the majority class, tokens over pixels with its 95 % interval, and the
tokenizer's weights. A second result of the same set is named with its number of steps. Probes (`vidtok eval probe`): a
row per result file and pool with 95 % intervals, and a table of accuracies at every C. Generators (`vidtok eval
generation-compare`): a row per guidance; results of equal settings, run on several machines, make one table.

Tables stand between the lines `<!-- NAME -->` and `<!-- end of NAME -->` of a page. --into fills `recognition`,
`probes`, `guidance` or `generation` of a page; --update fills every name of `published_tables` that the pages have.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vidtok.eval.compression import report as compression
from vidtok.eval.generation.comparison import SCHEMA, merge_results
from vidtok.eval.generation.report import guidance_table, markdown_table, verdict
from vidtok.eval.recognition.comparison import TRANSFER
from vidtok.eval.report import frozen_table, markdown_row, pretraining_table, ratio_cell, share_cell, task_table
from vidtok.eval.report.measurements import command_blocks
from vidtok.eval.report.page import overview_chart
from vidtok.eval.report.speed import machine_line, reading_table, sampling_table, speed_ratio_table, speed_table
from vidtok.hub import PRETRAINED

ORDER = ("tokens", "codes", "latents", "hidden", "pixels", TRANSFER, "recon", "frame")

# Result files of `vidtok eval compare` behind the published table, each with the name of its row.
COMPARISONS = {
    "recognition-digits": "digits",
    "recognition-rt1": "rt1",
    "recognition-rt1-views": "rt1, 800 steps",
}
AGREEMENTS = ("agreement", "agreement-256", "agreement-frames", "agreement-frames-256")
PROBES = {"probes-rt1": "rt1", "probes-pick-put": "droid, pick or put"}
RESULTS = Path(__file__).parent.parent / "results"
X265 = ("x265 random-access", "x265 low-delay")
GUIDANCES = ("generation-guidance-1", "generation-guidance-1.5", "generation", "generation-guidance-3")


def arms_of(results: Mapping[str, Mapping]) -> list[str]:
    """Return the names of all entries of some results, in the order of the table."""
    found = {entry["name"] for result in results.values() for entry in result["results"]}
    return [arm for arm in ORDER if arm in found]


def comparison_table(results: Mapping[str, Mapping]) -> str:
    """Return accuracies of comparisons with their deviations over seeds: results by name of the set."""
    arms = arms_of(results)
    head = ["set", "protocol", "train, test clips", "steps", *arms, "tokens, shuffled", "majority", "tokens / pixels"]
    lines = [markdown_row([*head, "weights"]), markdown_row(["---"] * (len(head) + 1))]
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
        cells.append(ratio_cell(ratios["tokens"]) if "tokens" in ratios else "")
        lines.append(markdown_row([*cells, _weights(result)]))
    return "\n".join(lines)


def cost_table(results: Mapping[str, Mapping]) -> str:
    """Return bytes per clip, and clips loaded and trained per second, for the results of `comparison_table`."""
    head = ["set", "bytes per clip: file", "frames", "tokens", "clips/s: video", "cached tokens", "ratio", "trained/s"]
    lines = [markdown_row(head), markdown_row(["---"] * len(head))]
    for name, result in results.items():
        costs = result["costs"]
        size, speed, trained = costs["bytes_per_clip"], costs["clips_per_second"], costs["trained_per_second"]
        cells = [name, *(f"{size[key]:,.0f}" if size[key] else "" for key in ("file", "frames_uint8", "tokens"))]
        cells += [f"{speed[key]:,.0f}" if speed else "" for key in ("video", "tokens", "ratio")]
        cells.append(", ".join(f"{arm} {rate:.0f}" for arm, rate in trained.items()))
        lines.append(markdown_row(cells))
    return "\n".join(lines)


def probe_table(results: Mapping[str, Mapping]) -> str:
    """Return top-1 accuracies of probes in percent with 95 % intervals: a row for each set and pool, a column for each
    input, and below each row the accuracies on shuffled frames."""
    inputs = list(dict.fromkeys(entry["input"] for result in results.values() for entry in result["results"]))
    head = ["set", "pool", "protocol", "train, test clips", *inputs, "majority", "weights"]
    lines = [markdown_row(head), markdown_row(["---"] * len(head))]
    for name, result in results.items():
        clips = result["data"].get("folds") or f"{result['data']['n_train']}, {result['n_used']}"
        about = f"`{result['protocol']['name']}`, {result['protocol']['size']} px"
        majority = f"{100 * result['controls']['majority']['top1']['value']:.1f}"
        for pool in dict.fromkeys(_pool(result, entry) for entry in result["results"]):
            entries = {each["input"]: each for each in result["results"] if _pool(result, each) == pool}
            cells = [f"{name}, {len(result['data']['classes'])} classes", pool, about]
            cells.append(f"{result['n_used']} in {clips}" if result["data"].get("folds") else clips)
            cells += [share_cell(entries[input]["top1"]) if input in entries else "" for input in inputs]
            lines.append(markdown_row([*cells, majority, _weights(result)]))
            shuffled = {input: entry["shuffled_frames"] for input, entry in entries.items()}
            if any(shuffled.values()):
                cells = [f"{name}, frames shuffled", pool, "", ""]
                cells += [f"{100 * shuffled[input]['mean']:.1f}" if shuffled.get(input) else "" for input in inputs]
                lines.append(markdown_row([*cells, "", ""]))
    return "\n".join(lines)


def _pool(result: Mapping, entry: Mapping) -> str:
    return entry["runs"][0].get("pool") or result["config"]["pool"]  # older files have it in the config only


def path_table(results: Mapping[str, Mapping]) -> str:
    """Return top-1 of probes in percent on validation and test clips at every C or k, for each classifier.

    The chosen value (of most folds) is bold. The column "near" has the lowest and highest test top-1 among the values
    within one standard error of the best on validation, "inner folds" the number of inner folds that each value is best
    in. Older files, which hold only the chosen value, have no rows.
    """
    runs = [(name, entry, entry["runs"][0]) for name, result in results.items() for entry in result["results"]]
    runs = [(name, entry, run) for name, entry, run in runs if "path" in run]
    if not runs:
        return ""
    (kind,) = {next(iter(run["chosen"])) for _, _, run in runs}
    strengths = [row[kind] for row in runs[0][2]["path"]]
    head = ["set", "pool", "input", *(f"{kind} = {strength:g}" for strength in strengths), "near", "inner folds"]
    lines = [markdown_row(head), markdown_row(["---"] * len(head))]
    for name, entry, run in runs:
        chosen = run["chosen"][kind]
        usual = Counter(chosen).most_common(1)[0][0] if isinstance(chosen, list) else chosen
        cells = [name, run["pool"], entry["input"]]
        for row in run["path"]:
            cell = f"{100 * row['validation']:.0f} / {100 * row['top1']:.0f}"
            cells.append(f"**{cell}**" if row[kind] == usual else cell)
        cells.append(" to ".join(f"{100 * top1:.1f}" for top1 in run["within_one_se"]["top1"]))
        best = sorted(Counter(run["best_by_fold"]).items())
        lines.append(markdown_row([*cells, ", ".join(f"{strength:g}: {times}" for strength, times in best)]))
    return "\n".join(lines)


def accuracy_table(result: Mapping, arms: Sequence[str]) -> str:
    """Return top-1 in percent with its 95 % interval for some arms of one comparison."""
    entries = {entry["name"]: entry["top1"] for entry in result["results"]}
    lines = [markdown_row(["head reads", "top-1, %", "95 % interval"]), markdown_row(["---"] * 3)]
    for arm in arms:
        mean, low, high = (100 * entries[arm][key] for key in ("mean", "low", "high"))
        lines.append(markdown_row([arm, f"{mean:.1f}", f"{low:.1f} to {high:.1f}"]))
    return "\n".join(lines)


def model_table(results: Mapping[str, Mapping]) -> str:
    """Return reconstruction metrics, a row per tokenizer; results: name of the model -> its evaluation.json."""
    head = ["model", "PSNR, dB", "over block means, dB", "SSIM", "LPIPS (VGG)", "entropy of the ids, bits"]
    head += ["bits per pixel", "weights"]
    lines = [markdown_row(head), markdown_row(["---"] * len(head))]
    for name, result in results.items():
        metrics = result["metrics"]
        gain = metrics["psnr_gain"]
        cells = [f"`{name}`", f"{metrics['psnr']['mean']:.2f}", f"+{gain['mean']:.2f} ± {gain['stderr']:.2f}"]
        cells += [f"{metrics['ssim']['mean']:.3f}", f"{metrics['lpips']['mean']:.3f}"]
        cells += [f"{result['codebook']['entropy_bits']:.1f}", f"{metrics['bits_per_pixel']['mean']:.4f}"]
        lines.append(markdown_row([*cells, f"`{result['tokenizer']['weight_hash']}`"]))
    return "\n".join(lines)


def reconstruction_table(results: Iterable[Mapping]) -> str:
    """Return all metrics of reconstructions, a row per result of `vidtok eval reconstruction`."""
    head = ["model", "clips", "pixels", "PSNR, dB", "SSIM", "LPIPS (VGG)", "LPIPS (AlexNet)", "rFVD", "block ratio"]
    lines = [markdown_row([*head, "entropy of the ids, bits"]), markdown_row(["---"] * (len(head) + 1))]
    for result in results:
        means = {name: metric["mean"] for name, metric in result["metrics"].items()}
        cells = [f"`{result['tokenizer']['name']}`", str(result["n_used"])]
        cells += ["x".join(map(str, [result["protocol"]["frames"], *result["protocol"]["size"]]))]
        cells += [f"{means['psnr']:.2f} ± {result['metrics']['psnr']['stderr']:.2f}"]
        cells += [f"{means[name]:.3f}" for name in ("ssim", "lpips", "lpips_alex")]
        cells += [f"{means['rfvd']:.1f}", f"{means['block_ratio']:.3f}", f"{result['codebook']['entropy_bits']:.1f}"]
        lines.append(markdown_row(cells))
    return "\n".join(lines)


def agreement_table(results: Iterable[Mapping]) -> str:
    """Return how often a classifier sees the same class in reconstructions, a row per result and tokenizer."""
    head = ["classifier", "model", "clips", "pixels", "same top class, %", "among the top 5, %"]
    head += ["its probability: clip", "reconstruction"]
    lines = [markdown_row(head), markdown_row(["---"] * len(head))]
    for result in results:
        pixels = "x".join(map(str, [result["protocol"]["frames"], *result["protocol"]["size"]]))
        for each in result["tokenizers"]:
            cells = [result["classifier"]["name"], f"`{each['name']}`", str(result["n_used"]), pixels]
            for share in (each["top1"], each["top5"]):
                cells.append(
                    "{:.1f} ({:.0f} to {:.0f})".format(*(100 * share[key] for key in ("value", "low", "high")))
                )
            cells += [f"{each['confidence'][key]:.2f}" for key in ("original", "reconstruction")]
            lines.append(markdown_row(cells))
    return "\n".join(lines)


def headline_table(model: Mapping, motion: Mapping, codecs: Mapping) -> str:
    """Return the three figures of the front page with their 95 % intervals and measurements.

    Args:
        model: evaluation.json of a shipped tokenizer. motion: comparison of heads on several motion tasks. codecs:
            comparison of codecs.
    """
    name, gain = model["tokenizer"]["name"], model["metrics"]["psnr_gain"]
    (ratio,) = (pair["ratio"] for pair in motion["comparisons"] if pair["ours"] == "tokens")
    point = f"{name} adaptive 100"
    (pair,) = (each for each in codecs["comparisons"] if each["point"] == point and each["codec"] == compression.ANCHOR)
    lpips = pair["metrics"]["lpips"]
    size = "x".join(map(str, model["protocol"]["size"]))
    rows = [
        ["", "measured", "95 % interval", "held-out clips", "measurement"],
        ["---"] * 5,
        [
            f"reconstruction at {size}: PSNR of {model['metrics']['psnr']['mean']:.2f} dB, over block means",
            f"{gain['mean']:+.2f} dB",
            " to ".join(f"{gain['mean'] + sign * 1.96 * gain['stderr']:+.2f}" for sign in (-1, 1)),
            str(gain["n"]),
            "`models`",
        ],
        [
            f"{len(motion['results'][0]['tasks'])} motion tasks: accuracy from tokens / from pixels",
            f"{ratio['value']:.2f}",
            f"{ratio['low']:.2f} to {ratio['high']:.2f}",
            str(motion["n_used"]),
            "`motion_tasks`",
        ],
        [
            f"compression to {pair['bpp']['mean']:.3f} bits per pixel: LPIPS minus that of x265 `medium` at equal bits",
            f"{lpips['mean']:+.3f}",
            f"{lpips['low']:+.3f} to {lpips['high']:+.3f}",
            str(lpips["n"]),
            "`compression`",
        ],
    ]
    return "\n".join(map(markdown_row, rows))


def published_tables(folder: str | Path = RESULTS) -> dict[str, str]:
    """Build every table of the README and the docs.

    Args:
        folder: result files (default: eval/results of the checkout); those of shipped models come from the package.

    Returns:
        Name of the table -> Markdown.
    """

    def read(name: str) -> dict:
        return json.loads((Path(folder) / f"{name}.json").read_text())

    models = {file.parent.name: json.loads(file.read_text()) for file in sorted(PRETRAINED.glob("*/evaluation.json"))}
    models = {name: result for name, result in models.items() if result["protocol"]["source"] != "digits"}
    larger = [json.loads(file.read_text()) for file in sorted(PRETRAINED.glob("*/evaluation-256.json"))]
    comparisons = {name: read(file) for file, name in COMPARISONS.items()}
    probes = {name: read(file) for file, name in PROBES.items()}
    generations, speed = [read(name) for name in GUIDANCES], read("speed")
    return {
        "headline": headline_table(models["vidtok-t"], read("motion-tasks"), read("compression")),
        "models": model_table(models),
        "reconstruction": reconstruction_table([*models.values(), *larger]),
        "agreement": agreement_table([read(name) for name in AGREEMENTS]),
        "inputs": accuracy_table(read("motion-tasks"), ("tokens", "pixels", TRANSFER)),
        "recognition": f"{comparison_table(comparisons)}\n\n{cost_table(comparisons)}",
        "motion_tasks": task_table(read("motion-tasks"), read("motion-tasks-10")),
        "pretraining": pretraining_table(*(read(f"backbone-{name}") for name in ("scratch", "masked", "pretrained"))),
        "frozen": frozen_table([read("backbone-references"), read("backbone-cells")]),
        "probes": f"{probe_table(probes)}\n\n{path_table(probes)}".strip(),
        "generation": generation_table(read("generation")),
        "guidance": guidance_table(generations),
        "speed": f"{speed_table(speed)}\n\n{machine_line(speed)}",
        "ratios": speed_ratio_table(speed),
        "reading": reading_table(read("loader")),
        "compression": compression.markdown(read("compression")),
        "compression_native": compression.differences(read("compression-native"), X265),
        "compression_640": compression.differences(read("compression-640x360"), X265),
        "entropy": compression.format_tokens(read("entropy")),
        "sampling": sampling_table([read("generate"), read("generate-h200")]),
        **command_blocks(),
    }


def update(text: str, tables: Mapping[str, str]) -> str:
    """Replace the content of every table that a page has."""
    for name in re.findall(r"<!-- end of (\w+) -->", text):
        text = replace_between(text, tables[name], name)
    return text


def replace_between(text: str, new: str, name: str = "recognition") -> str:
    """Replace the table of that name. Raises ValueError if the text lacks one of its two marker lines."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    if begin not in text or end not in text:
        raise ValueError(f"the page has no lines {begin.strip()} and {end.strip()}: add them where the table belongs")
    before, rest = text.split(begin, 1)
    return f"{before}{begin}\n{new}\n\n{end}{rest.split(end, 1)[1]}"


def _accuracy(top1: Mapping) -> str:
    if top1["deviation"] is None:
        return share_cell(top1)
    return f"{100 * top1['mean']:.1f} ± {100 * top1['deviation']:.1f}"


def _weights(result: Mapping) -> str:
    """Return the first half of the hash of the tokenizer's weights."""
    return f"`{result['tokenizer']['weight_hash'][:8]}`" if result["tokenizer"] else ""


def _named(result: dict) -> tuple[str, dict]:
    """Return (name of the set, with the label column unless it is `label`; the result)."""
    data = result["data"]
    name = Path(data["source"]).stem
    return name if data["label_column"] in (None, "label") else f"{name}, {data['label_column']}", result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "results", nargs="*", metavar="RESULT", help="result files of comparisons, of probes, or of generators"
    )
    parser.add_argument("--chart", metavar="PNG", help="chart of the accuracies of all comparisons")
    parser.add_argument("--into", metavar="FILE", help="page that gets the tables (default: print them)")
    parser.add_argument("--update", nargs="+", metavar="FILE", help="pages whose published tables are written anew")
    args = parser.parse_args()
    if bool(args.results) == bool(args.update):
        parser.error("give result files, or --update with pages")
    if args.update:
        update_pages(args.update)
        return
    results = [json.loads(Path(path).read_text()) for path in args.results]
    if strange := [path for path, result in zip(args.results, results, strict=True) if "schema" not in result]:
        parser.error(f"{strange[0]} is no result file")
    try:
        text, name, named = make_table(results)
    except ValueError as error:
        parser.error(str(error))
    if args.chart:
        if name != "recognition":
            parser.error("--chart is of comparisons of recognition")
        overview_chart(named, arms_of(named)).savefig(args.chart, dpi=120, bbox_inches="tight")
    put(text, args.into, name)


def generation_table(result: Mapping) -> str:
    """Return the table of a comparison of generators, with its verdict below."""
    said = verdict(result["rows"])
    return f"{markdown_table(result)}\n\n{said[0].upper()}{said[1:]}."


def make_table(results: Sequence[dict]) -> tuple[str, str, dict[str, dict]]:
    """Build the table of some results of one kind.

    Returns:
        Markdown; name of the table; results by set (empty for generators).

    Raises:
        ValueError: results of several kinds.
    """
    generation = [result["schema"] == SCHEMA for result in results]
    if all(generation):
        settings = [result["config"]["settings"] for result in results]
        can_merge = len(results) > 1 and all("tokenizer" in result for result in results)
        if can_merge and all(own == settings[0] for own in settings):
            return generation_table(merge_results(results)), "generation", {}
        return guidance_table(results), "guidance", {}
    if any(generation):
        raise ValueError("comparisons of recognition and of generators make two tables: give one kind")
    kinds = {result["kind"] for result in results}
    pairs = [_named(result) for result in results]
    named: dict[str, dict] = {}
    if kinds == {"probe"}:
        for name, result in pairs:
            model = (result["tokenizer"] or {}).get("name")
            named[f"{name}, {model}" if name in named else name] = result
        return f"{probe_table(named)}\n\n{path_table(named)}".strip(), "probes", named
    if "probe" in kinds:
        raise ValueError("comparisons and probes make two tables: give one kind")
    for name, result in pairs:
        unique = f"{name}, {result['config']['trainer']['max_steps']} steps" if name in named else name
        named[unique] = result
        result["results"].sort(key=lambda entry: ORDER.index(entry["name"]))
    return f"{comparison_table(named)}\n\n{cost_table(named)}", "recognition", named


def update_pages(pages: Iterable[str | Path]) -> None:
    """Rewrite the published tables of some pages."""
    tables = published_tables()
    for page in map(Path, pages):
        page.write_text(update(page.read_text(), tables))


def put(text: str, into: str | None, name: str) -> None:
    """Print the text, or write it between the marker lines of that name in the file `into`."""
    if into is None:
        print(text)
    else:
        file = Path(into)
        file.write_text(replace_between(file.read_text(), text, name))


if __name__ == "__main__":
    main()
