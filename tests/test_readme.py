"""The README is true: its Python runs, its commands are those of CI, its numbers are those of the result files."""

import json
import re
from pathlib import Path

import pytest

from vidtok.cli.main import VERBS
from vidtok.datasets import demo_clip, write_video
from vidtok.shipped import PRETRAINED

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SHIPPED = sorted(p.parent.name for p in PRETRAINED.glob("*/config.json"))


def test_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vidtok-demo").mkdir()
    write_video(tmp_path / "vidtok-demo" / "original.mp4", demo_clip(), 30)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        names = {}
        exec(block, names)
    assert list(names["ids"].shape) == [1, 9, 16, 16] and list(names["features"].shape) == [1, 256, 9, 16, 16]


def test_ci_runs_the_two_commands_letter_by_letter():
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    for command in ("pip install -e . && vidtok demo", "pip install -e '.[test]' && pytest"):
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
