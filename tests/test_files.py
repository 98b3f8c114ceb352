"""Which files a folder holds, and how they are written."""

import os
import socket
import warnings

import pytest
import torch

from vidtok.datasets import ClipFolder, VideoFolder, files_by_split, find_overlap, write_video
from vidtok.datasets.container import open_container
from vidtok.datasets.sources import find_media
from vidtok.errors import UserError, VideoError
from vidtok.files import replacing, temporary_path, write_json
from vidtok.inputs import find_files, find_videos, walk_files

MP4 = (".mp4",)


def put(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def below(folder, suffixes=MP4):
    """Paths that `walk_files` finds, relative to the folder, and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = sorted(os.path.relpath(path, folder) for path in walk_files(folder, suffixes))
    return found, [str(warning.message).replace(f"{folder}/", "") for warning in caught]


@pytest.fixture
def linked(tmp_path):
    """A folder with links to a file and folders outside of it, to itself, and to what it holds anyway."""
    put(tmp_path, "real/b.mp4", "real/deep/c.mp4", "one.mp4", "data/own.mp4", "data/z/d.mp4")
    data = tmp_path / "data"
    (data / "linked").symlink_to(tmp_path / "real")
    (data / "again").symlink_to(tmp_path / "real")
    (data / "a.mp4").symlink_to(tmp_path / "one.mp4")
    (data / "a-link-to-d.mp4").symlink_to(data / "z" / "d.mp4")
    (data / "z" / "up").symlink_to(data)
    (data / "loop").symlink_to("loop")
    (tmp_path / "real" / "back").symlink_to(data)
    return data


def test_links_are_followed_and_each_file_is_listed_once(linked):
    expected = ["a.mp4", "again/b.mp4", "again/deep/c.mp4", "own.mp4", "z/d.mp4"]
    assert below(linked) == (expected, ["loop: a link that leads nowhere, left out"])


@pytest.mark.filterwarnings("ignore:.*leads nowhere")
def test_the_rule_is_the_same_for_every_search(linked, monkeypatch):
    expected = [str(linked / name) for name in below(linked)[0]]
    assert find_media(linked, MP4) == expected == files_by_split(linked)[str(linked)]
    assert [str(file) for file, _ in find_files([str(linked)], MP4)] == expected
    assert [str(file) for file, _ in find_files([f"{linked}/**/*.mp4"], MP4)] == expected
    monkeypatch.chdir(linked)
    assert len(find_files([".", "..", "linked", "z/up"], MP4)) == 5
    for name in ("own.mp4", "a.mp4", "a-link-to-d.mp4"):
        (linked / name).unlink()
    dataset = VideoFolder(linked)
    assert dataset.ids == ["again/b.mp4", "again/deep/c.mp4", "z/d.mp4"] and dataset.classes == ["again", "z"]


@pytest.mark.filterwarnings("ignore:.*leads nowhere")
def test_a_list_may_name_files_by_any_link(linked):
    (linked / "list.csv").write_text(
        f"path,label\nlinked/b.mp4,a\nz/up/own.mp4,b\n{linked}/z/d.mp4,c\n.h/e.mp4,d\nz/no.mp4,d\n"
    )
    put(linked, ".h/e.mp4")
    clips = ClipFolder(linked, 5, crop=32, annotations=linked / "list.csv")
    assert [os.path.relpath(path, linked) for path in clips.videos] == [".h/e.mp4", "again/b.mp4", "own.mp4", "z/d.mp4"]

    other = ClipFolder({linked: 1, linked.parent / "real" / "deep": 1}, 5, crop=32, annotations=linked / "list.csv")
    assert other.videos == clips.videos  # an absolute path is of the folder that it lies in


def test_a_list_names_one_of_two_spellings(tmp_path):
    put(tmp_path, "\u00e9.mp4", "e\u0301.mp4", "o\u0308.mp4")
    (tmp_path / "list.csv").write_text("path,label\n\u00e9.mp4,a\n\u00f6.mp4,b\n")
    clips = ClipFolder(tmp_path, 5, crop=32, annotations=tmp_path / "list.csv")
    assert [os.path.basename(path) for path in clips.videos] == ["o\u0308.mp4", "\u00e9.mp4"]


def test_a_broken_link_is_listed_so_that_its_reader_reports_it(tmp_path):
    put(tmp_path, "a.mp4")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nothing.mp4")
    (tmp_path / "disk").symlink_to("/not/mounted")
    (tmp_path / ".#lock").symlink_to("host:1")
    assert below(tmp_path) == (["a.mp4", "gone.mp4"], ["disk: a link that leads nowhere, left out"])
    assert [str(name) for _, name in find_files([str(tmp_path / "gone.mp4")], MP4)] == ["gone.mp4"]


def test_what_is_no_regular_file_is_left_out(tmp_path, monkeypatch):
    put(tmp_path, "x.mp4/a.mp4", "x.mp4/._a.mp4", ".hidden/b.mp4", "Thumbs.db", ".DS_Store", "empty/.keep")
    os.mkfifo(tmp_path / "pipe.mp4")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.mp4")
        named = [f"{name}: not a regular file, left out" for name in ("pipe.mp4", "socket.mp4")]
        assert below(tmp_path) == (["x.mp4/a.mp4"], named)
    put(tmp_path, "b.mp4")
    assert [str(file) for file, _ in find_files(["*"], MP4)] == ["b.mp4"]
    assert [str(file) for file, _ in find_files(["**"], MP4)] == ["b.mp4", "x.mp4/a.mp4"]
    with pytest.raises(UserError, match=r"empty: no \.mp4"):
        find_videos(["empty"])


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    put(tmp_path, "a.mp4", "secret/b.mp4")
    scandir = os.scandir

    def scan(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    assert below(tmp_path) == (["a.mp4"], ["secret: Permission denied, left out"])


def test_a_file_that_cannot_be_opened_is_one_error(tmp_path, monkeypatch):
    with pytest.raises(VideoError, match=r"\.mp4: File name too long"):
        open_container(tmp_path / f"{'m' * 300}.mp4")
    put(tmp_path, "a.png")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("vidtok.datasets.container.open_binary", refuse)
    with pytest.raises(VideoError, match=r"a\.png: Permission denied"):
        open_container(tmp_path / "a.png")


def test_files_that_vanish_or_cannot_be_read_have_no_twin(tmp_path, monkeypatch):
    put(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    (tmp_path / "c.mp4").write_text("a.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    paths = {name: str(tmp_path / f"{name}.mp4") for name in ("a", "b", "c", "pipe", "gone")}
    size = os.path.getsize

    def getsize(path):
        if path == paths["b"]:
            raise FileNotFoundError(path)
        return size(path)

    monkeypatch.setattr(os.path, "getsize", getsize)
    assert find_overlap(paths.values(), [paths["b"], paths["c"]]) == [
        (paths["a"], paths["c"]),
        (paths["c"], paths["c"]),
    ]


LONGEST = "m" * 251  # with a suffix of four bytes the longest name that common file systems take


def test_the_longest_names_can_be_written(tmp_path):
    write_json(tmp_path / f"{LONGEST[1:]}.json", {"a": 1})
    write_video(tmp_path / f"{LONGEST}.mp4", torch.zeros(1, 3, 1, 16, 16), 24)
    write_video(tmp_path / f"{LONGEST}.gif", torch.zeros(1, 3, 2, 16, 16), 24)
    assert len(os.listdir(tmp_path)) == 3


def test_a_file_appears_complete_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(ZeroDivisionError), replacing(path) as part:
        part.write_text("half")
        raise ZeroDivisionError
    assert not os.listdir(tmp_path)
    with replacing(path) as part:
        part.write_text("whole")
        assert part.name.startswith(".") and "a.txt" not in part.name and not path.exists()
    assert path.read_text() == "whole" and os.listdir(tmp_path) == ["a.txt"]


def test_a_locked_file_has_one_temporary_name(tmp_path):
    names = [temporary_path(tmp_path / name, locked=True) for name in ("a.npz", "a.npz", "b.npz")]
    assert names[0] == names[1] != names[2] and temporary_path(tmp_path / "a.npz") not in names
