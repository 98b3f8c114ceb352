"""vidtok eval finetune, recognition, compare, probe and agreement, on small files and a tiny tokenizer."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from vidtok.cli.main import main
from vidtok.configs.compose import compose_config, to_dict
from vidtok.datasets import write_video
from vidtok.errors import UserError
from vidtok.eval import recognition
from vidtok.eval.recognition.clips import ClipSource, Protocol, build_protocol, load_clips, load_views, repeated_folds
from vidtok.eval.recognition.comparison import arm_settings, build_comparison, build_heads
from vidtok.eval.recognition.data import DataOptions, LabeledBatches, MemorySource, VideoSource, video_head_data
from vidtok.eval.recognition.features import FeatureFiles, validate_clips
from vidtok.eval.recognition.finetuning import RecognitionTask, read_best
from vidtok.eval.recognition.inputs import (
    INPUTS,
    InputEncoder,
    Predictions,
    center_crop_grid,
    encode_all,
    group_segments,
    shuffle_frames,
    unpack,
)
from vidtok.eval.recognition.probing import fit_path
from vidtok.eval.report import markdown
from vidtok.extraction.sources import plan_sources
from vidtok.files import write_json
from vidtok.heads import Head, create_head
from vidtok.hub import hash_file
from vidtok.tokenizer import VideoTokenizer
from vidtok.train.perceptual import LogitDistance
from vidtok.train.run_folder import RunFolder

CLASSES = ("bright", "dark", "rising")
TINY = ["head=vivit-micro-factorized", "head_options={dim: 16, depth: 1, temporal_depth: 1, heads: 2}"]
TINY += ["data.protocol=5x2x1x1", "data.size=32", "data.batch_size=4", "trainer.workers=0", "trainer.log_seconds=1000"]


def make_clip(kind: str, seed: int):
    """Brightness tells two of the classes, its change the third: float [1,3,12,32,40]."""
    rng = np.random.default_rng([seed, CLASSES.index(kind)])
    level = {"bright": np.full(12, 0.5), "dark": np.full(12, -0.5), "rising": np.linspace(-0.5, 0.5, 12)}[kind]
    noise = rng.normal(0, 0.1, (1, 3, 12, 32, 40))
    return torch.from_numpy(level[None, None, :, None, None] + noise).float().clamp(-1, 1)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path):
    return VideoTokenizer.from_pretrained(tokenizer_path)


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    """Annotations as those of the project's own sets: path, label, lab, split; 4 + 2 clips of each class."""
    folder = tmp_path_factory.mktemp("videos")
    rows = ["path,label,lab,split"]
    for kind in CLASSES:
        for seed in range(6):
            name = f"{kind}-{seed}.mp4"
            write_video(folder / name, make_clip(kind, seed), fps=10)
            rows.append(f"{name},{kind},lab{seed % 2},{'val' if seed > 3 else 'train'}")
    (folder / "clips.csv").write_text("\n".join(rows) + "\n")
    return folder / "clips.csv"


@pytest.fixture(scope="module")
def damaged(csv):
    """The same with a video in the validation that is none."""
    (csv.parent / "broken.mp4").write_bytes(b"no video")
    other = csv.parent / "damaged.csv"
    other.write_text(csv.read_text() + "broken.mp4,dark,lab0,val\n")
    return other


def run(capsys, *args, status=0):
    capsys.readouterr()
    assert main([str(a) for a in args]) == status
    return capsys.readouterr()


def fails(capsys, *args) -> str:
    """A command that must end in one line on stderr; the line."""
    lines = run(capsys, *args, status=1).err.strip().splitlines()
    assert lines[-1].startswith("vidtok: ")
    return lines[-1]


def finetune(csv, tokenizer_path, folder, *more):
    data = [f"data.source={csv}", f"tokenizer={tokenizer_path}", f"run={folder}", "trainer.max_steps=2"]
    return ["eval", "finetune", *data, *TINY, *more]


@pytest.fixture(scope="module")
def trained(csv, tokenizer_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert main(finetune(csv, tokenizer_path, folder, "input=tokens", "data.select=0.25")) == 0
    return folder


# --------------------------------------------------------------------- inputs


@pytest.mark.parametrize("kind", INPUTS)
def test_inputs_are_what_the_tokenizer_gives(kind, tokenizer):
    video = ((torch.cat([make_clip("rising", 0), make_clip("dark", 1)])[:, :, :5, :, :32] + 1) * 127.5).round().byte()
    encoder = InputEncoder(kind, tokenizer)
    x = encoder(video)
    assert x.shape[0] == 2 and encoder.head_input == ("pixels" if kind in ("recon", "frame") else kind)
    kept = unpack(encode_all(encoder, video[:, None])[:, 0])
    assert kept.dtype == x.dtype
    assert torch.equal(kept, x)  # from memory or not, it is the same
    if kind == "frame":
        assert torch.equal(x, video[:, :, 2:3] / 127.5 - 1)
    elif kind not in ("pixels", "recon"):
        own = {"latents": tokenizer.encode_latents, "hidden": tokenizer.forward_features}.get(kind, tokenizer.encode)
        torch.testing.assert_close(x, own(video / 127.5 - 1), rtol=2e-3, atol=2e-3)


def test_crops_of_the_grid_are_the_same_for_pixels_and_tokens():
    cells = torch.arange(36).view(1, 1, 1, 6, 6).expand(4, 1, 1, 6, 6)
    pixels = cells.repeat_interleave(8, 3).repeat_interleave(8, 4)
    labels = np.zeros(4, dtype=int)
    ids, large = MemorySource(cells, labels, grid_crop=3), MemorySource(pixels, labels, grid_crop=3, unit=8)
    places = {int(ids.draw(0, epoch)[0][0, 0, 0]) for epoch in range(40)}
    assert len(places) > 8  # of 16
    for epoch in range(3):
        assert torch.equal(ids.draw(1, epoch)[0], large.draw(1, epoch)[0][..., ::8, ::8])
    assert torch.equal(center_crop_grid(cells, 4, 1), center_crop_grid(pixels, 4, 8)[..., ::8, ::8])


@pytest.mark.parametrize("kind", ["tokens", "hidden"])
def test_a_loop_in_bf16_trains_on_the_tokens_that_are_tested(kind, tokenizer):
    encoder, video = InputEncoder(kind, tokenizer), make_clip("rising", 0)[:, :, :5, :, :32]
    expected = encoder(video)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder(video), expected)


def test_shuffled_frames_are_the_same_frames():
    video, ids = torch.arange(6.0).view(1, 1, 1, 6, 1, 1).expand(5, 2, 3, 6, 2, 2), list("abcde")
    shuffled = shuffle_frames(video, ids)
    orders = shuffled[:, 0, 0, :, 0, 0]
    assert torch.equal(orders.sort(1).values, video[:, 0, 0, :, 0, 0]) and len(orders.unique(dim=0)) > 1
    assert (orders != torch.arange(6.0)).any(1).all() and torch.equal(shuffled[:, 0], shuffled[:, 1])
    assert torch.equal(shuffled[2:], shuffle_frames(video[2:], ids[2:]))


# -------------------------------------------------------------------- batches


def test_batches_follow_from_seed_and_number(csv):
    def source():
        return VideoSource(ClipSource(str(csv)).open("train", Protocol(5, 1, size=32), training=True, seed=1))

    batches = LabeledBatches(source(), batch_size=5, seed=3)
    rows = [batches[i] for i in range(6)]  # two and a half epochs of 12
    again = LabeledBatches(source(), batch_size=5, seed=3)
    loader = again.loader(start=4)
    for number in (4, 5):
        x, labels = next(loader)
        assert torch.equal(x, rows[number][0]) and torch.equal(labels, rows[number][1])
    for i in range(5):
        x, labels = next(again.loader(start=1, shard=(i, 5)))
        assert torch.equal(x[0], rows[1][0][i]) and labels.item() == rows[1][1][i]
    first = torch.cat([labels for _, labels in rows])[:12]
    assert torch.bincount(first).tolist() == [4, 4, 4]
    assert not torch.equal(rows[0][0], batches[3][0])


def test_what_takes_the_place_of_a_bad_video_has_its_own_label(csv):
    listed = csv.parent / "bad-first.csv"
    (csv.parent / "none.mp4").write_bytes(b"no video")
    listed.write_text("path,label,split\nnone.mp4,dark,train\nrising-0.mp4,rising,train\n")
    dataset = ClipSource(str(listed)).open("train", Protocol(5, 1, size=32), training=True)
    x, labels = LabeledBatches(VideoSource(dataset), batch_size=2)[0]
    assert torch.equal(labels, torch.full((2,), dataset.classes.index("rising"))) and x.shape[0] == 2
    assert VideoSource(dataset).summary()


def test_mixing_is_repeatable_and_keeps_the_shares():
    task = RecognitionTask(3, cutmix=1.0)
    ids = torch.arange(8).view(8, 1, 1, 1).expand(8, 2, 6, 6).contiguous()
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    torch.manual_seed(0)
    x, targets = task._mixed(ids, labels, 0)
    torch.manual_seed(0)
    assert torch.equal(task._mixed(ids, labels, 0)[0], x)
    share = (x[0] == ids[0]).float().mean()
    assert 0 < share < 1 and targets.sum(1) == pytest.approx(1)
    assert targets[0, 0] == pytest.approx(share.item(), abs=1e-5)  # the partner of the first is the last, of class 1
    assert set(x[0].unique().tolist()) == {0, 7}
    with pytest.raises(ValueError, match="can't be averaged"):
        RecognitionTask(3, mixup=0.2)._mixed(ids, labels, 0)
    with pytest.raises(ValueError, match="7 is odd"):
        task._mixed(ids[:7], labels[:7], 0)


# ------------------------------------------------------------------- finetune


@pytest.mark.parametrize("kind", ["codes", "latents", "hidden", "pixels", "recon"])
def test_every_input_trains_and_is_tested(capsys, csv, tokenizer_path, tmp_path, kind):
    run(capsys, *finetune(csv, tokenizer_path, tmp_path, f"input={kind}", "data.in_memory=true", "data.select=0"))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["schema"] == "vidtok.recognition/1" and result["kind"] == "finetune"
    (entry,) = result["results"]
    assert entry["input"] == kind and entry["shuffled_frames"] and entry["runs"][0]["steps"] == 2
    assert (result["tokenizer"] is None) == (kind == "pixels")
    assert entry["runs"][0]["chosen"] == "last" and result["n_used"] == 6 and result["data"]["n_train"] == 12
    assert result["protocol"]["name"] == "5x2x1x1" and result["controls"]["majority"]["top1"]["value"] == 2 / 6


def test_the_checkpoint_is_chosen_on_a_part_of_training(trained):
    run = json.loads((trained / "result.json").read_text())["results"][0]["runs"][0]
    assert run["chosen"]["step"] == 2 and run["head"]["weight_hash"]
    head = Head.from_pretrained(trained / "best")
    assert head.config.classes == list(CLASSES) and head.config.tokenizer["name"] == "tiny"
    assert Protocol.of_head(head.config.protocol) == Protocol(5, 2, size=32)


def test_it_learns_brightness(capsys, csv, tokenizer_path, tmp_path):
    more = ["input=pixels", "data.in_memory=true", "data.select=0", "trainer.max_steps=60", "trainer.warmup_steps=5"]
    run(capsys, *finetune(csv, tokenizer_path, tmp_path, *more, "optimizer.lr=3e-3", "trainer.ema_decay=0.9"))
    assert json.loads((tmp_path / "result.json").read_text())["results"][0]["top1"]["mean"] == 1
    out = run(capsys, "eval", "recognition", tmp_path / "model", csv, "--recon", "--json", tmp_path / "r.json").out
    assert "6 of 6 clips used" in out
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["results"][0]["tested_on"] == "recon" and result["tokenizer"]["name"] == "vidtok-t"


def test_a_finished_run_says_what_it_was_trained_with(capsys, csv, trained, tokenizer_path):
    before = (trained / "config.yaml").read_text()
    again = finetune(csv, tokenizer_path, trained, "input=tokens", "data.select=0.25")
    assert "done at step 2" in run(capsys, *again, "optimizer.lr=0.5").out
    for other in ("optimizer.weight_decay=0.5", "task.smoothing=0.2"):
        assert f"was filled with another {other.split('.')[0]} (" in fails(capsys, *again, other)
    assert (trained / "config.yaml").read_text() == before
    assert json.loads((trained / "result.json").read_text())["config"]["optimizer"]["lr"] != 0.5


def test_a_training_video_that_fails_is_counted(capsys, damaged, tokenizer_path, tmp_path):
    other = damaged.parent / "damaged-train.csv"
    other.write_text(damaged.read_text().replace("lab0,val\n", "lab0,train\n") + "dark-5.mp4,dark,lab1,val\n")
    rows = [line for line in other.read_text().splitlines() if not line.startswith("dark-5") or "val" in line]
    other.write_text("\n".join(dict.fromkeys(rows)) + "\n")
    out = run(capsys, *finetune(other, tokenizer_path, tmp_path, "data.in_memory=true", "data.select=0")).out
    data = json.loads((tmp_path / "result.json").read_text())["data"]
    assert [failure["name"].endswith("broken.mp4") for failure in data["train_failures"]] == [True]
    assert f"trained on {data['n_train']} clips, 1 more could not be read" in out


@pytest.mark.parametrize("kind", ["tokens", "pixels", "recon"])
def test_crops_of_the_grid_go_with_the_head(capsys, csv, tokenizer_path, tmp_path, kind):
    command = finetune(csv, tokenizer_path, tmp_path, f"input={kind}", "data.in_memory=true", "data.select=0")
    run(capsys, *command, "data.grid_crop=2", "trainer.max_steps=8", "optimizer.lr=1e-2", "trainer.ema_decay=0")
    elsewhere = ["eval", "recognition", tmp_path / "model", csv, "--model", tokenizer_path]
    run(capsys, *elsewhere, "--json", tmp_path / "r.json")
    there, here = (json.loads((tmp_path / name).read_text()) for name in ("result.json", "r.json"))
    for a, b in zip(there["clips"], here["clips"], strict=True):
        (own,), (other,) = a["predicted"].values(), b["predicted"].values()
        assert own == other
    head = Head.from_pretrained(tmp_path / "model")
    assert head.config.protocol["grid_crop"] == 2
    with pytest.raises(ValueError, match="sees crops of 2 x 2 cells"):
        head.validate_uncropped()


def test_a_test_of_many_views_goes_in_small_parts(csv, tokenizer, monkeypatch):
    seen = []
    monkeypatch.setattr("vidtok.eval.recognition.data.TESTED_CLIPS", 6)
    source, options = ClipSource(str(csv)), DataOptions(batch_size=512)
    encoder = InputEncoder("tokens", tokenizer)
    found = video_head_data(source, source, Protocol(5, 1, 2, size=32), encoder, options)
    head = create_head("linear", "tokens", 3, (2, 4, 4), bits=tokenizer.bits)
    head.register_forward_pre_hook(lambda module, x: seen.append(len(x[0])))
    assert len(found.test(head.eval()).ids) == 6 and seen == [6, 6]  # three videos of two views at a time


def test_a_run_resumes_exactly(capsys, csv, tokenizer_path, tmp_path):
    more = ["input=tokens", "data.select=0.25", "task.cutmix=1.0", "trainer.warmup_steps=1", "trainer.save_steps=3"]
    run(capsys, *finetune(csv, tokenizer_path, tmp_path / "whole", *more, "trainer.max_steps=4"))
    # The rate follows the share done, so that a run that is to be gone on with knows its end: stop it by a signal.
    once = iter([False, False, True])
    from vidtok.train.state import StopSignal

    class Stop(StopSignal):
        requested = property(lambda self: next(once, True), lambda self, value: None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vidtok.eval.recognition.finetuning.StopSignal", Stop)
        run(capsys, *finetune(csv, tokenizer_path, tmp_path / "parts", *more, "trainer.max_steps=4"))
    assert torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["step"] == 2
    assert not (tmp_path / "parts" / "result.json").exists()
    assert not (tmp_path / "parts" / "best").exists()  # a stop is no candidate: steps 3 and 4 are
    run(capsys, *finetune(csv, tokenizer_path, tmp_path / "parts", *more, "trainer.max_steps=4"))
    for kind in ("model", "best"):
        weights = [load_file(tmp_path / name / kind / "model.safetensors") for name in ("whole", "parts")]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    chosen = [(tmp_path / name / "best" / "chosen.json").read_text() for name in ("whole", "parts")]
    assert chosen[0] == chosen[1]


def test_the_best_of_the_candidates_is_kept(tmp_path, tokenizer):
    head = create_head("linear", "codes", 2, (2, 4, 4), bits=tokenizer.bits)
    right = iter([0.6, 0.9, 0.8])

    def select(_):
        own = next(right)
        return Predictions(np.array([[own, 1 - own], [1 - own, own]]), np.array([0, 1]), ["a", "b"], [])

    run = RunFolder(tmp_path)
    run.open("")
    task = RecognitionTask(2, select=select, may_choose=lambda step: step % 5 == 0)
    for step in (5, 7, 10, 15):
        assert (task.validate(head, run, step) is None) == (step == 7)
    assert read_best(tmp_path)["step"] == 10


def test_layer_decay_reaches_the_rates(capsys, csv, tokenizer_path, tmp_path):
    more = ["input=pixels", "data.in_memory=true", "data.select=0", "optimizer.layer_decay=0.5"]
    run(capsys, *finetune(csv, tokenizer_path, tmp_path, *more))
    groups = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["optimizer"]["param_groups"]
    assert {group["lr_scale"] for group in groups} == {0.125, 0.25, 0.5, 1.0}
    peak = max(group["lr"] for group in groups)
    assert peak > 0 and all(group["lr"] == pytest.approx(peak * group["lr_scale"]) for group in groups)


def test_nan_leaves_the_last_good_checkpoint(capsys, csv, tokenizer_path, tmp_path):
    command = finetune(csv, tokenizer_path, tmp_path, "input=pixels", "data.in_memory=true", "data.select=0")
    run(capsys, *command)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    bad = [*command, "trainer.max_steps=9", "optimizer.lr=1e38", "trainer.warmup_steps=0", "trainer.clip_norm=1e30"]
    assert "not finite at step" in fails(capsys, *bad)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


# ---------------------------------------------------------------- recognition


def test_batches_and_workers_do_not_change_a_result(capsys, csv, trained, tokenizer_path, tmp_path):
    results = []
    for number, more in enumerate((["--batch-size", 1], ["--batch-size", 4, "--workers", 2])):
        out = tmp_path / f"{number}.json"
        command = ["eval", "recognition", trained / "best", csv, "--model", tokenizer_path, "--json", out, *more]
        assert "5x2x1x1" in run(capsys, *command).out
        results.append(json.loads(out.read_text()))
    assert results[0]["clips"] == results[1]["clips"] and results[0]["results"] == results[1]["results"]
    chosen = json.loads((trained / "result.json").read_text())
    assert results[0]["clips"][0]["predicted"] == chosen["clips"][0]["predicted"]
    assert results[0]["results"][0]["top1"] == chosen["results"][0]["top1"]
    assert results[0]["results"][0]["shuffled_frames"] == chosen["results"][0]["shuffled_frames"]
    assert results[0]["controls"] == chosen["controls"] and results[0]["data"]["n_train"] == 9


def test_several_views_are_averaged(capsys, csv, trained, tokenizer_path, tmp_path):
    command = ["eval", "recognition", trained / "best", csv, "--model", tokenizer_path, "--protocol", "5x2x2x3"]
    assert "protocol 5x2x2x3" in run(capsys, *command, "--json", tmp_path / "r.json").out
    assert json.loads((tmp_path / "r.json").read_text())["protocol"]["segments"] == 2


def test_clips_are_seen_together_where_they_are_concatenated(capsys, csv, tokenizer_path, tmp_path):
    more = ["head=attentive", "head_options=null", "input=latents", "data.select=0", "data.protocol=5x2x2x3"]
    run(capsys, *finetune(csv, tokenizer_path, tmp_path / "run", "data.concat_segments=true", *more))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["protocol"]["views"] == "probabilities averaged over crops, segments seen at once"
    head = Head.from_pretrained(tmp_path / "run" / "model")
    assert head.config.grid == (2 * 2, 4, 4)  # both clips' latents, one after the other
    command = ["eval", "recognition", tmp_path / "run" / "model", csv, "--model", tokenizer_path]
    run(capsys, *command, "--json", tmp_path / "r.json")
    again = json.loads((tmp_path / "r.json").read_text())
    name = again["results"][0]["name"]
    assert [clip["predicted"][name] for clip in again["clips"]] == [c["predicted"][name] for c in result["clips"]]
    clip = csv.parent / "dark-5.mp4"
    out = run(capsys, "recognize", clip, "--head", tmp_path / "run" / "model", "--model", tokenizer_path, "--json").out
    assert json.loads(out)["labels"][0]["label"] in again["clips"][3]["predicted"][name]
    more.append("data.concat_segments=true")
    for wrong in ("data.in_memory=true", "input=pixels"):
        assert "concatenated" in fails(capsys, *finetune(csv, tokenizer_path, tmp_path, *more, wrong))


def test_concatenated_views_are_the_segments_of_one_crop(tokenizer):
    video = torch.stack([make_clip("rising", seed)[0, :, :5, :, :32] for seed in range(6)])  # 2 segments x 3 crops
    encoder, single = InputEncoder("hidden", tokenizer, concat_segments=2), InputEncoder("hidden", tokenizer)
    x = encoder(group_segments(video[None], 2)[0])
    assert x.shape[0] == 3
    for crop in range(3):
        expected = torch.cat([single(video[[segment * 3 + crop]]) for segment in range(2)], 2)
        torch.testing.assert_close(x[[crop]], expected, rtol=2e-3, atol=1e-3)
    ids = InputEncoder("tokens", tokenizer, concat_segments=2)(video.unflatten(0, (3, 2)))
    assert torch.equal(ids, InputEncoder("tokens", tokenizer)(video).unflatten(0, (3, 2)).flatten(1, 2))


def test_a_video_that_fails_is_counted(capsys, damaged, trained, tokenizer_path, tmp_path):
    command = ["eval", "recognition", trained / "best", damaged, "--model", tokenizer_path]
    out = run(capsys, *command, "--json", tmp_path / "r.json", status=1).out
    assert "6 of 7 clips used, 1 failed" in out and "broken.mp4" in out
    (entry,) = json.loads((tmp_path / "r.json").read_text())["results"]
    row = entry["runs"][0]
    assert row["top1_of_total"]["value"] == pytest.approx(row["top1"]["value"] * 6 / 7)
    assert entry["shuffled_frames"] is not None
    share = f"{entry['name']} {100 * row['top1_of_total']['value']:.1f}"
    assert f"of all 7 clips, the failed ones being wrong: {share}" in out
    assert json.loads((tmp_path / "r.json").read_text())["controls"]["majority"]["n_failed"] == 1


def test_errors_are_one_clear_line(capsys, csv, trained, tokenizer_path, tmp_path):
    head = ["eval", "recognition", trained / "best"]
    assert "no split 'test'" in fails(capsys, *head, csv, "--split", "test", "--model", tokenizer_path)
    assert "of tokenizer 'tiny'" in fails(capsys, *head, csv, "--model", "vidtok-t")
    other = csv.parent / "other.csv"
    other.write_text(csv.read_text().replace("dark", "gloomy"))
    assert "not among the classes: gloomy" in fails(capsys, *head, other, "--model", tokenizer_path)
    assert "--recon is for heads of pixels" in fails(capsys, *head, csv, "--model", tokenizer_path, "--recon")
    assert "protocol '17x4'" in fails(capsys, *head, csv, "--model", tokenizer_path, "--protocol", "17x4")
    both = csv.parent / "both.csv"
    both.write_text(csv.read_text() + "dark-0.mp4,dark,lab0,val\n")
    assert "in training and validation" in fails(capsys, *finetune(both, tokenizer_path, tmp_path))
    digits = ["data.source=digits", "data.protocol=5x1x1x1", "data.train_split=val"]
    assert "the same digits" in fails(capsys, *finetune(both, tokenizer_path, tmp_path, *digits))
    assert "did you mean 'input'" in fails(capsys, *finetune(csv, tokenizer_path, tmp_path, "inputs=pixels"))
    assert "unknown input 'pixel'" in fails(capsys, *finetune(csv, tokenizer_path, tmp_path, "input=pixel"))
    for mixing, message in (
        (["task.mixup=0.5"], "can't be averaged"),
        (["input=pixels", "task.mixup=0.5", "data.batch_size=3"], "3 is odd"),
        (["data.val_features=x"], "goes with data.features"),
    ):
        assert message in fails(capsys, *finetune(csv, tokenizer_path, tmp_path / "held", *mixing))
    assert not (tmp_path / "held").exists()  # so that the mended command can run there
    no_labels = fails(capsys, *finetune(csv, tokenizer_path, tmp_path, "data.label_column=verb"))
    assert "there is no column 'verb'" in no_labels


# -------------------------------------------------------------------- compare


@pytest.fixture(scope="module")
def comparison(damaged, tokenizer_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    command = ["eval", "compare", f"data.source={damaged}", f"tokenizer={tokenizer_path}", f"run={folder}", *TINY]
    command += ["arms=[tokens,codes,pixels,recon]", "seeds=[0,1]", "trainer.max_steps=2", "page.clips=3"]
    assert main(command) == 1  # one video is damaged
    return folder, command


def test_all_arms_on_the_same_clips(comparison):
    folder, _ = comparison
    result = json.loads((folder / "result.json").read_text())
    names = [entry["name"] for entry in result["results"]]
    assert names == ["tokens", "codes", "pixels", "pixels on recon", "recon"]
    assert all(len(entry["runs"]) == 2 and entry["runs"][0]["n_failed"] == 1 for entry in result["results"])
    assert all(entry["shuffled_frames"]["seeds"] == 2 for entry in result["results"])
    assert [pair["ours"] for pair in result["comparisons"]] == ["tokens", "codes", "pixels on recon", "recon"]
    assert set(result["clips"][0]["predicted"]) == set(names)
    costs = result["costs"]
    assert costs["bytes_per_clip"]["tokens"] == 18 * 2 * 4 * 4 / 8
    assert costs["bytes_per_clip"]["frames_uint8"] == 3 * 5 * 32 * 32
    assert costs["clips_per_second"]["ratio"] > 0 and set(costs["trained_per_second"]) == {*names} - {"pixels on recon"}
    assert result["provenance"]["versions"]["vidtok"] and result["tokenizer"]["name"] == "tiny"


@pytest.mark.parametrize("arm", ["tokens", "pixels", "recon"])
def test_the_head_of_an_arm_does_elsewhere_what_it_did_there(
    capsys, comparison, damaged, tokenizer_path, tmp_path, arm
):
    """On a csv that calls the same clips "test"; a head that was trained on reconstructions is tested on them."""
    folder, _ = comparison
    rows = damaged.read_text().splitlines()
    other = damaged.parent / "test.csv"
    other.write_text("\n".join([rows[0], *(row.replace(",val", ",test") for row in rows if row.endswith(",val"))]))
    command = ["eval", "recognition", folder / "runs" / f"{arm}-0" / "model", other, "--split", "test"]
    command += ["--label-column", "label", "--model", tokenizer_path, "--json", tmp_path / "r.json"]
    run(capsys, *command, status=1)
    found, before = (json.loads(path.read_text()) for path in (tmp_path / "r.json", folder / "result.json"))
    (entry,) = found["results"]
    assert entry["input"] == entry["tested_on"] == arm and found["controls"] == before["controls"]
    assert (found["tokenizer"] is None) == (arm == "pixels")
    for clip, known in zip(found["clips"], before["clips"], strict=True):
        assert clip["predicted"][arm][0] == known["predicted"][arm][0]
    (there,) = (other["runs"][0] for other in before["results"] if other["name"] == arm)
    assert entry["runs"][0]["confusion"] == there["confusion"] and entry["runs"][0]["head"] == there["head"]


def test_heads_with_batch_norm_are_arms_too(csv, tokenizer):
    cfg = compose_config("compare", [f"data.source={csv}", *TINY[2:], "head=linear", "arms=[tokens,hidden]"])
    encoders = {arm: InputEncoder(arm, tokenizer) for arm in cfg.arms}
    protocol = build_protocol(cfg.data)
    heads = build_heads(arm_settings(cfg), 0, encoders, protocol, CLASSES, tokenizer)
    assert [*heads] == [("tokens", 0), ("hidden", 0)] and all(head.training for head in heads.values())
    cfg.patch_merge = 3
    with pytest.raises(ValueError, match="patch_merge=3"):
        build_heads(arm_settings(cfg), 0, encoders, protocol, CLASSES, tokenizer)


def test_kept_clips_keep_their_classes(csv, tokenizer, tmp_path):
    """A head that was built for the classes of changed annotations is not the one that is trained."""
    source = csv.parent / "changed.csv"
    source.write_text(csv.read_text())
    overrides = [f"data.source={source}", *TINY, "data.train_clips=2", "data.val_clips=1", "arms=[tokens]", "seeds=[3]"]
    cfg = compose_config("compare", [*overrides, f"run={tmp_path}"])
    found = build_comparison(to_dict(cfg), arm_settings(cfg), tokenizer)
    assert [*found.heads] == [("tokens", 3)] and found.heads["tokens", 3].num_classes == 3
    shutil.copy(csv.parent / "dark-0.mp4", csv.parent / "more-0.mp4")
    source.write_text(source.read_text() + "more-0.mp4,more,lab0,train\n")
    found = build_comparison(to_dict(cfg), arm_settings(cfg), tokenizer)
    assert found.train.classes == [*CLASSES] and not found.heads


def test_the_page_holds_everything_itself(comparison):
    folder, _ = comparison
    page = (folder / "page.html").read_text()
    entries = json.loads((folder / "result.json").read_text())["results"]
    charts = {"accuracy", "ratio", "cost", "classes"} | {f"confusion-{i + 1}" for i in range(len(entries))}
    assert page.count("data:video/mp4;base64,") == 3 and page.count("data:image/png;base64,") == len(charts)
    assert "http" not in page and "broken.mp4" in page
    assert {path.stem for path in (folder / "charts").iterdir()} == charts


def test_the_tables_of_the_readme_are_made_of_result_files(comparison, tmp_path, monkeypatch):
    folder, _ = comparison
    page, chart = tmp_path / "page.md", tmp_path / "chart.png"
    page.write_text("before\n<!-- recognition -->\nold\n<!-- end of recognition -->\nafter\n")
    monkeypatch.setattr(
        "sys.argv", ["markdown", str(folder / "result.json"), "--chart", str(chart), "--into", str(page)]
    )
    markdown.main()
    markdown.main()  # again, into the same place
    text, result = page.read_text(), json.loads((folder / "result.json").read_text())
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text and chart.exists()
    top1 = result["results"][0]["top1"]
    assert f"| {100 * top1['mean']:.1f} ± {100 * top1['deviation']:.1f} |" in text
    assert f"{result['comparisons'][0]['ratio']['value']:.2f} (" in text and text.count("| damaged") == 2


def test_what_is_there_is_not_made_again(capsys, comparison):
    folder, command = comparison
    before = (folder / "runs" / "codes-1" / "checkpoint.pt").stat().st_mtime_ns
    (folder / "runs" / "tokens-0" / "tested.json").unlink()
    out = run(capsys, *command, status=1).out
    assert "tokens, seed 0" in out and "codes, seed 1" not in out
    assert (folder / "runs" / "codes-1" / "checkpoint.pt").stat().st_mtime_ns == before
    for wrong, message in (
        (["patch_merge=3"], "patch_merge=3"),
        (["task.mixup=0.5"], "can't be averaged"),
        (["data.grid_crop=9"], "crops are 1 to 4 cells"),
        (["data.size=33"], "33"),
        (["input=pixels"], "give arms="),
        (["seed=1"], "give seeds="),
        (["data.in_memory=false"], "data.in_memory=false is for finetune"),
    ):
        other = [word for word in command if not word.startswith("run=")]
        assert message in fails(capsys, *other, *wrong, f"run={folder / 'held'}")
    assert not (folder / "held").exists()
    assert "filled with another protocol (5x2x1x1)" in fails(capsys, *command, "data.protocol=5x1x1x1")
    assert "filled with another patch_merge (1)" in fails(capsys, *command, "patch_merge=2")


def test_in_python_settings_are_nested(comparison, damaged, tokenizer_path):
    """The call goes on with the run of the command, as its settings are the same."""
    folder, _ = comparison
    (folder / "runs" / "tokens-0" / "tested.json").unlink()
    lines = []
    result = recognition.compare(
        *TINY,
        data={"source": damaged},
        tokenizer=tokenizer_path,
        run=folder,
        arms=["tokens", "codes", "pixels", "recon"],
        seeds=(0, 1),
        trainer={"max_steps": 2},
        page={"clips": 0},
        log=lines.append,
    )
    assert lines[0] == "tokens, seed 0" and lines[-1].endswith(f"page: {folder / 'page.html'}")
    assert result["config"]["data"]["source"] == str(damaged) and result["n_failed"] == 1
    with pytest.raises(UserError, match="give arms="):
        recognition.compare(data={"source": damaged}, input="tokens")
    with pytest.raises(UserError, match=r"unknown key 'trainer.max_step': did you mean 'trainer.max_steps'"):
        recognition.compare(data={"source": damaged}, trainer={"max_step": 2})


# ---------------------------------------------------------------------- probe


@pytest.mark.parametrize("classifier", ["logistic", "knn"])
def test_probe_finds_brightness(capsys, csv, tokenizer_path, tmp_path, classifier):
    command = ["eval", "probe", csv, "--model", tokenizer_path, "--protocol", "5x2x1x1", "--size", 32]
    command += ["--input", "latents", "--classifier", classifier, "--group-column", "lab", "--pool", "time"]
    command += ["--split", "val"]
    out = run(capsys, *command, "--json", tmp_path / "r.json").out
    assert "2 folds by group" in out
    result = json.loads((tmp_path / "r.json").read_text())
    entry = result["results"][0]
    assert result["kind"] == "probe" and entry["shuffled_frames"] is not None
    assert entry["runs"][0]["features"] == 2 * 18 and entry["top1"]["mean"] >= 2 / 3


def test_an_attentive_probe_is_a_head(capsys, csv):
    assert "vidtok eval finetune head=attentive" in fails(capsys, "eval", "probe", csv, "--classifier", "attentive")


def test_a_probe_in_python_gives_the_result_of_the_command(capsys, csv, tokenizer_path, tmp_path):
    command = ["eval", "probe", csv, "--model", tokenizer_path, "--protocol", "5x2x1x1", "--size", 32]
    run(capsys, *command, "--input", "codes,latents", "--classifier", "knn", "--json", tmp_path / "r.json")
    options = {"model": tokenizer_path, "protocol": "5x2x1x1", "size": 32, "classifier": "knn"}
    result = recognition.probe(csv, input=["codes", "latents"], **options)
    known = json.loads((tmp_path / "r.json").read_text())
    write_json(tmp_path / "own.json", result)
    result = json.loads((tmp_path / "own.json").read_text())
    assert known["config"].keys() == result["config"].keys() and known["config"]["input"] == "codes,latents"
    for key in known.keys() - {"config", "provenance", "wall_time_s"}:
        assert known[key] == result[key], key


def test_flags_of_other_inputs_and_classifiers(capsys, csv, tokenizer_path):
    command = ["eval", "probe", csv, "--model", tokenizer_path, "--protocol", "5x2x1x1", "--size", 32]
    assert "recon is for inputs i3d and frames: give their weights" in fails(capsys, *command, "--recon")
    for wrong, message in (
        (["--classifier", "logistik"], "did you mean 'logistic'"),
        (["--input", "hidden,i3d"], "input i3d needs i3d: the file of its weights"),
        (["--input", "hidden,tokns"], "unknown input 'tokns'"),
        (["--group-column", "place"], "there is no column 'place'"),
        (["--pool", "grid4,grid3"], "unknown pool 'grid3': did you mean 'grid"),
        (["--pool", "mean,mean"], "pool mean,mean: one of them is given twice"),
        (["--repeats", "0"], "1 or more repeats, not None and 0"),
        (["--folds", "3", "--test-source", csv], "folds take both splits from one source"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("vidtok.eval.recognition.probing.features_of_clips", lambda *args: pytest.fail("too late"))
            assert message in fails(capsys, *command, *wrong)


def test_a_probe_takes_its_test_from_another_file(capsys, csv, tokenizer_path, tmp_path):
    other = csv.parent / "test.csv"
    header, *rows = csv.read_text().splitlines()
    other.write_text("\n".join([header, *(row.replace("val", "test") for row in rows if row.endswith("val"))]) + "\n")
    command = [
        "eval",
        "probe",
        csv,
        "--model",
        tokenizer_path,
        "--protocol",
        "5x2x1x1",
        "--size",
        32,
        "--input",
        "codes",
    ]
    same = run(capsys, *command, "--split", "val").out.splitlines()
    command += ["--json", tmp_path / "r.json"]
    assert run(capsys, *command, "--test-source", other, "--split", "test").out.splitlines()[1:] == same[1:]
    markdown.put(markdown.probe_table({"set": json.loads((tmp_path / "r.json").read_text())}), None, "probes")
    head, _, row, shuffled = capsys.readouterr().out.splitlines()
    assert shuffled.startswith("| set, frames shuffled | grid4 |  |  | ")
    assert head == "| set | pool | protocol | train, test clips | codes | pixels | majority | weights |"
    assert row.startswith("| set, 3 classes | grid4 | `5x2x1x1`, 32 px | 12, 6 | ")
    assert row.endswith(f"| 33.3 | `{VideoTokenizer.from_pretrained(tokenizer_path).weight_hash[:8]}` |")
    assert "test_source is for videos: give test_features" in fails(
        capsys, "eval", "probe", "--features", csv, "--test-source", other
    )


def test_a_small_set_is_tested_in_repeated_folds(capsys, csv, tokenizer_path, tmp_path):
    command = ["eval", "probe", csv, "--model", tokenizer_path, "--protocol", "5x2x1x1", "--size", 32]
    command += ["--input", "codes", "--pool", "mean,grid2", "--json", tmp_path / "r.json", "--force"]
    out = run(capsys, *command, "--folds", 3, "--repeats", 2).out
    assert "split train+val: 3 classes, 18 of 18 clips used" in out and "validation > test" in out
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["data"]["folds"], result["data"]["groups"]) == ("3 stratified folds, 2 times", None)
    assert result["controls"]["majority"]["n_used"] == 18 and len(result["clips"]) == 18
    names = [f"{name}, {pool}, logistic" for pool in ("mean", "grid2") for name in ("codes", "pixels")]
    assert [entry["name"] for entry in result["results"]] == names
    assert result["results"][1]["top1"]["mean"] == 1  # mean colors tell bright, dark and between
    for entry in result["results"]:
        assert entry["top1"]["interval"] == "bootstrap over clips and seeds" and entry["shuffled_frames"]["seeds"] == 2
        for run_ in entry["runs"]:
            assert len(run_["chosen"]["C"]) == 3 and len(run_["best_by_fold"]) == 3 * 5
    table = markdown.path_table({"set": result}).splitlines()
    assert table[0].startswith("| set | pool | input | C = 1e-05 |") and len(table) == 2 + 4
    assert all("**" in line for line in table[2:])
    by_lab = run(capsys, *command, "--group-column", "lab").out  # automatic; there are two labs
    assert "codes, mean, logistic: 18 features" in by_lab
    grouped = json.loads((tmp_path / "r.json").read_text())
    assert (grouped["data"]["folds"], grouped["data"]["groups"]) == ("2 stratified folds by group", 2)
    for more in (["--split", "val"], ["--folds", "0"], ["--test-clips", "6"]):
        run(capsys, *command, *more)
        single = json.loads((tmp_path / "r.json").read_text())
        assert single["data"]["folds"] is None and single["n_used"] == 6 and single["data"]["n_train"] == 12
    table = markdown.make_table([result, grouped])[0]
    assert "| clips, 3 classes | mean | `5x2x1x1`, 32 px | 18 in 3 stratified folds, 2 times |" in table


def test_the_choice_of_c_sees_no_test_clip():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    x = rng.normal(size=(40, 2, 5)).astype(np.float32) + labels[:, None, None]
    one, other = (fit_path("logistic", x, labels, None, [test], 3) for test in (x[:4], 100 * x[:7]))
    assert one.chosen == other.chosen and np.array_equal(one.validation_FS, other.validation_FS)
    assert one.probabilities[0].shape == (len(one.strengths), 4, 3) and not one.probabilities[0][:, :, 2].any()
    np.testing.assert_allclose(one.probabilities[0].sum(2), 1)
    wide = np.concatenate([x, np.zeros((40, 2, 100), np.float32)], 2)  # PCA changes nothing
    found = fit_path("logistic", wide, labels, None, [wide[:4]], 3)
    np.testing.assert_allclose(found.probabilities[0], one.probabilities[0], atol=1e-2)


def test_repeated_folds_test_every_clip_once_and_keep_groups_whole():
    labels, groups = np.arange(60) % 3, [str(i // 6) for i in range(60)]
    for own in (None, groups):
        name, divisions = repeated_folds(labels, own, 4, 3)
        assert name == f"4 stratified folds{' by group' if own else ''}, 3 times" and len(divisions) == 3
        for division in divisions:
            assert np.array_equal(np.sort(np.concatenate([test for _, test in division])), np.arange(60))
            for train, test in division:
                assert not {*train} & {*test}
                assert own is None or not {own[i] for i in train} & {own[i] for i in test}
        assert divisions[0][0][1].tolist() != divisions[1][0][1].tolist()
    name, divisions = repeated_folds(labels, groups, 20, 3)
    assert name == "10 stratified folds by group" and [len(division) for division in divisions] == [10]
    with pytest.raises(ValueError, match="all clips are of one group"):
        repeated_folds(labels, ["a"] * 60, 4, 3)


def test_renderings_of_a_digit_stay_together(tokenizer_path, tokenizer, tmp_path, monkeypatch):
    command = ["extract", "digits", "--split", "val", "--renderings", 2, "-o", tmp_path, "--model", tokenizer_path]
    plan = plan_sources
    monkeypatch.setattr("vidtok.extraction.run.plan_sources", lambda *args, **columns: plan(*args, **columns)[:40])
    assert main([str(a) for a in [*command, "--size", 16, "--clips", "dense:1", "--frames", 5]]) == 0
    files = FeatureFiles(tmp_path, "val", "codes", tokenizer, Protocol(5, 1, size=16))
    assert {"0004/left", "0004/left/1"} < set(files.ids)
    assert files.groups == [name[:4] for name in files.ids] and files.groups.count("0004") == 18


@pytest.fixture(scope="module")
def features(csv, tokenizer_path, tmp_path_factory):
    """Ids of two clips of every video, as `vidtok extract` writes them."""
    out = tmp_path_factory.mktemp("features") / "ids"
    command = ["extract", csv, "-o", out, "--model", tokenizer_path, "--size", 32, "--crop", "center"]
    command += ["--clips", "dense:2", "--frames", 5, "--stride", 2]
    assert main([str(a) for a in command]) == 0
    return out


def test_probe_of_extracted_features(capsys, csv, features, tokenizer_path, tmp_path):
    command = ["eval", "probe", "--features", features, "--model", tokenizer_path, "--protocol", "5x2x2x1"]
    command += ["--size", 32]
    command += ["--split", "val", "--input", "codes", "--pool", "all", "--json", tmp_path / "r.json"]
    run(capsys, *command)
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["n_used"] == 6 and result["results"][0]["runs"][0]["features"] == 18 * 2 * 4 * 4
    assert result["results"][0]["shuffled_frames"] is None
    grouped = [*command[:2], csv, "--group-column", "lab", *command[2:-2]]
    assert "2 folds by group" in run(capsys, *grouped).out
    assert "features take a source only together with group_column" in fails(
        capsys, *command[:-2], "--group-column", "lab"
    )
    assert "videos are in training and test" in fails(capsys, *command[:-2], "--train-split", "val")
    assert "give either a source or features" in fails(capsys, "eval", "probe", "--model", tokenizer_path)
    assert "of tokenizer tiny" in fails(capsys, *command[:4], "--model", "vidtok-t", *command[6:8], "--input", "codes")
    assert "holds ids" in fails(capsys, *command[:8], "--input", "hidden")
    others = fails(capsys, *command[:-2], "--protocol", "5x1x2x1")
    assert "holds clips (dense:2, 5 x 2), and protocol 5x1x2x1 is of others (dense:2, 5 x 1)" in others
    assert "holds 5 frames of 32 x 32" in fails(capsys, *command[:-2], "--size", 64)
    assert "extracted features have labels of their own" in fails(capsys, *command[:-2], "--label-column", "label")


def test_features_are_clips_of_the_protocol_or_whole_videos_that_it_takes_whole():
    entries = [SimpleNamespace(frames=5, coded_size=(32, 32))]
    for protocol in (Protocol(5, 1, size=32), Protocol(5, None, size=32)):
        validate_clips("x", None, entries, protocol)
    for protocol in (Protocol(5, 4, size=32), Protocol(5, 1, 2, size=32)):
        with pytest.raises(ValueError, match="whole videos, which are protocol 5x1x1x1"):
            validate_clips("x", None, entries, protocol)


def test_a_test_on_features_has_all_views(features, tokenizer):
    files = FeatureFiles(features, "val", "codes", tokenizer, Protocol(5, 2, 2, size=32))
    files.validate_views(Protocol(5, 2, 2, size=32))
    with pytest.raises(ValueError, match="has 2 records, and protocol 5x2x2x3 has 6 views"):
        files.validate_views(Protocol(5, 2, 2, 3, size=32))


def test_finetuning_on_extracted_features(capsys, csv, features, tokenizer_path, tmp_path):
    command = finetune(csv, tokenizer_path, tmp_path, f"data.features={features}", "data.select=0.25")
    run(capsys, *command, "data.protocol=5x2x2x1")
    grouped = ["data.group_column=lab", f"run={tmp_path}/grouped", "data.protocol=5x2x2x1", "data.select=0.5"]
    run(capsys, *command, *grouped)  # one of two labs
    assert json.loads((tmp_path / "grouped" / "result.json").read_text())["data"]["n_train"] == 6
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["n_used"] == 6 and result["data"]["n_train"] == 9
    cached = [f"run={tmp_path}/cached", f"data.cache={tmp_path}/cache", "data.protocol=5x2x2x1"]
    run(capsys, *command, *cached)  # is another way to read the same
    assert [*(tmp_path / "cache").glob("*.bin")]
    heads = [(run / "model" / "model.safetensors").read_bytes() for run in (tmp_path, tmp_path / "cached")]
    assert heads[0] == heads[1]
    few = [f"run={tmp_path}/few", "data.train_clips=6", "data.val_clips=2", "data.protocol=5x2x2x1", "data.select=0"]
    run(capsys, *command, *few)
    result = json.loads((tmp_path / "few" / "result.json").read_text())
    assert result["n_used"] == 2 and result["data"]["n_train"] == 6
    for idle in (
        "data.label_column=label",
        "data.grid_crop=2",
        "data.train_views=2",
        "data.augment=rand-m7",
        "data.checked=x.csv",
    ):
        assert "takes videos, not extracted features" in fails(capsys, *command, idle)
    assert "is of others (dense:2, 9 x 2)" in fails(capsys, *command, "data.protocol=9x2x2x1")


def test_videos_that_extraction_failed_on_count(capsys, csv, features, tokenizer_path, tmp_path):
    copy = tmp_path / "features"
    shutil.copytree(features, copy)
    rows = ["x.mp4,x.mp4,val,the file is empty", "y.mp4,y.mp4,train,the file is empty"]
    (copy / "failures.csv").write_text("\n".join(["id,path,split,reason", *rows]) + "\n")
    command = finetune(csv, tokenizer_path, tmp_path, f"data.features={copy}", "data.protocol=5x2x2x1", "data.select=0")
    run(capsys, *command, status=1)
    probe = ["eval", "probe", "--features", copy, "--model", tokenizer_path, "--protocol", "5x2x2x1", "--size", 32]
    run(capsys, *probe, "--split", "val", "--input", "codes", "--json", tmp_path / "probe.json", status=1)
    for name in ("result.json", "probe.json"):
        result = json.loads((tmp_path / name).read_text())
        assert (result["n_total"], result["n_used"]) == (7, 6)
        assert result["failures"] == [{"name": "x.mp4", "reason": "the file is empty"}]
        assert result["data"]["train_failures"] == [{"name": "y.mp4", "reason": "the file is empty"}]


def test_hidden_features_of_another_layer_are_refused(csv, tokenizer_path, tokenizer, tmp_path, monkeypatch):
    command = ["extract", csv, "--split", "val", "-o", tmp_path / "hidden", "--model", tokenizer_path, "--size", 32]
    command += ["--crop", "center", "--features", "hidden", "--clips", "dense:1", "--frames", 5]
    assert main([str(each) for each in command]) == 0
    arguments = (tmp_path / "hidden", "val", "hidden", tokenizer, Protocol(5, 1, size=32))
    assert len(FeatureFiles(*arguments)) == 6
    settings = [f"data.source={csv}", f"tokenizer={tokenizer_path}", "input=hidden", *TINY, f"run={tmp_path / 'run'}"]
    assert main(["eval", "finetune", *settings, "trainer.max_steps=2"]) == 0
    assert Head.from_pretrained(tmp_path / "run" / "model").config.tokenizer["layer"] == "middle"
    monkeypatch.setattr(tokenizer.encoder, "feature_layer", None)
    with pytest.raises(ValueError, match="hidden features of another layer"):
        FeatureFiles(*arguments)


def test_a_label_of_features_that_is_no_class(features, tokenizer):
    protocol = Protocol(5, 2, 2, size=32)
    assert len(FeatureFiles(features, "val", "codes", tokenizer, protocol, CLASSES)) == 6
    with pytest.raises(ValueError, match="1 labels are not among the classes: rising"):
        FeatureFiles(features, "val", "codes", tokenizer, protocol, CLASSES[:2])


def test_a_signal_stops_a_comparison(capsys, csv, tokenizer_path, tmp_path, monkeypatch):
    from vidtok.eval.recognition import comparison as compare

    fit = compare.memory_head_data

    def interrupted(*args, **more):
        os.kill(os.getpid(), signal.SIGTERM)
        return fit(*args, **more)

    command = ["eval", "compare", f"data.source={csv}", f"tokenizer={tokenizer_path}", f"run={tmp_path}", *TINY]
    command += ["arms=[codes]", "seeds=[0]", "trainer.max_steps=3", "reference=codes"]
    monkeypatch.setattr(compare, "memory_head_data", interrupted)
    assert "stopped: the same command goes on" in run(capsys, *command).out
    monkeypatch.undo()
    assert "codes" in run(capsys, *command).out and (tmp_path / "result.json").exists()


# ------------------------------------------------------------------ agreement


def test_agreement_of_a_classifier(tokenizer):
    from vidtok.eval.reconstruction.classifier_agreement import Classifier, evaluate_agreement, format_agreement

    def by_brightness(video):
        level = video.mean((1, 2, 3, 4))
        return (torch.stack([level, -level, torch.zeros_like(level)], 1) * 10).softmax(1)

    classifier = Classifier("brightness", "https://x/i3d", "0123456789abcdef", by_brightness)
    videos = [(f"{i}", make_clip("bright", i)[:, :, :5, :, :32]) for i in range(3)] + [("bad", ValueError("bad: no"))]
    protocol = {"source": "test", "crop": "none", "fps": "native"}
    result = evaluate_agreement(classifier, [tokenizer], videos, protocol=protocol)
    assert result["classifier"]["weights"] == {"file": "https://x/i3d", "sha256": "0123456789abcdef"}
    (row,) = result["tokenizers"]
    assert (result["n_total"], result["n_used"], result["n_failed"]) == (4, 3, 1)
    assert row["top5"]["value"] == 1 and 0 <= row["top1"]["value"] <= 1
    confidence = row["confidence"]
    drop = confidence["original"] - confidence["reconstruction"]
    assert confidence["drop"]["mean"] == pytest.approx(drop) and "tiny" in format_agreement(result)


def test_agreement_of_an_image_classifier(csv, tokenizer_path, tmp_path, monkeypatch, capsys):
    from vidtok.eval.reconstruction import classifier_agreement

    network = timm.create_model("test_resnet", num_classes=1000)
    save_file(network.state_dict(), weights := tmp_path / "net.safetensors")
    monkeypatch.setattr(classifier_agreement, "BACKBONE", "test_resnet")
    videos = str(csv.parent / "bright-*.mp4")
    command = ["eval", "agreement", videos, "--efficientnet", str(weights), "--model", str(tokenizer_path)]
    assert main([*command, "--frames", "5", "--size", "32", "--json", str(tmp_path / "result.json")]) == 0
    assert "test_resnet, ImageNet" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["classifier"]["weights"] == {"file": str(weights), "sha256": hash_file(weights)}
    clip = next(iter(classifier_agreement.validation_clips([Path(result["clips"][0]["name"])], 5, 32, None)))[1]
    probabilities = LogitDistance("test_resnet", weights).logits(clip[0].transpose(0, 1)).softmax(1).mean(0)
    assert result["clips"][0]["best"] == int(probabilities.argmax())
    assert result["clips"][0]["confidence"] == pytest.approx(float(probabilities.max()), rel=1e-4)
    for wrong, message in (
        ([], "give the weights of exactly one classifier: i3d or efficientnet"),
        (["--i3d", "x", "--frames", "5"], "frames=5: I3D sees clips of at least 9 frames"),
        (["--i3d", "x", "--classes", str(weights)], r"this is no text file with a name per line"),
    ):
        assert main(["eval", "agreement", videos, *wrong]) == 1
        assert message in capsys.readouterr().err


def test_what_is_checked_as_bad_is_left_out(damaged, tmp_path):
    assert main(["check", str(damaged), "-o", str(tmp_path / "checked.csv")]) == 1
    source = ClipSource(str(damaged), checked=str(tmp_path / "checked.csv"))
    with pytest.warns(UserWarning, match="1 of 7 videos left out"):
        dataset = source.open("val", Protocol(5, 2, 1, 1, 32))
    assert len(dataset) == 6 and not any("broken" in name for name in dataset.ids)


def test_views_are_random_clips_of_the_same_videos(csv, damaged):
    source, protocol = ClipSource(str(damaged)), Protocol.parse("5x2x1x1", 32)
    clips = load_views(source, "val", protocol, 3, log=lambda line: None)
    assert clips.video.shape == (6, 3, 3, 5, 32, 32) and len(clips.failures) == 1
    assert clips.ids == load_clips(source.open("val", protocol), log=lambda line: None).ids
    assert not torch.equal(clips.video[:, 0], clips.video[:, 1])
    again = load_views(source, "val", protocol, 3, log=lambda line: None)
    assert torch.equal(clips.video, again.video)
    digits = load_views(ClipSource("digits"), "train", Protocol.parse("5x1x1x1", 16), 2, limit=9)
    assert digits.video.shape == (9, 2, 3, 5, 16, 16) and not torch.equal(digits.video[:, 0], digits.video[:, 1])


def test_views_are_kept_as_tokens(damaged, tokenizer_path):
    source, protocol = ClipSource(str(damaged)), Protocol.parse("5x2x1x1", 32)
    encoder = InputEncoder("tokens", VideoTokenizer.from_pretrained(tokenizer_path))
    clips = load_views(source, "val", protocol, 2, log=lambda line: None)
    kept = load_views(source, "val", protocol, 2, log=lambda line: None, encode=encoder.encode_compact)
    assert torch.equal(kept.video, encode_all(encoder, clips.video)) and kept.ids == clips.ids


def test_compare_trains_on_views(capsys, tmp_path, csv, tokenizer_path):
    command = ["eval", "compare", f"data.source={csv}", f"tokenizer={tokenizer_path}", f"run={tmp_path}", *TINY]
    command += ["trainer.max_steps=2", "seeds=[0]", "arms=[tokens,pixels]", "page.clips=1"]
    run(capsys, *command, "data.train_views=2")
    assert load_file(tmp_path / "encoded/tokens-train.safetensors")["x"].shape[:2] == (12, 2)
    assert "another train_views" in fails(capsys, *command, "data.train_views=3")


@pytest.mark.slow
def test_two_processes_train_and_one_tests(csv, tokenizer_path, tmp_path):
    settings = ["input=pixels", "data.select=0.25", "data.batch_size=4"]
    assert main(finetune(csv, tokenizer_path, tmp_path / "one", *settings)) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "vidtok"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command += finetune(csv, tokenizer_path, tmp_path / "two", *settings)
    out = subprocess.run(command, capture_output=True, text=True, env=env)
    assert out.returncode == 0, out.stdout + out.stderr
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert out.stdout.count("result: ") == 1 and one["data"]["n_train"] == two["data"]["n_train"] == 9
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two")]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=2e-3) for name in weights[0])
