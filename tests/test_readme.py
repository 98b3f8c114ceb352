"""The README is short, lists every command, and its two commands are those of CI; see test_docs for its code."""

from pathlib import Path

from vidtok.cli.main import VERBS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_it_is_short():
    assert len(README.splitlines()) <= 200


def test_ci_runs_the_two_commands_letter_by_letter():
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    for command in ("pip install -e . && vidtok demo", "pip install -e '.[test]' && pytest -n 2 --dist loadfile"):
        assert command in README.splitlines() and command in script


def test_every_command_is_listed():
    for verb in VERBS:
        assert f"| `vidtok {verb}" in README
