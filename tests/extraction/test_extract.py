"""Extraction: what comes out, of every source, and that it is what the library gives."""

import csv
import json
import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from vidtok.cli.main import main
from vidtok.datasets import MotionTasks, MovingDigits, VideoError, VideoFolder, demo_clip, iter_video, write_video
from vidtok.datasets.transforms import EvalTransform
from vidtok.extraction import open_reader
from vidtok.extraction.decoding import ReadConfig, read_chunks
from vidtok.extraction.engine import Decoders
from vidtok.extraction.output import Failures, read_failures, video_locks
from vidtok.extraction.sources import Clips, WorkItem, parse_clips, plan_dataset
from vidtok.files import temporary_path
from vidtok.streaming import pad_chunks
from vidtok.tokenizer import VideoTokenizer

STRIDE = (4, 8, 8)
SIZES = {"a.mp4": (6, 32, 48), "b.mp4": (17, 32, 48), "c.mp4": (40, 32, 48), "wave/d.mp4": (9, 37, 51)}


@pytest.fixture(scope="module")
def model(tokenizer_path):
    return tokenizer_path


@pytest.fixture(scope="module")
def tokenizer(model):
    return VideoTokenizer.from_pretrained(model)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for i, (name, (T, H, W)) in enumerate(SIZES.items()):
        (folder / name).parent.mkdir(exist_ok=True)
        write_video(folder / name, demo_clip(T + i, 64)[:, :, i:, :H, :W], 24)
    return folder


@pytest.fixture
def extract(capsys, tmp_path, model, monkeypatch):
    """Runs the command; returns (records by (id, clip), stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*args, status=0, out="out"):
        capsys.readouterr()
        assert main(["extract", *map(str, args), "-o", out, "--model", model]) == status
        printed = capsys.readouterr()
        reader = open_reader(out)
        records = [reader.read(i) for i in range(len(reader))]
        return {(record.id, record.meta.clip): record for record in records}, *printed

    return call


def refused(capsys, *args):
    """The one line in which a command ends."""
    capsys.readouterr()
    assert main([*map(str, args)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("vidtok: ") and err.count("\n") == 1
    return err


def padded(path, **reading):
    video = torch.cat(list(iter_video(path, size=reading.get("size"), multiple=1)), 2)
    return torch.cat(list(pad_chunks([video], STRIDE)), 2)


@pytest.mark.parametrize("container", ["npz", "parquet", "webdataset"])
def test_ids_are_those_of_the_library(extract, tokenizer, videos, container):
    records, out, err = extract(videos, "--container", container)
    assert f"extracted {len(SIZES)} of {len(SIZES)} videos, 72 frames" in out and not err
    assert {id for id, _ in records} == set(SIZES)
    for name, (T, H, W) in SIZES.items():
        record = records[name, None]
        assert np.array_equal(record.features, tokenizer.encode(padded(videos / name))[0].numpy())
        meta = record.meta
        assert (meta.frames, *meta.size) == (T, H, W) and meta.source == os.path.basename(name) and meta.fps == 24
        assert meta.source_bytes == (videos / name).stat().st_size and meta.weight_hash == tokenizer.weight_hash
        assert np.allclose(record.timestamps, np.arange(T) / 24) and record.label is None


def test_all_kinds_of_features(extract, tokenizer, videos):
    video = padded(videos / "c.mp4")
    z, hidden = tokenizer.encode_latents(video)[0].numpy(), tokenizer.forward_features(video)[0].numpy()

    def features(*args):
        return extract(videos / "c.mp4", *args, out="".join(args).strip("-"))[0]["c.mp4", None].features

    assert np.allclose(features("--features", "latents"), z, atol=1e-5)
    codes = features("--features", "codes")
    assert codes.dtype == np.int8 and np.array_equal(codes, np.where(z > 0, 1, -1))
    assert np.allclose(features("--features", "hidden"), hidden, atol=1e-5)
    half = features("--features", "hidden", "--dtype", "float16")
    assert half.dtype == np.float16 and np.allclose(half, hidden, atol=1e-2)
    pooled = features("--features", "hidden", "--pool", "mean")
    assert pooled.dtype == np.float32 and np.allclose(pooled, hidden.mean((1, 2, 3)), atol=1e-5)


def test_hidden_features_of_another_layer_are_not_continued(extract, videos, model, capsys):
    extract(videos / "c.mp4", "--features", "hidden", out="hidden")
    settings = json.loads(Path("hidden/settings.json").read_text())
    assert settings["layer"] == "middle"
    Path("hidden/settings.json").write_text(json.dumps(settings | {"layer": None}))  # of the last layer, as in 0.1.0
    command = ["extract", videos / "b.mp4", "-o", "hidden", "--model", model, "--features", "hidden"]
    assert "layer None, not middle" in refused(capsys, *command)


def test_embeddings_of_a_trained_head(extract, capsys, tokenizer, videos, model, tmp_path):
    from vidtok import create_head

    head = create_head("attentive", input="hidden", num_classes=3, grid=(3, 4, 4), channels=32).eval()
    identity = {"name": "tiny", "weight_hash": tokenizer.weight_hash, "layer": "middle"}
    head.record(tokenizer=identity, protocol={"frames": 9, "size": 32, "stride": 2, "clips": 2, "crops": 1})
    head.save_pretrained("head")
    records, _, _ = extract(videos / "c.mp4", "--features", "embedding", "--head", "head", out="e")
    clips, _, _ = extract(
        videos / "c.mp4", "--features", "hidden", "--clips", "dense:2", "--frames", 9, "--stride", 2, "--size", 32,
        "--crop", "center", out="h",
    )  # fmt: skip
    head = type(head).from_pretrained("head")
    for key, record in records.items():
        hidden = torch.from_numpy(clips[key].features)[None]
        wanted = head.forward_head(head.forward_features(hidden), pre_logits=True)[0].detach().numpy()
        assert np.allclose(record.features, wanted, atol=1e-5) and record.meta.head.endswith(head.weight_hash)
    assert len(records) == 2
    command = ["extract", videos / "c.mp4", "-o", "x", "--features", "embedding", "--head", "head"]
    assert "not of 'vidtok-t'" in refused(capsys, *command)
    head.record(protocol={"frames": 9, "size": 32, "stride": 2, "clips": 2, "crops": 1, "concat_segments": True})
    head.save_pretrained("head")
    assert "several clips at once" in refused(capsys, *command, "--model", str(model))


def test_the_rate_of_clips_is_part_of_the_setting():
    assert str(parse_clips("dense:2", 9, 2)) == "dense:2, 9 x 2"
    assert str(parse_clips("dense:2", 9, 2, 12.5)) == "dense:2, 9 x 2 at 12.5 fps"
    for clips in (parse_clips("dense:2", 9, 2, 12.5), parse_clips("windows", 17), parse_clips("uniform:4", 5)):
        assert Clips.of_record(str(clips)) == clips


def test_batches_across_videos(extract, tokenizer, videos):
    """Whoever else is in a batch changes ids by sign flips of latents next to zero at most."""
    alone, _, _ = extract(videos, out="alone")
    for i, args in enumerate((["--batch", 3], ["--batch", 2, "--workers", 2])):
        together, _, _ = extract(videos, *args, out=f"together{i}")
        for key, record in together.items():
            z = tokenizer.encode_latents(padded(videos / key[0]))[0].numpy()
            flips = (record.features ^ alone[key].features)[None] >> np.arange(18).reshape(-1, 1, 1, 1) & 1
            assert (np.abs(z)[flips == 1] < 1e-5 * np.abs(z).max()).all()
            assert flips.mean() < 0.001
    again, _, _ = extract(videos, "--workers", 1, out="again")
    assert all(np.array_equal(again[key].features, alone[key].features) for key in alone)


def test_size_crop_rate_and_tiles(extract, tokenizer, videos):
    records, _, _ = extract(videos, "--size", 16, "--crop", "center", "--fps", 12, "--max-frames", 5)
    record = records["wave/d.mp4", None]
    video = torch.cat(list(iter_video(videos / "wave/d.mp4", fps=12, size=(16, 16))), 2)[:, :, :5]
    assert np.array_equal(record.features, tokenizer.encode(video)[0].numpy())
    assert record.meta.resample == 12 and record.meta.crop == "center" and record.meta.size == (16, 16)
    records, _, _ = extract(videos, "--tile", 32, "--batch", 2, out="tiles")
    for name in SIZES:
        same = records[name, None].features == tokenizer.encode(padded(videos / name), tile=32)[0].numpy()
        assert same.mean() > 0.99


def test_clips_of_a_labeled_folder(extract, tokenizer, videos, tmp_path):
    for i, (split, name) in enumerate([("train", "up"), ("train", "down"), ("val", "up")]):
        (tmp_path / "set" / split / name).mkdir(parents=True)
        write_video(tmp_path / "set" / split / name / f"{i}.mp4", demo_clip(30 + i, 64)[..., :40, :48], 25)
    args = ["--class-folders", "--clips", "dense:2", "--frames", 9, "--stride", 2, "--size", 32, "--crop", "three"]
    records, out, _ = extract("set", *args)
    assert "3 of 3 videos, 162 frames" in out and len(records) == 18
    assert {r.label for r in records.values()} == {"up", "down"} and {r.split for r in records.values()} == {
        "train",
        "val",
    }
    clips = parse_clips("dense:2", 9, 2)
    dataset = VideoFolder(
        "set", "train", sampler=lambda d, fps, rng: clips.times(d, fps), transform=EvalTransform(32, 3)
    )
    for sample in dataset:
        for i, clip in enumerate(sample.video):
            record = records[sample.id, i]
            assert np.array_equal(record.features, tokenizer.encode(clip[None])[0].numpy())
            assert np.array_equal(record.timestamps, sample.timestamps[i]) and record.meta.clips == 6
    records, _, _ = extract("set", "--clips", "windows", "--frames", 5, out="windows")
    assert len(records) == 6 + 7 + 7 and records["val/up/2.mp4", 6].timestamps[-1] == pytest.approx(31 / 25)


def test_annotations_and_digits(extract, videos, tmp_path):
    (tmp_path / "all.csv").write_text("path,label,split\na.mp4,x,train\nb.mp4,y,train\nwave/d.mp4,x,val\n")
    records, _, _ = extract("all.csv", "--root", videos)
    assert {(r.id, r.label, r.split) for r in records.values()} == {
        ("a.mp4", "x", "train"), ("b.mp4", "y", "train"), ("wave/d.mp4", "x", "val"),
    }  # fmt: skip
    assert [*extract("all.csv", "--root", videos, "--split", "val", out="val")[0]] == [("wave/d.mp4", None)]


def test_digits(model, tokenizer):
    items = plan_dataset("digits", split="val")
    dataset = MovingDigits("val")
    assert len(items) == len(dataset) and items[5].label == dataset.classes[5]
    (piece,) = read_chunks(items[5], ReadConfig(STRIDE))
    assert torch.equal(piece.video, dataset[5].video) and len(piece.info.timestamps) == 17
    (small,) = read_chunks(items[5], ReadConfig(STRIDE, size=32))
    assert torch.equal(small.video, MovingDigits("val", size=32)[5].video)  # made at that size, not resized
    renderings = plan_dataset("digits", split="val", renderings=2)
    assert [item.id for item in renderings[10:12]] == [items[5].id, f"{items[5].id}/1"]
    (other,) = read_chunks(renderings[11], ReadConfig(STRIDE))
    assert torch.equal(other.video, MovingDigits("val", seed=1)[5].video) and renderings[11].label == items[5].label
    pieces = [*read_chunks(items[5], ReadConfig(STRIDE, clips=parse_clips("uniform:3", 4)))]
    assert [p.clip for p in pieces] == [0, 1, 2] and pieces[-1].ends_item and pieces[0].video.shape[2] == 5


def test_clips_of_motion_tasks(extract, videos, tokenizer):
    flags = ["--task", "all", "--size", 32, "--clips", "dense:1", "--frames", 5, "--workers", 2]
    records, _, _ = extract(videos, *flags, "--task-clips", 14)
    dataset = MotionTasks(videos, "all", None, 14, frames=5, size=32)
    assert {id for id, _ in records} == {*dataset.ids}
    for sample in dataset:
        record = records[sample.id, 0]
        assert np.array_equal(record.features, tokenizer.encode(sample.video)[0].numpy())
        assert record.label == dataset.classes[sample.label] and len(record.timestamps) == 5
    more, stats, _ = extract(videos, *flags, "--task-clips", 16)
    assert len(more) == 16 and "extracted 2 of 16 videos" in stats


def test_a_folder_holds_one_setting(capsys, extract, model, videos):
    extract(videos, "--size", 16)
    base = ["extract", videos, "-o", "out", "--model", model]
    assert "resize 16, not None" in refused(capsys, *base)
    assert "feature ids, not latents" in refused(capsys, *base, "--size", 16, "--features", "latents")
    assert "holds npz, not parquet" in refused(capsys, *base, "--size", 16, "--container", "parquet")
    assert "model tiny, not vidtok-t" in refused(capsys, *base[:-2], "--size", 16)
    os.unlink("out/settings.json")
    assert "settings.json isn't" in refused(capsys, *base, "--size", 16)


def test_what_is_complete_is_skipped_and_what_is_not_is_done(extract, videos, tmp_path):
    first, _, _ = extract(videos)
    kept, cut, changed = (tmp_path / "out" / name for name in ("a.npz", "b.npz", "c.npz"))
    before = kept.stat().st_mtime_ns
    cut.write_bytes(cut.read_bytes()[:150])
    data = bytearray(changed.read_bytes())
    data[len(data) // 3] ^= 1
    changed.write_bytes(data)
    left_over = temporary_path(cut, locked=True)
    left_over.write_bytes(b"of a process that was killed")
    again, out, _ = extract(videos)
    assert "extracted 2 of 4 videos" in out and "2 were complete" in out and kept.stat().st_mtime_ns == before
    assert all(np.array_equal(first[key].features, again[key].features) for key in first) and len(again) == 4
    assert not left_over.exists()


def test_failures_are_listed_until_they_are_done(extract, videos, tmp_path):
    good = (videos / "a.mp4").read_bytes()
    (tmp_path / "in").mkdir()
    for name, data in {"a.mp4": good, "cut.mp4": good[: len(good) // 2], "zero.mp4": b""}.items():
        (tmp_path / "in" / name).write_bytes(data)
    for _ in range(2):  # a rerun tries again, and lists each once
        _, out, err = extract("in", status=1)
        assert "2 failed" in out and "vidtok: in/zero.mp4: the file is empty" in err
        with open("out/failures.csv", newline="") as file:
            rows = {row["id"]: row for row in csv.DictReader(file)}
        assert set(rows) == {"cut.mp4", "zero.mp4"} and "is empty" in rows["zero.mp4"]["reason"]
    (tmp_path / "in" / "zero.mp4").write_bytes(good)
    (tmp_path / "in" / "cut.mp4").write_bytes(good)
    _, out, err = extract("in")
    assert "2 of 3 videos" in out and "1 were complete" in out and not err and not os.path.exists("out/failures.csv")


def test_a_row_of_failures_that_was_cut_short_costs_no_other(tmp_path):
    failures = Failures(tmp_path, video_locks(tmp_path))
    for id in "abc":
        failures.add(id, f"{id}.mp4", "val", "broken, by whom?")
        with open(tmp_path / "failures.csv", "a") as file:
            file.write("cut")
    failures.tidy("b".__eq__)
    with open(tmp_path / "failures.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert rows == [{"id": id, "path": f"{id}.mp4", "split": "val", "reason": "broken, by whom?"} for id in "ac"]
    named = [{"name": id, "reason": "broken, by whom?"} for id in "ac"]
    assert read_failures(tmp_path, "val") == read_failures(tmp_path, None) == named
    assert not read_failures(tmp_path, "train")


class Broken:
    """Clips that fail in a way nobody has thought of."""

    name = "dense"

    def times(self, duration, fps):
        return 1 / 0


@pytest.mark.parametrize("workers", [0, 1])
def test_whatever_happens_to_a_video_is_its_failure(videos, workers):
    with Decoders(ReadConfig(STRIDE, clips=Broken()), workers, time_limit=60) as decoders:
        items = iter([WorkItem("a.mp4", str(videos / "a.mp4"))])
        ((_, answer),) = decoders.pieces(lambda: next(items, None), Counter())
    assert isinstance(answer, VideoError) and answer.reason == "ZeroDivisionError: division by zero"


def test_frames_that_do_not_fit_memory_fail_alone(extract, videos, monkeypatch):
    def check(net, shape, *_):
        if shape[-1] > 48:
            raise MemoryError("needs about 99 GiB: pass tile=64")

    monkeypatch.setattr("vidtok.extraction.model.check_memory", check)
    for batch in (1, 3):
        records, out, err = extract(videos, "--batch", batch, status=1, out=f"b{batch}")
        assert {id for id, _ in records} == {"a.mp4", "b.mp4", "c.mp4"} and "3 of 4 videos" in out
        assert err == f"vidtok: {videos}/wave/d.mp4: needs about 99 GiB: pass tile=64\n"


def test_features_of_another_video_are_not_taken_for_this_ones(extract, videos, tmp_path):
    for folder, name in (("x", "a.mp4"), ("y", "b.mp4")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "clip.mp4").write_bytes((videos / name).read_bytes())
    extract("x")
    _, _, err = extract("y", status=1)
    assert "y/clip.mp4: under its name there are features of another file" in err
    assert "features of another file" in (tmp_path / "out" / "failures.csv").read_text()
    (tmp_path / "x" / "list.csv").write_text("path,label\nclip.mp4,wave\n")
    _, _, err = extract("x/list.csv", status=1)
    assert "its features are there with label None" in err


class Sleeper:
    """Clips that hang the decode process on a long video, and end it on a longer one."""

    name = "dense"

    def times(self, duration, fps):
        if duration > 2:
            os._exit(3)
        while duration > 1:
            time.sleep(1)
        return np.zeros((1, 5))


def test_a_decoder_that_hangs_or_crashes_costs_one_video(videos, tmp_path):
    write_video(tmp_path / "e.mp4", demo_clip(60, 64)[..., :32, :32], 24)
    items = [WorkItem(name, str(videos / name)) for name in ("a.mp4", "c.mp4", "b.mp4")]
    items.insert(2, WorkItem("e.mp4", str(tmp_path / "e.mp4")))
    with Decoders(ReadConfig(STRIDE, clips=Sleeper()), 1, time_limit=2) as decoders:
        waiting = iter(items)
        answers = list(decoders.pieces(lambda: next(waiting, None), Counter()))
    assert [item for item, _ in answers] == items
    assert answers[0][1].ends_item and answers[3][1].ends_item
    assert "no result within 2 s" in str(answers[1][1]) and "crashed (exit status 3)" in str(answers[2][1])


@pytest.mark.parametrize(
    "args, message",
    [
        (["nope.mp4"], "nope.mp4: no such file"),
        (["nope.csv"], "nope.csv: no such file"),
        (["--features", "idz"], "did you mean 'ids'"),
        (["--container", "parket"], "did you mean 'parquet'"),
        (["--pool", "mean"], "ids can't be pooled"),
        (["--features", "hidden", "--pool", "max"], "'max'"),
        (["--features", "hidden", "--dtype", "float8"], "float8"),
        (["--crop", "center"], "needs a size"),
        (["--crop", "three", "--size", 32], "three crops are taken of clips"),
        (["--crop", "left", "--size", 32], "'left'"),
        (["--clips", "unifrom:4"], "did you mean 'uniform'"),
        (["--clips", "uniform:x"], "NAME:NUMBER"),
        (["--clips", "uniform:4", "--fps", 10], "span the whole video"),
        (["--clips", "dense:4", "--max-frames", 10], "max_frames cuts whole videos"),
        (["--batch", 2, "--workers", -1], "workers"),
        (["--features", "embedding"], "head"),
        (["--split", "train"], "split"),
        (["digits", "--root", "videos"], "digits: --root is for annotations"),
        (["--frames", 9], "--frames is of --clips"),
        (["--stride", 2], "--stride is of --clips"),
        (["--renderings", 2], "--renderings is of digits"),
        (["--task-clips", 2], "--task-clips is of --task"),
        (["--task", "all", "--class-folders"], "--class-folders is without --task"),
        (["--task", "all", "--size", 32], "clips of a motion task are rendered: give a size, and clips dense:1"),
        (["--task", "panning", "--size", 32, "--clips", "dense:1"], "unknown motion task 'panning'"),
        (["--actors", 2], "--actors is for --engine ray"),
        (["--ray-address", "auto"], "--ray-address is for --engine ray"),
        (["--engine", "ray", "--measure"], "--measure is of this machine"),
        (["--engine", "ray", "--device", "cuda"], "--device is not for --engine ray"),
        (["--engine", "ray", "--workers", -1], "fewer than none"),
    ],
)
def test_wrong_input_is_one_line(capsys, tmp_path, model, videos, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    source = [] if args[0].startswith(("nope", "digits")) else [videos / "a.mp4"]
    assert message in refused(capsys, "extract", *source, *args, "-o", "out", "--model", model)
    assert not os.path.exists("out") or [*os.listdir("out")] in ([], [".claims"])


def test_measure_prints_speeds_and_writes_nothing(capsys, tmp_path, model, videos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vidtok.extraction.run.FRAMES", 60)
    assert main(["extract", str(videos), "-o", "out", "--model", model, "--measure", "--workers", "0"]) == 0
    out = capsys.readouterr().out
    assert out.count("frames/s") == 3 and "of 1/(1/decode + 1/model)" in out and "of the slower stage" in out
    assert not [*tmp_path.iterdir()]
