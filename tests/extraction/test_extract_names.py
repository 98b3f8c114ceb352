"""Names of files: each is extracted or fails alone, whatever it is called, and a second run finds what is there."""

import csv
import io
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vidtok.cli.main import main
from vidtok.datasets import ClipFolder, check, demo_clip, open_dataset, write_video
from vidtok.extraction import TokenDataset, npz, open_reader
from vidtok.extraction.containers import SUFFIXES
from vidtok.extraction.sources import plan_sources
from vidtok.names import escape_name

LATIN, LATIN_ID = os.fsdecode(b"latin\xe9.mp4"), "latin%xE9.mp4"
NAMES = [
    "ok.mp4", "-dash.mp4", "a,b 'c' \"d\".mp4", "two\nlines.mp4", "50%.mp4", "%d.mp4", "dots..mp4", "space .mp4",
    "e\u0301.mp4", "\u00e9.mp4", "\U0001f600.mp4", "case.mp4", "CASE.mp4", "back\\slash.mp4", LATIN, "latin%xE9.mp4",
    "m" * 246 + ".mp4",
]  # fmt: skip


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    write_video(path, demo_clip(5, 32), 24)
    return path


@pytest.fixture
def folder(tmp_path, video, monkeypatch):
    """Makes a folder "v" of copies of one video in the working directory."""
    monkeypatch.chdir(tmp_path)

    def make(*names):
        for name in names:
            path = tmp_path / "v" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(video, path)
        return tmp_path / "v"

    return make


@pytest.fixture
def run(capsys, tokenizer_path):
    """Runs a command; returns its status, stdout and stderr."""

    def call(verb, *args):
        capsys.readouterr()
        workers = ["--workers", "0"] if verb in ("extract", "encode") else []
        status = main([verb, "--model", tokenizer_path, *workers, *map(str, args)])
        return status, *capsys.readouterr()

    return call


def ids_in(out):
    return sorted(entry.id for entry in open_reader(out).entries)


def results(folder, suffix=".npz"):
    found = (os.path.join(where, name) for where, _, names in os.walk(folder) for name in names)
    return sorted(os.path.relpath(path, folder) for path in found if path.endswith(suffix))


@pytest.mark.parametrize("container", [*SUFFIXES])
def test_every_name_is_extracted_and_found_again(folder, run, container):
    folder(*NAMES)
    (folder() / "broken\n\udce8.mp4").write_bytes(b"no video")
    command = ["extract", "v", "-o", "o", "--container", container]
    status, out, err = run(*command)
    assert status == 1 and f"extracted {len(NAMES)} of {len(NAMES) + 1} videos" in out
    assert err.startswith("vidtok: v/broken%x0A%xE8.mp4: ") and err.count("\n") == 1
    assert ids_in("o") == sorted(map(escape_name, NAMES)) and len({*ids_in("o")}) == len(NAMES)
    with open("o/failures.csv", encoding="utf-8", newline="") as file:
        (failure,) = csv.DictReader(file)
    assert failure["id"] == "broken%x0A%xE8.mp4" and failure["path"] == "v/broken%x0A%xE8.mp4"
    status, out, _ = run(*command)
    assert f"{len(NAMES)} were complete, 1 failed" in out
    reader = open_reader("o")
    sources = {entry.id: reader.read(i).meta.source for i, entry in enumerate(reader.entries)}
    assert sources[LATIN_ID] == LATIN_ID


@pytest.mark.parametrize("container", [*SUFFIXES])
def test_an_output_folder_that_is_not_utf8(folder, run, container):
    folder("a.mp4", ".hidden.mp4")
    out = os.fsdecode(b"caf\xe9")
    for counts in ("extracted 2 of 2", "2 were complete"):
        assert counts in run("extract", "v", "v/.hidden.mp4", "-o", out, "--container", container)[1]
    assert ids_in(out) == [".hidden.mp4", "a.mp4"] and len(TokenDataset(out, cache="cache")) == 2


def test_a_name_that_is_too_long_fails_alone(folder, run, monkeypatch):
    folder("a.mp4", "b.mp4", "c.mp4")
    replace = os.replace

    def refuse(source, target):
        if os.path.basename(target) == "b.npz":
            raise OSError(36, "File name too long", str(target))
        return replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refuse)
        status, out, err = run("encode", "v", "-o", "o")
    assert status == 1 and "encoded 2 of 3 videos" in out and err == "vidtok: v/b.mp4: o/b.npz: File name too long\n"
    assert results("o") == ["a.npz", "c.npz"] and "b.mp4" in Path("o/failures.csv").read_text()
    status, out, _ = run("encode", "v", "-o", "o")
    assert status == 0 and "2 were complete" in out and not os.path.exists("o/failures.csv")


def test_what_is_there_but_cannot_be_read_fails_alone(folder, run, monkeypatch):
    folder("a.mp4", "b.mp4")
    run("encode", "v", "-o", "o")
    read = npz.read_npz

    def refuse(path):
        if path.name == "a.npz":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(npz, "read_npz", refuse)
    status, out, err = run("encode", "v", "-o", "o")
    assert status == 1 and "1 were complete, 1 failed" in out
    assert err == "vidtok: v/a.mp4: o/a.npz: Permission denied\n"


@pytest.mark.filterwarnings("ignore:v/pipe")
def test_what_is_no_file_fails_alone(folder, run):
    folder("a.mp4")
    os.symlink("nothing", "v/gone.mp4")
    os.mkfifo("v/pipe.mp4")
    status, out, err = run("encode", "v/a.mp4", "v/gone.mp4", "v/pipe.mp4", "-o", "o")
    assert status == 1 and "encoded 1 of 3" in out
    assert err == "vidtok: v/gone.mp4: no such file\nvidtok: v/pipe.mp4: not a file\n"
    status, out, err = run("extract", "v", "-o", "o")  # a folder gives no FIFOs
    assert "1 were complete, 1 failed" in out and err == "vidtok: v/gone.mp4: no such file\n"


def test_a_file_where_a_folder_belongs_fails_alone(folder, run):
    folder("a.npz/x.mp4", "b.mp4", "c.mp4")
    os.makedirs("o/b.npz")
    run("encode", "v/c.mp4", "-o", "o")
    with open("o/a.npz", "wb") as file:
        file.write(b"in the way")
    status, out, err = run("encode", "v", "-o", "o")
    assert status == 1 and "encoded 1 of 3" in out and "1 were complete" in out and "v/a.npz/x.mp4: " in err
    assert results("o") == ["a.npz", "b.mp4.npz", "c.npz"]
    assert "2 were complete" in run("encode", "v", "-o", "o")[1]


def test_files_that_differ_in_the_suffix(folder, run, video):
    folder("a.mp4", "b.mp4")
    run("encode", "v", "-o", "old")
    folder("a.mkv")
    pair = ["a.mkv.npz", "a.mp4.npz"]
    run("encode", "v/a.mkv", "-o", "o")
    assert results("o") == pair[:1]
    assert "1 were complete" in run("encode", "v", "-o", "o")[1] and results("o") == [*pair, "b.npz"]
    assert "3 were complete" in run("encode", "v", "-o", "o")[1]
    os.unlink("v/a.mkv")
    assert "2 were complete" in run("encode", "v", "-o", "o")[1]  # a.mp4.npz is still a.mp4's
    folder("a.mkv")
    assert "2 were complete" in run("encode", "v", "-o", "old")[1] and results("old") == ["a.mkv.npz", "a.npz", "b.npz"]
    assert run("decode", "o", "-o", "d")[0] == 0 and results("d", ".mp4") == ["a.mkv.mp4", "a.mp4.mp4", "b.mp4"]
    assert run("reconstruct", "v", "-o", "r")[0] == 0 and results("r", ".mp4") == ["a.mkv.mp4", "a.mp4.mp4", "b.mp4"]
    run("extract", "v", "-o", "p", "--container", "parquet")
    assert ids_in("p") == ["a.mkv", "a.mp4", "b.mp4"]
    assert run("decode", "p", "-o", "e")[0] == 0 and results("e", ".mp4") == ["a.mkv.mp4", "a.mp4.mp4", "b.mp4"]


def test_a_shard_that_cannot_be_read_fails_alone(folder, run):
    folder("a.mp4")
    run("extract", "v", "-o", "p", "--container", "parquet")
    Path("p/part-0.parquet").write_bytes(b"no shard")
    status, out, err = run("decode", "p", "-o", "12:30")
    assert status == 1 and "1 of 2" in out and err.startswith("vidtok: p/part-0.parquet: ") and err.count("\n") == 1
    assert results("12:30", ".mp4") == ["a.mp4"]


def test_two_folders_with_one_name_of_different_suffix(folder, run, video):
    folder("x/a.mp4")
    shutil.copytree("v/x", "w")
    os.rename("w/a.mp4", "w/a.mov")
    for source, counts in (("v/x", "encoded 1 of 1"), ("w", "encoded 1 of 1"), ("v/x", "1 were"), ("w", "1 were")):
        assert counts in run("encode", source, "-o", "o")[1]
    assert results("o") == ["a.mov.npz", "a.npz"]
    assert "2 were complete" in run("encode", "v/x", "w", "-o", "o")[1]
    assert "encoded 1 of 1" in run("encode", "w", "-o", "o", "--force")[1] and ids_in("o") == ["a.mov", "a.mp4"]


def test_links_to_one_file_are_one_video(folder, run):
    folder("a.mp4", "sub/b.mp4")
    os.symlink("v", "w")
    os.symlink("sub", "v/again")
    for verb in ("encode", "extract"):
        assert "2 of 2 videos" in run(verb, "v", "w", "v/sub", "-o", verb)[1]
        assert results(verb) == ["a.npz", "sub/b.npz"]


def test_a_name_that_begins_with_a_dash(folder, run, monkeypatch):
    monkeypatch.chdir(folder("-dash.mp4", "--debug.mp4"))
    assert run("encode", "-o", "x", "--", "-dash.mp4")[0] == 0 and results("x") == ["-dash.npz"]
    assert run("encode", "-o", "y", "--", "--debug.mp4", "-dash.mp4")[0] == 0
    assert results("y") == ["--debug.npz", "-dash.npz"]


def test_names_are_printed_in_every_encoding(folder, monkeypatch):
    for name in ("\U0001f600.mp4", LATIN, "two\nlines.mp4"):
        (folder("ok.mp4") / name).write_bytes(b"no video")
    with io.TextIOWrapper(io.BytesIO(), encoding="ascii") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert main(["check", "v", "--workers", "1"]) == 1
        out.flush()
        lines = out.buffer.getvalue().splitlines()
    assert sorted(line.partition(b": ")[0] for line in lines[:3]) == [
        b"v/\\U0001f600.mp4", b"v/latin%xE9.mp4", b"v/two%x0Alines.mp4",
    ]  # fmt: skip


def test_check_writes_a_table_that_datasets_take(folder):
    root = folder("c/ok.mp4", f"c/{LATIN}", "c/latin%xE9.mp4")
    (root / "c" / "bad\n\udce8.mp4").write_bytes(b"no video")
    (root / "c" / "gone.mp4").symlink_to("nothing")
    found = check(root, output="checked.csv", workers=1)
    table = pd.read_csv("checked.csv")
    assert table["path"].tolist() == found.table["path"].tolist() and table["status"].value_counts()["ok"] == 3
    assert dict(zip(found.bad["path"].str.rpartition("/")[2], found.bad["status"], strict=True)) == {
        "bad%x0A%xE8.mp4": "corrupt",
        "gone.mp4": "missing",
    }
    dataset = open_dataset(root, checked="checked.csv")
    assert sorted(dataset.ids) == ["c/latin%x25xE9.mp4", "c/latin%xE9.mp4", "c/ok.mp4"] and len(dataset.left_out) == 2


def test_class_folders_that_are_not_utf8(folder, run):
    folder(os.fsdecode(b"caf\xe9/a.mp4"), "tea/b.mp4")
    assert run("extract", "v", "--class-folders", "-o", "o", "--container", "parquet")[0] == 0
    reader = open_reader("o")
    assert {(entry.id, entry.label) for entry in reader.entries} == {("caf%xE9/a.mp4", "caf%xE9"), ("tea/b.mp4", "tea")}
    assert np.array_equal(reader.read(0).features, reader.read(1).features)


def test_lists_name_files_as_other_systems_write_them(folder, run):
    root = folder("sub/a.mp4", f"sub/{LATIN}", "e\u0301.mp4", "%d.mp4")
    names = [b"sub\\a.mp4", b"sub/latin\xe9.mp4", "\u00e9.mp4".encode(), os.fsencode(root / "%d.mp4")]
    (root / "list.csv").write_bytes(b"\r\n".join([b"path,label", *(name + b",x" for name in names)]))
    dataset = open_dataset(root / "list.csv")
    expected = ["sub/a.mp4", f"sub/{LATIN}", "e\u0301.mp4", "%d.mp4"]
    assert [os.path.relpath(path, root) for path in dataset.paths] == expected
    assert dataset.ids[1] == f"sub/{LATIN_ID}"
    clips = ClipFolder(root, 5, crop=32, annotations=root / "list.csv")
    assert sorted(os.path.relpath(path, root) for path in clips.videos) == sorted(expected)
    status, out, _ = run("extract", root / "list.csv", "-o", "o", "--container", "parquet")
    assert status == 0 and "4 of 4 videos" in out
    (root / "labels.csv").write_bytes("path,label\na.mp4,caf\u00e9\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not a text file in UTF-8"):
        open_dataset(root / "labels.csv")


@pytest.mark.parametrize("name", ["list.jsonl", "list.ndjson"])
def test_json_lines_are_a_list_of_videos(tmp_path, name):
    write_video(tmp_path / "a.mp4", demo_clip(5, 32), 25)
    (tmp_path / name).write_text('{"path": "a.mp4", "label": "x", "split": "train"}\n')
    (item,) = plan_sources(str(tmp_path / name))
    assert (item.id, item.label, item.split) == ("a.mp4", "x", "train")
