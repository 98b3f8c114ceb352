"""The README is true: its Python runs, its commands are those of CI, its numbers are those of the result files."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from vidtok.cli.main import VERBS
from vidtok.datasets import demo_clip, write_video
from vidtok.eval.generation.comparison import guidance_table, markdown_table, verdict
from vidtok.eval.report.markdown import comparison_table, cost_table, main, probe_table
from vidtok.extraction import Record, RecordMeta, open_writer
from vidtok.hub import PRETRAINED

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SHIPPED = sorted(p.parent.name for p in PRETRAINED.glob("*/config.json"))


def test_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vidtok-demo").mkdir()
    write_video(tmp_path / "vidtok-demo" / "original.mp4", demo_clip(), 30)
    write_tokens(tmp_path / "tokens")
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    names = {}
    for block in blocks:
        fresh = {}
        exec(block, fresh)
        names = fresh | names  # the first block's
    assert list(names["ids"].shape) == [1, 9, 16, 16] and list(names["features"].shape) == [1, 256, 9, 16, 16]
    assert names["loss"].isfinite() and list(names["batch"]["features"].shape) == [64, 5, 2, 3]


def write_tokens(folder):
    """Labelled tokens of whole videos, as `vidtok extract` writes them."""
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


def test_ci_runs_the_two_commands_letter_by_letter():
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    for command in ("pip install -e . && vidtok demo", "pip install -e '.[test]' && pytest -n 2 --dist loadfile"):
        assert command in README.splitlines() and command in script


def test_every_command_is_listed():
    for verb in VERBS:
        assert f"| `vidtok {verb}" in README


@pytest.mark.parametrize("name", SHIPPED)
def test_numbers_are_those_of_the_result_file(name):
    result = json.loads((PRETRAINED / name / "evaluation.json").read_text())
    metrics = result["metrics"]
    row = [
        f"`{name}`",
        f"{metrics['psnr']['mean']:.2f}",
        f"+{metrics['psnr_gain']['mean']:.2f} ± {metrics['psnr_gain']['stderr']:.2f}",
        f"{metrics['ssim']['mean']:.3f}",
        f"{metrics['lpips']['mean']:.3f}",
        f"{result['codebook']['entropy_bits']:.1f}",
        f"{metrics['bits_per_pixel']['mean']:.4f}",
        f"`{result['tokenizer']['weight_hash']}`",
    ]
    line = "| " + " | ".join(row) + " |"
    card = (PRETRAINED / name / "README.md").read_text()
    assert line in README.splitlines() and line in card.splitlines()


def speed_lines(result: dict) -> list[str]:
    """The README's lines on speed, from the JSON of `vidtok bench`."""

    def cells(key: str, form: str, what: str, field: str, scale: float = 1.0) -> str:
        found = []
        for precision in ("fp32", "bf16"):
            wanted = {"what": what, "precision": precision}
            rows = [row for row in result[key] if wanted.items() <= row.items()]
            # The first size; as `from_pretrained` gives the model.
            row = next(row for row in rows if row.get("layout", "channels-last") == "channels-last")
            found.append(form.format(scale * row[field]))
        return " | ".join(found)

    def times(ratio: dict) -> str:
        return f"{ratio['median']:.3g} ({ratio['lowest']:.3g} .. {ratio['highest']:.3g})"

    about, loss, codec = result["provenance"], result["loss"], result["tokenizer"][0]
    versions, machine = about["versions"], about["machine"]
    size, step, latent, paper = (
        "{batch} x {frames} x {side} x {side}".format(**{"batch": 1, **row})
        for row in (codec, result["train"][0], result["streaming"][0], result["magvit2"][0])
    )
    return [
        f"| encode {size}, frames/s | {cells('tokenizer', '{:.0f}', 'encode', 'frames_per_s')} |",
        f"| decode, frames/s | {cells('tokenizer', '{:.0f}', 'decode', 'frames_per_s')} |",
        f"| encode, GFLOP/s | {cells('tokenizer', '{:.0f}', 'encode', 'gflop_per_s')} |",
        f"| its convolutions alone, GFLOP/s | {cells('tokenizer', '{:.0f}', 'encode', 'conv_gflop_per_s')} |",
        f"| encode a latent of a stream, {latent}, ms | {cells('streaming', '{:.0f}', 'encode', 'median_s', 1e3)} |",
        f"| training step of {step}, s | {cells('train', '{:.2f}', 'step', 'median_s')} |",
        f"| the same with discriminator, s | {cells('train', '{:.1f}', 'step with GAN', 'median_s')} |",
        f"| encode {size}: `magvit2-pytorch` {versions['magvit2-pytorch']}, its README's model | "
        f"{times(result['encode_peer']['ratio'])} |",
        f"| LFQ loss and gradient, {loss['bits']} bits, {loss['rows'][1]['tokens']} tokens: "
        f"`vector-quantize-pytorch` {versions['vector-quantize-pytorch']} | {times(loss['ratio'])} |",
        f"| `magvit2` encode {paper}, bf16 and channels-last: itself in fp32, contiguous | "
        f"{times(result['magvit2_ratio'])} |",
        f"{machine['cpu']}, threads: {about['threads']} of {machine['cores']} cores, "
        f"torch {versions['torch']}, load {machine['load']:.0f}:",
    ]


def test_speed_is_that_of_the_benchmark():
    result = json.loads((ROOT / "eval/results" / "speed.json").read_text())
    for line in speed_lines(result):
        assert line in README.splitlines()
    assert (ROOT / "eval/results" / "speed.png").is_file()


def sampling_lines(result: dict) -> list[str]:
    """The README's table on sampling, from the JSON of `vidtok bench generate`."""
    first = result["rows"][0]
    what = "{steps} masked steps, {tokens} tokens, {depth} layers x {width}".format(**first, **first["trunk"])
    lines = [f"| {what} | masked, s | with cache, s | without, s | cache / masked | without / masked |"]
    device = result["provenance"]["device"].replace("cpu", "CPU")
    for row in result["rows"]:
        times = [f"{row[kind]['median_s']:.3g}" if kind in row else "" for kind in ("masked", "cached", "uncached")]
        times += [f"{row[kind]['median']:.3g}" if kind in row else "" for kind in ("over_cached", "over_uncached")]
        lines.append(f"| {device}, batch {row['batch']} | {' | '.join(times)} |")
    return lines


def test_sampling_is_that_of_the_benchmark():
    for name in ("generate", "generate-h200"):
        for line in sampling_lines(json.loads((ROOT / "eval/results" / f"{name}.json").read_text())):
            assert line in README.splitlines()


def test_the_shipped_head_is_that_of_its_result_file():
    result = json.loads((PRETRAINED / "heads" / "digits-tokens" / "evaluation.json").read_text())
    top1, n = result["results"][0]["runs"][0]["top1"], result["n_used"]
    share = "{:.1f} % ({:.1f} to {:.1f})".format(*(100 * top1[key] for key in ("value", "low", "high")))
    assert f"{share} of all {n:,} held-out clips" in README.replace("\n", " ")


def test_probes_are_those_of_the_result_files():
    table = probe_table(json.loads((ROOT / "eval/results" / "probes.json").read_text()))
    assert f"<!-- probes -->\n{table}\n<!-- end of probes -->" in README


def test_agreement_is_that_of_the_result_file():
    ours, other = json.loads((ROOT / "eval/results" / "agreement.json").read_text())["tokenizers"]
    text, share = README.replace("\n", " "), (100 * ours["top1"][key] for key in ("value", "low", "high"))
    assert "best class stays the best in {:.1f} % ({:.1f} to {:.1f})".format(*share) in text
    seen = (ours["confidence"][key] for key in ("original", "reconstruction"))
    assert "falls from {:.2f} to {:.2f}".format(*seen) in text
    assert other["top1"]["value"] <= ours["top1"]["value"]


def test_comparisons_are_those_of_the_result_files():
    results = {}
    names = {"digits": "digits", "digits-long": "digits, 1500 steps", "rt1": "rt1", "rt1-views": "rt1, 800 steps"}
    names |= {"droid": "droid", "grid": "grid, command", "grid-digit": "grid, digit"}
    for name, called in names.items():
        results[called] = json.loads((ROOT / "eval/results" / f"recognition-{name}.json").read_text())
    tables = f"{comparison_table(results)}\n\n{cost_table(results)}"
    assert f"<!-- recognition -->\n{tables}\n<!-- end of recognition -->" in README
    ratios = {pair["ours"]: 100 * pair["ratio"]["value"] for pair in results["digits, 1500 steps"]["comparisons"]}
    said = "has {:.1f} % of what one of pixels has, on all 3,231 clips of held-out digits, and one of the latents"
    said += " before their signs {:.1f} %"
    assert said.format(ratios["tokens"], ratios["latents"]) in README.replace("\n", " ")


def test_generators_are_those_of_the_result_file():
    names = ("-guidance-1", "-guidance-1.5", "", "-guidance-3")
    results = [json.loads((ROOT / "eval/results" / f"generation{name}.json").read_text()) for name in names]
    table = f"{markdown_table(results[2])}\n\n{verdict(results[2]['rows'])}"
    assert f"<!-- generation -->\n{table}.\n<!-- end of generation -->" in README
    assert f"<!-- guidance -->\n{guidance_table(results)}\n<!-- end of guidance -->" in README
    assert f"all steps: {verdict([row for each in results for row in each['rows']])}" in README.replace("\n", " ")
    metrics = json.loads((ROOT / "eval/results" / "generation-digits.json").read_text())["metrics"]
    for name, place in (("agreement", "agreement of {} of {}"), ("real_agreement", "is right on {} of {}")):
        numbers = (100 * metrics[name][key] for key in ("value", "low", "high"))
        said = place.format("{:.1f} % ({:.1f} to {:.1f})".format(*numbers), metrics[name]["n"])
        assert said in README.replace("\n", " ")
    shares = {name: round(100 * share) for name, share in metrics["agreement"]["classes"].items()}
    few = [shares.pop(name) for name in ("turning left", "turning right")]
    said = "{} % of turning left and {} % of turning right, and the other seven {} to {} %"
    assert said.format(*few, min(shares.values()), max(shares.values())) in README.replace("\n", " ")
    for name in ("droid", "droid-class"):
        metrics = json.loads((ROOT / "eval/results" / f"generation-{name}.json").read_text())["metrics"]
        numbers = [metrics["fvd"]["mean"], metrics["fvd"]["deviation"]]
        numbers += [metrics[limit]["value"] for limit in ("fvd_reconstruction", "fvd_floor")]
        said = "FVD {:.0f} ± {:.0f}; reconstructions of other real clips {:.0f}, these clips {:.0f}"
        assert said.format(*numbers) in README


def test_tables_are_of_results_of_one_kind(capsys, monkeypatch):
    bench = ROOT / "eval/results"

    def printed(*names: str) -> str:
        monkeypatch.setattr("sys.argv", ["markdown", *(str(bench / f"{name}.json") for name in names)])
        main()
        return capsys.readouterr().out.strip()

    names = ("generation-guidance-1", "generation")
    assert printed(*names) == guidance_table([json.loads((bench / f"{name}.json").read_text()) for name in names])
    for others, message in (
        (("generation", "recognition-rt1"), "make two tables: give one kind"),
        (("probes",), "is no result file"),
    ):
        with pytest.raises(SystemExit):
            printed(*others)
        assert message in capsys.readouterr().err
