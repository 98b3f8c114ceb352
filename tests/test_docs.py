"""Pages are true: their Python runs, their commands parse, their tables and numbers are those of the result files."""

import json
import re
import shutil
import subprocess
from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from vidtok.cli.main import main
from vidtok.datasets import demo_clip, write_video
from vidtok.eval.generation.report import guidance_table, verdict
from vidtok.eval.report import markdown, ratio_cell
from vidtok.eval.report.markdown import GUIDANCES, published_tables, update
from vidtok.eval.report.measurements import load_measurements
from vidtok.extraction import Record, RecordMeta, open_writer
from vidtok.heads import Head
from vidtok.hub import PRETRAINED, hash_file

ROOT = Path(__file__).parent.parent
PAGES = {file.name: file.read_text() for file in [ROOT / "README.md", *sorted((ROOT / "docs/pages").glob("*.md"))]}
README, RESULTS = (" ".join(PAGES[name].split()) for name in ("README.md", "results.md"))
SHIPPED = sorted(p.parent.name for p in PRETRAINED.glob("vidtok-*/config.json"))


def pages_with(language: str) -> list[str]:
    return [name for name, text in PAGES.items() if f"```{language}\n" in text]


def blocks_of(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)


def read(name: str) -> dict:
    return json.loads((ROOT / "eval/results" / f"{name}.json").read_text())


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vidtok-demo").mkdir()
    write_video(tmp_path / "vidtok-demo" / "original.mp4", demo_clip(), 30)
    write_tokens(tmp_path / "tokens")
    for block in blocks_of(page, "python"):
        names = {}
        exec(block, names)
        # A comment "# [1, 18, 9, 16, 16]" after an assignment states the shape.
        for name, shape in re.findall(r"^(\w+) = .*  # (?:\w+ )?(\[[\d, ]+\])", block, re.MULTILINE):
            assert list(names[name].shape) == json.loads(shape), name


def write_tokens(folder):
    """Labeled tokens of whole videos, as `vidtok extract` writes them."""
    folder.mkdir()
    writer = open_writer(folder, "npz")
    for i in range(6):
        meta = RecordMeta(
            feature="ids", model="test", weight_hash="0" * 16, precision="fp32", bits=18, stride=(4, 8, 8),
            dtype="uint32", fps=25.0, frames=17 + 4 * i, size=(16, 24), coded_size=(16, 24), native_size=(16, 24),
            native_fps=25.0, source=f"{i}.mp4", source_bytes=99, reader="pyav", bytes_per_token=4.0,
        )  # fmt: skip
        ids = np.full((5 + i, 2, 3), i, np.uint32)
        writer.write([Record(f"{i}.mp4", "ab"[i % 2], "train", ids, np.arange(meta.frames) / 25, meta)])
    writer.close()


# Commands that pages may name beside vidtok, and how bash reaches the arguments of vidtok.
SHELL = """
vidtok() { printf '%s\\x1f' "$@"; printf '\\x1e'; }
torchrun() { while [ "$1" != vidtok ]; do shift; done; shift; vidtok "$@"; }
python() { :; }; pip() { :; }; pytest() { :; }; rm() { :; }; grep() { :; }
"""


@pytest.mark.parametrize("page", pages_with("bash"))
def test_commands_parse(page, tmp_path):
    """bash expands variables and quotes; argparse and hydra take the rest."""
    script = "\n".join([SHELL, *blocks_of(page, "bash")])  # later blocks use variables of earlier ones
    shell = [shutil.which("bash"), "-euf", "-c", script]
    out = subprocess.run(shell, env={"PATH": ""}, cwd=tmp_path, capture_output=True, text=True)
    assert not out.returncode, out.stderr
    for command in out.stdout.split("\x1e")[:-1]:
        check_command(command.split("\x1f")[:-1])


def check_command(argv: list[str]) -> None:
    # --config composes the settings and prints them.
    if argv[0] == "train" or argv[:2] in (["eval", kind] for kind in ("compare", "finetune", "generation-compare")):
        assert main([*argv, "--config"]) == 0, argv
        return
    module = import_module(f"vidtok.cli.{argv[0]}")
    rest = argv[1:]
    if hasattr(module, "KINDS"):
        module, rest = import_module(f"vidtok.cli.{argv[0]}.{argv[1].replace('-', '_')}"), argv[2:]
    parser = ArgumentParser(exit_on_error=False)
    module.configure(parser)
    parser.parse_intermixed_args(rest)


def test_tables_are_those_of_the_result_files():
    tables = published_tables()
    for name, text in PAGES.items():
        assert update(text, tables) == text, f"{name}: run python -m vidtok.eval.report.markdown --update PAGE"
    shown = set(re.findall(r"<!-- end of (\w+) -->", "".join(PAGES.values())))
    assert shown == tables.keys()


def test_the_front_page_names_measurements_of_one_tokenizer():
    names = re.findall(r"\| `(\w+)` \|$", published_tables()["headline"], re.M)
    assert names == [each.name for each in load_measurements(names)] and len(names) == 3
    (codec,) = (each for each in read("compression")["codecs"] if each["label"] == "vidtok-t adaptive")
    hashes = {read("motion-tasks")["tokenizer"]["weight_hash"], codec["weight_hash"]}
    assert hashes == {hash_file(PRETRAINED / "vidtok-t/model.safetensors")}


def test_links_exist():
    for page, text in PAGES.items():
        folder = ROOT if page == "README.md" else ROOT / "docs/pages"
        for target in re.findall(r"\]\((?!https:)([^)#]+)", text):
            assert (folder / target).is_file(), target


@pytest.mark.parametrize("name", SHIPPED)
def test_model_cards_have_the_row_of_the_table(name):
    (row,) = (line for line in published_tables()["models"].splitlines() if line.startswith(f"| `{name}` |"))
    assert row in (PRETRAINED / name / "README.md").read_text().splitlines()
    metrics = json.loads((PRETRAINED / name / "evaluation.json").read_text())["metrics"]
    assert f"by its mean color ({metrics['block_mean_psnr']['mean']:.2f} dB)" in PAGES["README.md"]


def test_the_card_of_digits_is_that_of_its_result_file():
    result = json.loads((PRETRAINED / "digits" / "evaluation.json").read_text())
    card = (PRETRAINED / "digits" / "README.md").read_text()
    metrics = {name: metric["mean"] for name, metric in result["metrics"].items()}
    psnr, gain = (result["metrics"][name] for name in ("psnr", "psnr_gain"))
    row = [f"{psnr['mean']:.2f} ± {psnr['stderr']:.2f}", f"+{gain['mean']:.2f} ± {gain['stderr']:.2f}"]
    row += [f"{metrics[name]:.3f}" for name in ("ssim", "lpips")] + [f"{metrics['rfvd']:.1f}"]
    row += [f"{metrics['block_ratio']:.3f}", f"{result['codebook']['entropy_bits']:.1f}"]
    assert markdown.markdown_row([*row, f"{metrics['bits_per_pixel']:.4f}"]) in card.splitlines()
    assert f"`{result['tokenizer']['weight_hash']}`" in card and f"{result['n_used']} of the 3,231 clips" in card


def test_the_shipped_head_is_that_of_its_result_file():
    result = json.loads((PRETRAINED / "heads" / "digits-tokens" / "evaluation.json").read_text())
    top1, n = result["results"][0]["runs"][0]["top1"], result["n_used"]
    share = "{:.1f} % ({:.1f} to {:.1f})".format(*(100 * top1[key] for key in ("value", "low", "high")))
    assert f"{share} of all {n:,} held-out clips" in RESULTS


def test_agreement_is_that_of_the_result_files():
    for kind, said in (
        ("agreement", "of all {} clips, the top class stays the same in {} with `vidtok-t` and {} with `vidtok-t-r`"),
        ("agreement-frames", "EfficientNet-Lite0, by its mean probabilities over frames, keeps {1} and {2} of the {0}"),
    ):
        results = [read(kind), read(f"{kind}-256")]
        total, same = sum(result["n_used"] for result in results), [0, 0]
        for result in results:
            ours, other = result["tokenizers"]
            assert (ours["name"], other["name"]) == ("vidtok-t", "vidtok-t-r")
            assert other["top1"]["value"] <= ours["top1"]["value"]
            for i, tokenizer in enumerate((ours, other)):
                same[i] += round(tokenizer["top1"]["value"] * result["n_used"])
        shares = "({:.0f} and {:.0f} %)".format(*(100 * number / total for number in same))
        assert f"{said.format(total, *same)} {shares}" in RESULTS


def test_ratios_of_heads_are_those_of_the_result_files():
    for name, said in (
        ("digits", "a head on tokens has {} of the accuracy of one on pixels, and one on `hidden` features {}."),
        ("rt1-views", "tokens have {} of the accuracy of pixels, and `hidden` features {}."),
    ):
        ratios = {pair["ours"]: pair["ratio"] for pair in read(f"recognition-{name}")["comparisons"]}
        shares = ("{value:.2f} ({low:.2f} to {high:.2f})".format(**ratios[arm]) for arm in ("tokens", "hidden"))
        assert said.format(*shares) in RESULTS
    few = {entry["name"]: entry["top1"]["mean"] for entry in read("recognition-rt1")["results"]}
    assert max(few[arm] for arm in ("tokens", "codes", "latents")) < 0.25  # "next to nothing"
    recon = next(entry for entry in read("recognition-digits")["results"] if entry["name"] == "recon")
    assert sorted(run["top1"]["value"] > 0.95 for run in recon["runs"]) == [False, True, True]


def test_motion_tasks_are_those_of_the_result_file():
    result = read("motion-tasks")
    of = {entry["name"]: entry for entry in result["results"]}
    pairs = {pair["ours"]: pair for pair in result["comparisons"]}
    tokens, recon, hidden = (ratio_cell(pairs[arm]["ratio"]) for arm in ("tokens", "recon", "hidden"))
    assert f"**Tokens have {tokens} of the accuracy of pixels**" in RESULTS
    assert f"decoded clips (*recon*) {recon}: reading ids" in RESULTS
    assert f"**`hidden` features have {hidden} of it**" in RESULTS
    order = pairs["tokens"]["tasks"]["order"]["ratio"]
    assert f"`order` ({ratio_cell(order).replace(' (', ', ')}." in RESULTS
    assert min(pairs["tokens"]["tasks"].values(), key=lambda pair: pair["ratio"]["value"])["ratio"] == order
    numbers = of["frame"]["top1"]["mean"], result["controls"]["majority"]["top1"]["value"]
    numbers += (of["tokens"]["shuffled_frames"]["mean"],)
    said = "(*frame*) has {:.1f} %, chance is {:.1f} %. With shuffled frames, which still show how much "
    said += "moves, tokens have {:.1f} %"
    assert said.format(*(100 * number for number in numbers)) in RESULTS
    assert f"Chance is {100 * numbers[1]:.1f} %; *pixels on recon*" in PAGES["README.md"]
    arrows = [entry["tasks"]["arrow"] for entry in of.values()]
    assert all(top1["low"] < 0.5 < top1["high"] for top1 in arrows)
    low, high = (100 * extreme(top1["mean"] for top1 in arrows) for extreme in (min, max))
    assert f"all are at {low:.0f} to {high:.0f} % of two classes" in RESULTS
    seeds = "give {:.1f}, {:.1f} and {:.1f} %".format(*(100 * run["top1"]["value"] for run in of["tokens"]["runs"]))
    assert seeds in RESULTS
    kinds = {"pan": "of the pans", "zoom": "of the zooms", "rotate": "of the rotations"}
    shares = [[kind_share(of[arm], result["data"]["classes"], kind) for kind in kinds] for arm in ("tokens", "pixels")]
    said = "tokens have {:.0f} % of the pans right, {:.0f} % of the zooms and {:.0f} % of the rotations; "
    assert f"{said}pixels {{:.0f}} %, {{:.0f}} % and {{:.0f}} %.".format(*shares[0], *shares[1]) in RESULTS
    for name, said in (("digits", "On `digits` they give {} % in place"), ("rt1-views", "on `rt1` with crops {} % in")):
        top1 = next(each["top1"] for each in read(f"recognition-{name}")["results"] if each["name"] == "tokens")
        share = f"{100 * top1['mean']:.1f} ± {100 * top1['deviation']:.1f}"
        assert said.format(share) in RESULTS


def test_the_backbone_is_that_of_the_result_files():
    scratch, pretrained = (read(f"backbone-{name}")["results"] for name in ("scratch", "pretrained"))
    (ratio,) = (each["ratio"] for each in read("backbone-pretrained")["comparisons"] if each["ours"] == "tokens")
    assert f"start from it have {ratio_cell(ratio)} of the accuracy of heads on pixels from scratch" in RESULTS
    assert f"have {ratio_cell(ratio)} of the accuracy of pixels from scratch" in README
    top1 = {entry["name"]: 100 * entry["top1"]["mean"] for entry in (*pretrained, *scratch)}
    assert "from scratch, tokens have {tokens:.1f} % and pixels {pixels:.1f} %.".format(**top1) in RESULTS
    own, from_scratch = pretrained[0], scratch[0]
    assert (
        "{:.1f} in place of {:.1f} %".format(*(100 * entry["top1"]["mean"] for entry in (own, from_scratch)))
        in PAGES["recognition.md"]
    )
    (masked,) = read("backbone-masked")["results"]
    gain = 100 * (masked["tasks"]["object-speed"]["mean"] - from_scratch["tasks"]["object-speed"]["mean"])
    assert f"It gains {gain:.1f} points with the speed of moving objects" in RESULTS
    better = {task for task, top1 in masked["tasks"].items() if top1["low"] > from_scratch["tasks"][task]["high"]}
    assert better == {"object-speed"}
    gains = {task: 100 * (own["tasks"][task]["mean"] - from_scratch["tasks"][task]["mean"]) for task in own["tasks"]}
    assert "({object-direction:.1f} and {object-speed:.1f} points)".format(**gains) in RESULTS
    above = {task for task in gains if own["tasks"][task]["low"] > from_scratch["tasks"][task]["high"]}
    assert above == {"object-direction", "object-speed"}
    frozen = read("backbone-references")["results"] + read("backbone-cells")["results"]
    top1 = {(entry["input"], entry["runs"][0]["pool"]): 100 * entry["top1"]["mean"] for entry in frozen}
    said = "(*cells*) have {:.1f} % and those of I3D {:.1f} %, averaged over the clip; `hidden` has {:.1f} %."
    assert said.format(*(top1[input, "mean"] for input in ("cells", "i3d", "hidden"))) in RESULTS
    assert f"on a grid it is {top1['i3d', 'grid4'] - top1['cells', 'grid4']:.1f} points behind" in RESULTS
    card, tables = (PRETRAINED / "heads/clips-tokens/README.md").read_text(), published_tables()
    assert all(tables[name].strip() in card for name in ("pretraining", "frozen"))
    cells, i3d = (next(e["tasks"]["object-bounce"] for e in frozen if e["input"] == name) for name in ("cells", "i3d"))
    assert cells["high"] < i3d["low"]  # "misses what I3D sees of `object-bounce`"
    probed, head = read("backbone-cells")["results"][0]["runs"][0]["reference"], Head.from_pretrained("clips-tokens")
    assert probed["weight_hash"] == head.weight_hash
    assert head.config.tokenizer["weight_hash"] == read("backbone-cells")["tokenizer"]["weight_hash"]
    assert (PRETRAINED / "heads/clips-tokens/model.safetensors").stat().st_size < 3e6


def kind_share(entry: dict, classes: list[str], kind: str) -> float:
    """Percent of the clips of camera motions of a kind that are right."""
    confusion = sum(np.array(run["confusion"]) for run in entry["runs"])
    chosen = [i for i, name in enumerate(classes) if name.startswith(f"camera/{kind}")]
    return 100 * confusion.diagonal()[chosen].sum() / confusion[chosen].sum()


def test_probes_are_those_of_the_result_file():
    result = read("probes-rt1")
    told = (
        ("pixels", -1, "cells {:.1f} points less ({:.1f} to {:.1f})"),
        ("frames", 1, "frames {:.1f} points more ({:.1f} to {:.1f})"),
        ("hidden", 1, "`hidden` has {:.1f} points more than codes ({:.1f} to {:.1f})"),
    )
    for name, sign, said in told:
        arms = (f"{name}, grid4, logistic", "codes, grid4, logistic")
        (pair,) = (each for each in result["comparisons"] if (each["ours"], each["theirs"]) == arms)
        numbers = [100 * sign * pair["difference"][key] for key in ("value", "low", "high")]
        assert said.format(numbers[0], *sorted(numbers[1:])) in RESULTS
    codes = next(e for e in result["results"] if e["input"] == "codes" and e["runs"][0]["pool"] == "grid4")
    assert f"on a 4x4 grid they have {100 * codes['top1']['mean']:.1f} %" in RESULTS
    top1 = {(e["input"], e["runs"][0]["pool"]): 100 * e["top1"]["mean"] for e in result["results"]}
    said = "(*cells*) has {:.1f} % on the grid, `hidden` {:.1f} % and I3D {:.1f} %; averaged over the clip, {:.1f}, "
    said += "{:.1f} and {:.1f} %."
    assert (
        said.format(*(top1[name, pool] for pool in ("grid4", "mean") for name in ("cells", "hidden", "i3d"))) in RESULTS
    )
    spans = {}
    for entry in result["results"]:
        tested = [100 * row["top1"] for row in entry["runs"][0]["path"] if row["C"] >= 1e-3]
        spans[entry["name"]] = f"{min(tested):.0f} to {max(tested):.0f} %"
    said = "Over C from 0.001 to 100, codes have {codes, grid4, logistic} and pixels {pixels, grid4, logistic}:"
    assert said.format(**spans) in RESULTS
    pairs = read("probes-pick-put")
    majority = pairs["controls"]["majority"]["top1"]["value"]
    assert all(entry["top1"]["mean"] <= majority for entry in pairs["results"])  # "no input is above"


def test_generators_are_those_of_the_result_files():
    rows = [row for name in GUIDANCES for row in read(name)["rows"]]
    assert f"all steps: {verdict(rows)}" in RESULTS
    metrics = read("generation-digits")["metrics"]
    for name, place in (("agreement", "agreement of {} of {}"), ("real_agreement", "is right on {} of {}")):
        numbers = (100 * metrics[name][key] for key in ("value", "low", "high"))
        assert place.format("{:.1f} % ({:.1f} to {:.1f})".format(*numbers), metrics[name]["n"]) in RESULTS
    shares = {name: round(100 * share) for name, share in metrics["agreement"]["classes"].items()}
    few = [shares.pop(name) for name in ("turning left", "turning right")]
    said = "{} % of turning left and {} % of turning right, and the other seven {} to {} %"
    assert said.format(*few, min(shares.values()), max(shares.values())) in RESULTS
    result = json.loads((PRETRAINED / "generators" / "clips-prediction" / "evaluation.json").read_text())
    generator, metrics = result["generator"], result["metrics"]
    said = f"(weights `{generator['weight_hash']}`): masked, {generator['parameters'] / 1e6:.1f}M parameters"
    assert said in RESULTS
    numbers = [metrics["fvd"]["mean"], metrics["fvd"]["deviation"]]
    numbers += [metrics[limit]["value"] for limit in ("fvd_reconstruction", "fvd_floor")]
    said = "FVD {:.0f} ± {:.0f}; reconstructions of other real clips {:.0f}, these clips {:.0f}"
    assert said.format(*numbers) in RESULTS
    numbers = [metrics["fvd_to_reconstructions"]["mean"], metrics["fvd_to_reconstructions"]["deviation"]]
    numbers.append(metrics["fvd_to_reconstructions_reconstruction"]["value"])
    said = "the distance is {:.0f} ± {:.0f}, and that of reconstructions of the other clips {:.0f}."
    assert said.format(*numbers) in RESULTS
    card = (PRETRAINED / "generators" / "clips-prediction" / "README.md").read_text()
    rows = [
        f"{metrics[name]['mean']:.0f} ± {metrics[name]['deviation']:.0f}" for name in ("fvd", "fvd_to_reconstructions")
    ]
    rows += [f"{metrics[limit]['value']:.0f}" for limit in ("fvd_reconstruction", "fvd_floor")]
    rows.append(f"{metrics['fvd_to_reconstructions_reconstruction']['value']:.0f}")
    repeated = [metrics[f"{name}_repeated"]["value"] for name in ("fvd", "fvd_to_reconstructions")]
    rows += [f"{value:.0f}" for value in repeated]
    assert "has {:.0f} (80 clips), and {:.0f} from reconstructions".format(*repeated) in RESULTS
    assert sorted(re.findall(r"\| ([0-9 ±]+) \|$", card, re.MULTILINE)) == sorted(rows)
    assert all(f"`{hash}`" in card for hash in (generator["weight_hash"], generator["tokenizer"]["weight_hash"]))
    commands = " ".join(card.split("```bash\n")[2].split("```")[0].split())
    assert len(commands) > 300 and commands in RESULTS


def test_tables_are_of_results_of_one_kind(capsys, monkeypatch, tmp_path):
    no_result = tmp_path / "no-result.json"
    no_result.write_text("{}")

    def printed(*names: str) -> str:
        files = (str(no_result if name == "no-result" else ROOT / "eval/results" / f"{name}.json") for name in names)
        monkeypatch.setattr("sys.argv", ["markdown", *files])
        markdown.main()
        return capsys.readouterr().out.strip()

    names = ("generation-guidance-1", "generation")
    assert printed(*names) == guidance_table([read(name) for name in names])
    for others, message in (
        (("generation", "recognition-rt1"), "make two tables: give one kind"),
        (("generation", "no-result"), "is no result file"),
        ((), "give result files, or --update"),
    ):
        with pytest.raises(SystemExit):
            printed(*others)
        assert message in capsys.readouterr().err


def test_update_fills_a_page(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- inputs -->\n<!-- end of inputs -->\nafter\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["markdown", "--update", str(page)])
    markdown.main()
    assert f"<!-- inputs -->\n\n{published_tables()['inputs']}\n\n<!-- end of inputs -->\nafter\n" in page.read_text()
    with pytest.raises(ValueError, match="no lines <!-- probes -->"):
        markdown.replace_between("", "", "probes")


def test_gap_to_x265_is_that_of_the_result_file():
    text, result = " ".join(PAGES["codec.md"].split()), read("compression")

    def gap(point: str, metric: str, digits: int, scale: float = 1, mode: str = "random-access") -> str:
        (pair,) = (p for p in result["comparisons"] if (p["point"], p["codec"]) == (point, f"x265 {mode}"))
        values = sorted(scale * pair["metrics"][metric][key] for key in ("low", "mean", "high"))
        return "{1:.{3}f} ({0:.{3}f} to {2:.{3}f})".format(*values, digits)

    points = [f"vidtok-t adaptive {quality}" for quality in (100, 50)]
    lpips, agreement, psnr = (
        [gap(point, *what) for point in points]
        for what in (("lpips", 3), ("frame_agreement", 0, -100), ("psnr", 1, -1))
    )
    assert f"LPIPS is {lpips[0]} higher at quality 100 and {lpips[1]} at 50;" in text
    assert f"class is {agreement[0].replace(' (', ' points (')} lower at quality 100 and {agreement[1]} at 50;" in text
    assert f"PSNR is {psnr[0].replace(' (', ' dB (')} lower at quality 100 and {psnr[1]} at 50." in text
    means = {f"{point['codec']} {point['rate']}": point for point in result["points"]}
    best = means["vidtok-t adaptive 100"]
    for quality, said in (
        (50, "quality 50 of `vidtok-t` takes {:.0f} % fewer bits than 100 for {:.1f} dB of PSNR and {:.3f} of LPIPS"),
        (20, ", 20 takes {:.0f} % fewer for {:.1f} dB and {:.3f}."),
    ):
        lower = means[f"vidtok-t adaptive {quality}"]
        saved = 100 * (1 - lower["bpp"]["mean"] / best["bpp"]["mean"])
        lost = (best["psnr"]["mean"] - lower["psnr"]["mean"], lower["lpips"]["mean"] - best["lpips"]["mean"])
        assert said.format(saved, *lost) in text
    result, point = read("compression-native"), "vidtok-t adaptive 100"
    modes = ("random-access", "low-delay")
    lpips = [gap(point, "lpips", 3, mode=mode) for mode in modes]
    assert (
        f"is {lpips[0]} higher than that of x265 in random-access mode and {lpips[1]} higher than in low-delay" in text
    )
    psnr = [gap(point, "psnr", 1, -1, mode) for mode in modes]
    assert f"PSNR is {psnr[0].replace(' (', ' dB (')} and {psnr[1]} lower" in text
    (full,) = (each for each in result["points"] if (each["codec"], each["rate"]) == ("vidtok-t adaptive", "100"))
    seen = full["i3d_agreement"]
    assert f"class of the original in {seen['mean'] * seen['n']:.0f} of {seen['n']} reconstructions" in text
    assert f"falls further than with x265, though, by {gap(point, 'i3d_confidence', 2, -1)} against" in text


def test_what_the_prior_saves_is_that_of_the_result_file():
    text, result = " ".join(PAGES["codec.md"].split()), read("entropy")

    def more(model: str, other: str, which: str = "total") -> str:
        saved = result["models"][model]["saved"]
        return f"{100 * (saved['prior'][which] - saved[other][which]):.1f}"

    median = more("vidtok-t", "adaptive", "median")
    assert f"{more('vidtok-t', 'adaptive')} points more than `adaptive` on `vidtok-t` ({median} in the median" in text
    assert f"bytes, and {more('vidtok-t-r', 'adaptive')} on `vidtok-t-r`" in text
    assert f"{more('vidtok-t', 'counter')} and {more('vidtok-t-r', 'counter')} points more than the counter" in text
