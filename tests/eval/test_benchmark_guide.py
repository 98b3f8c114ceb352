"""The guide of the benchmarks, letter by letter: its commands run on small sets in the official layouts."""

import json
import shutil
import subprocess

import pytest
from test_docs import SHELL, blocks_of
from test_eval_recipes import LABELS, TEMPLATES, make_video, write_webm

from vidtok.cli.main import main
from vidtok.configs.compose import compose_config
from vidtok.datasets import write_video
from vidtok.extraction import open_reader
from vidtok.extraction.output import read_failures

COUNTS = {"train": 3, "val": 2}  # videos of a class


def make_kinetics(root) -> None:
    """The official csv files and class folders; of the training clips one is missing and one is broken."""
    for split, count in COUNTS.items():
        rows = ["label,youtube_id,time_start,time_end,split"]
        for number, label in enumerate(LABELS):
            folder = root / split / label.replace(" ", "_")
            folder.mkdir(parents=True)
            for clip in range(count):
                name = f"{split:_<6}{number}_{clip:03d}"  # eleven characters
                write_video(folder / f"{name}_000010_000020.mp4", make_video(10 * number + clip + 99 * count), fps=25)
                rows.append(f"{label},{name},10,20,{split}")
        rows.append(f"{LABELS[0]},{split:_<6}missing,0,10,{split}")
        if split == "train":
            (root / split / "zumba/broken_____0_000000_000010.mp4").write_bytes(b"no video")
            rows.append("zumba,broken_____0,0,10,train")
        (root / f"{split}.csv").write_text("\n".join(rows) + "\n")


def make_something(root) -> None:
    """The official json files and ID.webm, VP9; of the training clips one is missing and one is broken."""
    names = {template.replace("[", "").replace("]", ""): str(i) for i, template in enumerate(TEMPLATES)}
    (root / "videos").mkdir(parents=True)
    (root / "something-something-v2-labels.json").write_text(json.dumps(names))
    number = 0
    for split, count in COUNTS.items():
        rows = []
        for template in TEMPLATES * (count + (split == "train")):
            number += 1
            label = template.replace("[something]", "a cup")
            rows.append({"id": str(number), "label": label, "template": template, "placeholders": ["a cup"]})
            if number == 1:
                (root / "videos/1.webm").write_bytes(b"no video")
            elif number > 2:  # the second is missing
                write_webm(root / "videos" / f"{number}.webm", make_video(number))
        name = "validation" if split == "val" else split
        (root / f"something-something-v2-{name}.json").write_text(json.dumps(rows))


def commands(tmp_path) -> list[list[str]]:
    """The arguments of all commands of the guide, as bash reads them."""
    script = "\n".join([SHELL, *blocks_of("benchmarks.md", "bash")])
    bash = [shutil.which("bash"), "-euf", "-c", script]
    out = subprocess.run(bash, env={"PATH": ""}, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    return [command.split("\x1f")[:-1] for command in out.split("\x1e")[:-1]]


@pytest.mark.parametrize(("name", "make"), [("k400", make_kinetics), ("ssv2", make_something)])
def test_every_command_runs(name, make, tmp_path, tokenizer_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / name)
    small = "tokenizer={} data.size=32 data.batch_size=2 trainer.max_steps=2 trainer.warmup_steps=1 trainer.workers=0"
    settings = small.format(tokenizer_path).split()
    published = compose_config("finetune", [f"recipe={name}-attentive", "data.source=none"]).head
    head = {key: value for key, value in {"dim": 16, "depth": 1, "heads": 2}.items() if key in published}
    added = {
        "check": ["--workers", "1"],
        "extract": ["--model", tokenizer_path, "--size", "32", "--frames", "5", "--workers", "0"],
        "probe": [
            "--model", tokenizer_path, "--size", "32", "--protocol", "5xux4x1", "--classifier", "knn", "--folds", "0",
        ],
        "finetune": [*settings, "trainer.precision=fp32", *(f"head.{key}={value}" for key, value in head.items())],
        "compare": [
            *settings, "head=vivit-micro-factorized", "head_options={dim:16,depth:1,temporal_depth:1,heads:2}",
            "seeds=[0]", "data.protocol=5x1x1x1", "page.clips=2",
        ],
    }  # fmt: skip
    done = []
    for command in commands(tmp_path):
        if not any(name in argument for argument in command):
            continue
        verb = command[1] if command[0] == "eval" else command[0]
        # Missing and broken files are an exit status, unless `checked` leaves them out.
        has_bad = verb in ("check", "extract") and not any("validation" in a and name == "ssv2" for a in command[1:2])
        assert main([*command, *added[verb]]) == int(has_bad or (verb == "probe" and name == "k400")), command
        done.append(verb)
    assert done == ["check", "extract", "extract", "probe", "finetune", "compare"]
    compared = json.loads((tmp_path / f"runs/{name}-compare/result.json").read_text())
    tuned = json.loads((tmp_path / f"runs/{name}/result.json").read_text())
    assert (tmp_path / f"runs/{name}-compare/page.html").stat().st_size > 1000
    assert compared["n_used"] == tuned["n_used"] == 4 and compared["n_failed"] == tuned["n_failed"] == 0
    probed = json.loads((tmp_path / f"{name}/probe.json").read_text())
    # A clip of the validation set of Kinetics is missing; `checked` leaves out the bad ones of the other set.
    assert (probed["n_used"], probed["n_failed"]) == (4, int(name == "k400"))
    features = tmp_path / name / ("hidden" if name == "k400" else "train")
    train = {entry.id for entry in open_reader(features).entries if name == "ssv2" or entry.split == "train"}
    assert len(train) == 6 and len(read_failures(features, None)) == (3 if name == "k400" else 2)
