"""Motion tasks in the commands that train and test heads and probes."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vidtok.cli.main import main
from vidtok.datasets import write_video
from vidtok.datasets.synthetic.motion import TASKS
from vidtok.eval.recognition.clips import ClipSource, Protocol
from vidtok.eval.recognition.finetuning import RecognitionTask
from vidtok.eval.recognition.inputs import same_task
from vidtok.eval.recognition.results import compare_results
from vidtok.heads import Head

HEAD = ["head=vivit-micro-factorized", "head_options={dim:16,depth:1,temporal_depth:1,heads:2}"]
STEPS = ["trainer.max_steps=1", "trainer.warmup_steps=1", "data.batch_size=4", "seeds=[0]", "page.clips=1"]
CLIPS = ["data.protocol=5x1x1x1", "data.size=32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for split, count in (("train", 3), ("val", 2)):
        (root / split).mkdir()
        for i in range(count):
            video = torch.rand(1, 3, 20, 40, 48, generator=torch.Generator().manual_seed(10 * count + i)) * 2 - 1
            write_video(root / split / f"{split}{i}.mp4", video, 25)
    return root


def test_heads_and_probes_on_a_motion_task(folder, tokenizer_path, tmp_path, capsys):
    run = tmp_path / "run"
    data = [f"data.source={folder}", "data.task=arrow", "data.train_clips=8", "data.val_clips=6", *CLIPS]
    command = [*data, *HEAD, *STEPS, "arms=[tokens,pixels]", f"tokenizer={tokenizer_path}", f"run={run}"]
    assert main(["eval", "compare", *command]) == 0
    result = json.loads((run / "result.json").read_text())
    assert result["data"]["task"] == "arrow" and result["data"]["classes"] == ["arrow/forward", "arrow/backward"]
    assert result["n_used"] == 6 and result["data"]["n_train"] == 8
    assert {clip["id"].split("#")[0] for clip in result["clips"]} == {"val/val0.mp4", "val/val1.mp4"}
    assert main(["eval", "compare", *command]) == 0  # resumes

    again = ["eval", "recognition", f"{run}/runs/tokens-0/model", str(folder), "--task", "arrow", "--clips", "6"]
    assert main([*again, "--model", tokenizer_path, "--json", str(tmp_path / "again.json")]) == 0
    found = json.loads((tmp_path / "again.json").read_text())
    assert found["results"][0]["top1"]["mean"] == pytest.approx(result["results"][0]["top1"]["mean"])

    probe = ["eval", "probe", str(folder), "--task", "arrow", "--input", "pixels", "--protocol", "5x1x1x1"]
    counts = ["--size", "32", "--train-clips", "12", "--test-clips", "6", "--model", tokenizer_path]
    assert main([*probe, *counts, "--json", str(tmp_path / "probe.json")]) == 0
    assert json.loads((tmp_path / "probe.json").read_text())["n_used"] == 6
    capsys.readouterr()


def test_one_head_of_all_tasks(folder, tokenizer_path, tmp_path, capsys):
    run = tmp_path / "run"
    data = [f"data.source={folder}", "data.task=all", "data.train_clips=14", "data.val_clips=28", *CLIPS]
    command = [*data, *HEAD, *STEPS, "arms=[tokens,pixels,frame]", f"tokenizer={tokenizer_path}", f"run={run}"]
    assert main(["eval", "compare", *command]) == 0
    result = json.loads((run / "result.json").read_text())
    control = Head.from_pretrained(run / "runs/frame-0/model").config
    assert control.grid[0] == 1 and control.protocol["middle_frame"] and control.tokenizer is None
    again = ["eval", "recognition", f"{run}/runs/frame-0/model", str(folder), "--task", "all", "--clips", "28"]
    assert main([*again, "--json", str(tmp_path / "again.json")]) == 0
    found = json.loads((tmp_path / "again.json").read_text())["results"][0]
    assert found["input"] == "frame" and found["top1"]["mean"] == pytest.approx(result["results"][-1]["top1"]["mean"])
    for clip in result["clips"]:  # a head chooses among the classes of a clip's own task
        for predicted in clip["predicted"].values():
            assert {name.split("/")[0] for name in predicted} == {clip["label"].split("/")[0]}
    for entry in result["results"]:
        assert list(entry["tasks"]) == list(TASKS)
        assert entry["top1"]["interval"] == "bootstrap over groups"
        assert np.mean([top1["mean"] for top1 in entry["tasks"].values()]) == pytest.approx(entry["top1"]["mean"])
    assert {task for pair in result["comparisons"] for task in pair["tasks"]} == {*TASKS}
    assert result["controls"]["majority"]["class"] == "most frequent of each task"
    assert "object-bounce: tokens " in capsys.readouterr().out

    probe = ["eval", "probe", str(folder), "--input", "pixels", "--protocol", "5x1x1x1", "--size", "32"]
    probe += ["--pool", "mean", "--model", tokenizer_path]
    counts = ["--task", "all", "--train-clips", "168", "--test-clips", "28"]
    assert main([*probe, *counts, "--json", str(tmp_path / "probe.json")]) == 0
    (whole,) = json.loads((tmp_path / "probe.json").read_text())["results"]
    assert len(whole["runs"][0]["chosen"]["C"]) == len(TASKS)
    counts = ["--task", "arrow", "--train-clips", "24", "--test-clips", "4"]
    assert main([*probe, *counts, "--json", str(tmp_path / "arrow.json")]) == 0
    both = [json.loads((tmp_path / name).read_text()) for name in ("probe.json", "arrow.json")]
    of_all, alone = ({clip["id"]: clip["predicted"] for clip in result["clips"]} for result in both)
    assert len(alone) == 4 and alone.items() <= of_all.items()
    for clip in both[0]["clips"]:
        assert clip["predicted"]["pixels, mean, logistic"][0].split("/")[0] == clip["label"].split("/")[0]
    assert main([*probe, "--task", "all", "--train-clips", "14", "--test-clips", "7"]) == 1
    assert "2 training clips are too few, or all of one class: give more" in capsys.readouterr().err
    assert main(["eval", "probe", str(folder), "--precision", "bf16"]) == 1
    assert "precision is for i3d and frames" in capsys.readouterr().err
    with pytest.raises(ValueError, match="can't be mixed"):
        RecognitionTask(4, cutmix=1.0, asked=same_task(["arrow/forward", "arrow/backward", "speed/1x", "speed/2x"]))


def test_the_loss_of_several_tasks_is_that_of_each_alone():
    classes = ["arrow/forward", "arrow/backward", "speed/1x", "speed/2x", "speed/4x"]
    assert same_task(classes[:2]) is None and same_task(["a/b", "c/d"]) is None and same_task(None) is None
    task = RecognitionTask(5, smoothing=0.1, asked=same_task(classes))
    logits, labels = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 4])
    loss, terms, _ = task.terms(torch.nn.Identity(), (logits, labels), 0)
    alone = [
        F.cross_entropy(logits[:1, :2], torch.tensor([1]), label_smoothing=0.1),
        F.cross_entropy(logits[1:, 2:], torch.tensor([2]), label_smoothing=0.1),
    ]
    assert loss is terms["cross_entropy"]
    torch.testing.assert_close(loss, sum(alone) / 2)


def test_results_of_the_same_clips_are_compared_file_by_file():
    def result(right: list[list[bool]]) -> dict:
        predicted = [["right" if each else "wrong" for each in seeds] for seeds in right]
        clips = [{"id": f"{i // 2}.mp4#arrow-{i}", "predicted": {"tokens": p}} for i, p in enumerate(predicted)]
        return {"data": {"task": "arrow"}, "clips": [{**clip, "label": "right"} for clip in clips]}

    ours, theirs = result([[True, True]] * 8), result([[True, False], [False, False]] * 4)
    found = compare_results(ours, theirs, "tokens")
    assert found["difference"]["value"] == 0.75 and found["ratio"]["value"] == 4
    assert "over groups" in found["method"]
    assert "over clips" in compare_results({**ours, "data": {}}, theirs, "tokens")["method"]
    with pytest.raises(ValueError, match="other test clips"):
        compare_results(ours, {**theirs, "clips": theirs["clips"][1:]}, "tokens")
    renamed = {
        **theirs,
        "clips": [{**clip, "predicted": {"i3d": clip["predicted"]["tokens"]}} for clip in theirs["clips"]],
    }
    assert compare_results(ours, renamed, "tokens", "i3d")["difference"]["value"] == 0.75
    with pytest.raises(ValueError, match="no entry 'token' in a result: did you mean 'tokens'"):
        compare_results(ours, theirs, "token")


def test_settings_that_don_t_fit_motion_tasks(folder):
    source = ClipSource(str(folder), task="arrow", clips=4)
    assert source.groups(["val/a.mp4#arrow-3", "val/a.mp4#arrow-4"]) == ["val/a.mp4", "val/a.mp4"]
    source.validate_disjoint("train", source, "val")
    with pytest.raises(ValueError, match="FRAMESxSTRIDEx1x1, not 5xux1x1"):
        source.open("val", Protocol(5, None, size=32))
    with pytest.raises(ValueError, match="group_column=lab has no effect"):
        ClipSource(str(folder), task="arrow", group_column="lab").open("val", Protocol(5, 1))
