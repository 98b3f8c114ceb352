"""The published measurements: each runs once, a stopped or failed one runs again, and results go to their places."""

import json

import pytest

from vidtok.errors import UserError
from vidtok.eval.report.__main__ import CHECKOUT, main
from vidtok.eval.report.measurements import (
    Measurement,
    load_measurements,
    publish,
    run_measurements,
    shipped_weights,
)

COUNT = Measurement(
    "count",
    'echo run >> runs; wc -l < runs > n; cat data/word; echo \'{"n": 1, "clips": []}\' > out.json; vidtok --version\n',
    2,
    inputs=["data"],
    publish={"out.json": "results/count.json", "n": "n.txt"},
    without=["clips"],
)


@pytest.fixture
def source(tmp_path):
    (tmp_path / "in/data").mkdir(parents=True)
    (tmp_path / "in/data/word").write_text("hello\n")
    return tmp_path / "in"


def test_runs_once_and_publishes(tmp_path, source):
    lines = []
    out = tmp_path / "out"
    assert run_measurements([COUNT], [tmp_path, source], out, lines.append) == []
    assert run_measurements([COUNT], [source], out, lines.append) == []
    assert (out / "count/runs").read_text() == "run\n"
    assert "0 of 1 to do, about 0 minutes" in lines
    printed = (out / "count/log.txt").read_text().splitlines()
    assert printed[0] == "hello" and printed[1].startswith("vidtok ")
    (tmp_path / "repo/results").mkdir(parents=True)
    assert len(publish([COUNT], out, tmp_path / "repo")) == 2
    assert json.loads((tmp_path / "repo/results/count.json").read_text()) == {"n": 1}
    assert (tmp_path / "repo/n.txt").read_text().strip() == "1"


def test_a_failure_is_named_and_keeps_no_other_from_running(tmp_path, source):
    failing = Measurement("failing", "false\necho unreached\n", 1)
    asks = Measurement("asks", "vidtok info no-such-thing\n", 1)
    lines = []
    assert run_measurements([failing, asks, COUNT], [source], tmp_path / "out", lines.append) == ["failing", "asks"]
    assert "failing: failed with status 1: no output" in lines
    assert any(line.startswith("asks: failed with status") and "no-such-thing" in line for line in lines)
    mended = [Measurement("failing", "true\n", 1), COUNT]
    assert run_measurements(mended, [source], tmp_path / "out", lines.append) == []
    assert (tmp_path / "out/count/runs").read_text() == "run\n"
    assert publish([asks], tmp_path / "out", tmp_path) == []


def test_links_of_a_stopped_call_follow_the_folders(tmp_path, source):
    """Data that has moved since, and another folder of the same name that is given first now."""
    failing = Measurement("count", "cat data/word\nfalse\n", 1, inputs=["data"])
    run_measurements([failing], [source], tmp_path / "out", print)
    source.rename(tmp_path / "moved")
    run_measurements([failing], [tmp_path / "moved"], tmp_path / "out", print)
    (tmp_path / "other/data").mkdir(parents=True)
    (tmp_path / "other/data/word").write_text("other\n")
    run_measurements([failing], [tmp_path / "other", tmp_path / "moved"], tmp_path / "out", print)
    assert (tmp_path / "out/count/log.txt").read_text().split() == ["hello", "hello", "other"]


def test_results_of_other_weights_are_refused(tmp_path, monkeypatch):
    pretrained = tmp_path / "vidtok/pretrained"
    (pretrained / "a").mkdir(parents=True)
    (pretrained / "a/model.safetensors").write_text("tokenizer")
    (pretrained / "a/prior.safetensors").write_text("old")
    monkeypatch.setattr("vidtok.eval.report.measurements.PRETRAINED", pretrained)
    trains = Measurement(
        "trains", "echo new > p.safetensors\n", 1, publish={"p.safetensors": "vidtok/pretrained/a/prior.safetensors"}
    )
    uses = Measurement("uses", "true\n", 1, weights="*/*.safetensors")
    out = tmp_path / "out"
    run_measurements([trains, uses], [], out, print)
    publish([trains], out, tmp_path)
    assert (pretrained / "a/prior.safetensors").read_text() == "new\n"
    run_measurements([trains], [], out, print)
    with pytest.raises(UserError, match="uses holds results of other weights: remove that folder"):
        run_measurements([uses], [], out, print)
    (pretrained / "a/model.safetensors").write_text("other")
    with pytest.raises(UserError, match="trains holds results of other weights"):
        run_measurements([trains], [], out, print)


def test_other_commands_or_missing_inputs_are_refused_before_anything_runs(tmp_path, source):
    run_measurements([COUNT], [source], tmp_path / "out", print)
    other = Measurement("count", "true\n", 1)
    with pytest.raises(UserError, match="results of other commands: remove that folder"):
        run_measurements([other], [], tmp_path / "out")
    first = Measurement("first", "touch ran\n", 1)
    with pytest.raises(UserError, match="count reads data, which isn't in"):
        run_measurements([first, COUNT], [tmp_path / "nothing"], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_list_is_whole():
    measurements = load_measurements()
    places = [place for each in measurements for place in each.publish.values()]
    assert len(places) == len(set(places))
    for place in places:
        assert (CHECKOUT / place).parent.is_dir(), place
    assert sum(each.minutes for each in measurements) <= 12 * 60
    for each in measurements:
        assert all(name in each.commands for name in each.inputs), each.name
    (tokens,) = (each for each in measurements if "--tokens" in each.commands)
    assert list(tokens.publish) == ["out/tokens.json"]  # the file that `compare_entropy` writes
    (prior,) = (each for each in measurements if each.name == "prior")
    assert set(prior.publish.values()) <= shipped_weights(tokens).keys()  # it codes with the priors


def test_command_line(tmp_path, capsys):
    assert main(["list", "--only", "probes"]) == 0
    assert capsys.readouterr().out.startswith("probes, about 20 minutes; reads rt1, rt1.csv")
    assert main(["all", str(tmp_path), "-o", str(tmp_path / "out"), "--only", "probs"]) == 1
    assert "no measurement 'probs': did you mean 'probes'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["all", str(tmp_path)])
