"""Bad files are found before a run, and none is in training and validation."""

import argparse
import os
import time

import pandas as pd
import pytest

from vidtok.cli import check as command
from vidtok.datasets import (
    ClipFolder,
    MovingDigits,
    VideoFolder,
    check,
    check_video,
    check_videos,
    demo_clip,
    files_by_split,
    find_overlap,
    open_dataset,
    validate_disjoint,
    write_video,
)
from vidtok.datasets.backends import has_decord
from vidtok.errors import UserError


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "videos"
    for split in ("train", "val"):
        (root / split / "a").mkdir(parents=True)
    write_video(root / "train" / "a" / "good.mp4", demo_clip(20, 64), 25)
    write_video(root / "train" / "a" / "short.mp4", demo_clip(5, 64, seed=1), 25)
    write_video(root / "train" / "a" / "picture.png", demo_clip(1, 40), 25)
    write_video(root / "val" / "a" / "other.mp4", demo_clip(20, 64, seed=2), 25)
    data = bytearray((root / "val" / "a" / "other.mp4").read_bytes())
    (root / "val" / "a" / "no_moov.mp4").write_bytes(data[: len(data) // 2])
    data[len(data) // 2 : len(data) // 2 + 800] = bytes(800)
    (root / "val" / "a" / "rotten.mp4").write_bytes(data)
    return root


def test_one_row_says_all(folder):
    row = check_video(folder / "train" / "a" / "good.mp4", 16)
    assert (row["status"], row["reason"], row["guard"]) == ("ok", "", "")
    assert (row["frames"], row["fps"], row["height"], row["width"]) == (20, 25.0, 64, 64)
    assert row["duration"] == pytest.approx(0.8)
    row = check_video(folder / "train" / "a" / "short.mp4", 16)
    assert (row["status"], row["reason"], row["frames"]) == ("too short", "5 frames, fewer than 16", 5)
    row = check_video(folder / "val" / "a" / "rotten.mp4")
    assert row["status"] == "corrupt" and "breaks after" in row["reason"] and 0 < row["frames"] < 20
    assert check_video(folder / "gone.mp4")["status"] == "missing"
    assert check_video(folder / "val" / "a" / "no_moov.mp4")["status"] == "corrupt"
    row = check_video(folder / "train" / "a" / "picture.png")
    assert (row["status"], row["guard"], row["frames"]) == ("ok", "", 1)


@pytest.mark.skipif(not has_decord(), reason="the guard is decord's")
def test_the_guard_is_told(tmp_path):
    write_video(tmp_path / "x.gif", demo_clip(9, 32), 10)
    row = check_video(tmp_path / "x.gif")
    assert row["status"] == "ok" and "decord" in row["guard"]


class Hanging(os.PathLike):
    """A path that never opens."""

    def __fspath__(self):
        time.sleep(1e6)

    def __str__(self):
        return "hangs.mp4"


def test_what_hangs_is_corrupt(folder):
    rows = list(check_videos([str(folder / "train" / "a" / "good.mp4"), Hanging()], workers=1, time_limit=2.5))
    assert [(row["path"][-9:], row["status"]) for row in rows] == [("/good.mp4", "ok"), ("hangs.mp4", "corrupt")]
    assert "no result within" in rows[1]["reason"]


def test_the_same_video_in_training_and_validation(folder):
    train, val = (VideoFolder(folder, split).paths for split in ("train", "val"))
    assert find_overlap(train, val) == []
    validate_disjoint(train, val)
    good = folder / "train" / "a" / "good.mp4"
    copy, link = folder / "val" / "a" / "copy.mp4", folder / "val" / "a" / "link.mp4"
    copy.write_bytes(good.read_bytes())
    link.symlink_to(folder / "train" / "a" / "short.mp4")
    train, val = [*train, "gone.mp4"], [*VideoFolder(folder, "val").paths, "gone.mp4"]
    assert find_overlap(train, val) == [(str(good), str(copy)), (str(folder / "train" / "a" / "short.mp4"), str(link))]
    datasets = [VideoFolder(folder, split) for split in ("train", "val")]
    for pair in ((train, val), datasets, (ClipFolder(folder / "train"), val)):
        with pytest.raises(
            ValueError, match=rf"2 files are in training and validation: {good} = {copy}; .*short.mp4 ="
        ):
            validate_disjoint(*pair)
    with pytest.raises(ValueError, match=r"^2 files are in training and validation, all there are \(name their splits"):
        validate_disjoint(train[:2], train[:2])  # one source without splits
    changed = bytearray(good.read_bytes())
    changed[50] ^= 1  # same size, same end
    copy.write_bytes(changed)
    assert len(find_overlap(train, val)) == 1
    validate_disjoint(MovingDigits("train"), MovingDigits("val"))
    twins = [folder / "train" / f"{i}.mp4" for i in range(30)]
    for twin in twins:
        twin.write_bytes(good.read_bytes())
    with pytest.raises(ValueError, match=r"30 files .*; \.\.\. and 10 more"):
        validate_disjoint(twins, [good])


def run(*argv) -> int:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return command.run(parser.parse_args([*map(str, argv), "--workers", "1"]))


def test_command(folder, tmp_path, capsys):
    table_file = tmp_path / "checked.csv"
    assert run(folder, "--min-frames", 16, "-o", table_file) == 1
    out = capsys.readouterr().out
    assert "rotten.mp4: corrupt: the stream breaks after" in out and "6 videos: " in out and "0 in two splits" in out
    table = pd.read_csv(table_file).set_index("path")
    status = {os.path.basename(path): s for path, s in table["status"].items()}
    assert status == {
        "good.mp4": "ok", "other.mp4": "ok", "picture.png": "too short", "short.mp4": "too short",
        "no_moov.mp4": "corrupt", "rotten.mp4": "corrupt",
    }  # fmt: skip
    with pytest.warns(UserWarning, match="2 of 3 videos left out"):
        assert VideoFolder(folder, "val", checked=table_file).ids == ["val/a/other.mp4"]
    for name in ("no_moov.mp4", "rotten.mp4"):
        (folder / "val" / "a" / name).unlink()
    assert run(folder) == 0
    (folder / "val" / "a" / "copy.mp4").write_bytes((folder / "train" / "a" / "good.mp4").read_bytes())
    capsys.readouterr()
    assert run(folder) == 1
    assert "good.mp4 of train is in val, too, as " in capsys.readouterr().out


def test_check_as_a_function(folder, tmp_path):
    (tmp_path / "train.txt").write_text("train/a/good.mp4 0\ntrain/a/gone.mp4 1\n")
    (tmp_path / "val.txt").write_text("train/a/good.mp4 0\n")
    done = []
    settings = {"root": folder, "workers": 1, "progress": lambda *counts: done.append(counts)}
    found = check([tmp_path / "train.txt", tmp_path / "val.txt"], output=tmp_path / "table.csv", **settings)
    assert not found.ok and list(found.bad["status"]) == ["missing"] and done == [(1, 2), (2, 2)]
    good = str(folder / "train" / "a" / "good.mp4")
    assert found.overlap == [(str(tmp_path / "train.txt"), good, str(tmp_path / "val.txt"), good)]
    assert len(pd.read_csv(tmp_path / "table.csv")) == 2
    with pytest.raises(UserError, match="exists"):
        check(tmp_path / "val.txt", output=tmp_path / "table.csv", **settings)
    assert check(tmp_path / "val.txt", **settings).ok


def test_command_on_lists(folder, tmp_path, capsys):
    (tmp_path / "train.txt").write_text("train/a/good.mp4 0\ntrain/a/gone.mp4 1\n")
    (tmp_path / "val.txt").write_text("val/a/other.mp4 0\ntrain/a/good.mp4 0\n")
    assert run(tmp_path / "train.txt", tmp_path / "val.txt", "--root", folder) == 1
    out = capsys.readouterr().out
    assert "gone.mp4: missing\n" in out
    assert f"good.mp4 of {tmp_path / 'train.txt'} is in {tmp_path / 'val.txt'}, too" in out
    assert "3 videos: 2 ok, 1 missing" in out


def test_open_dataset_tells_what_it_is(folder, tmp_path):
    assert type(open_dataset("digits", split="val")) is MovingDigits
    assert open_dataset(folder, split="train").classes == ["a"]
    (folder / "k.csv").write_text("label,youtube_id,time_start,time_end,split\nx,good,0,1,train\ny,z,0,1,val\n")
    assert type(open_dataset(folder / "k.csv")).__name__ == "Kinetics"
    assert [len(paths) for paths in files_by_split(folder / "k.csv").values()] == [1, 1]
    (folder / "s.json").write_text('[{"id": 1, "template": "a [b]"}]')
    assert type(open_dataset(folder / "s.json")).__name__ == "SomethingSomethingV2"
    (folder / "l.csv").write_text("file,verb\ntrain/a/good.mp4,put\n")
    assert open_dataset(folder / "l.csv", label_column="verb").classes == ["put"]
    for function in (open_dataset, files_by_split):
        with pytest.raises(ValueError, match="no such file or folder"):
            function(tmp_path / "nothing")
