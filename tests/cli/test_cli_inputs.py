"""What IN... and -o mean."""

import pytest

from vidtok.errors import UserError
from vidtok.files import plan_jobs
from vidtok.inputs import find_files


@pytest.fixture
def tree(tmp_path, monkeypatch):
    names = "v/a.mp4 v/sub/b.MP4 v/sub/c.mkv v/notes.txt v/.hidden.mp4 w/a.avi w/d[1].mp4 w/x/a.mp4"
    for name in names.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(inputs, output):
    jobs = plan_jobs(find_files(inputs, (".mp4", ".mkv", ".avi")), output, ".npz", (".npz",))
    return {str(job.source): str(job.target) for job in jobs}


@pytest.mark.parametrize(
    "inputs, output, expected",
    [
        (["v"], "o", {"v/a.mp4": "o/a.npz", "v/sub/b.MP4": "o/sub/b.npz", "v/sub/c.mkv": "o/sub/c.npz"}),
        (["v/a.mp4"], "o", {"v/a.mp4": "o/a.npz"}),
        (["v/a.mp4"], "o/x.npz", {"v/a.mp4": "o/x.npz"}),
        (["v/notes.txt"], "o", {"v/notes.txt": "o/notes.txt.npz"}),  # named: what it is shows when it is read
        (["v/*/*.mkv"], "o", {"v/sub/c.mkv": "o/sub/c.npz"}),
        (["v/**/*.mp4"], "o", {"v/a.mp4": "o/a.npz"}),
        (["w/d[1].mp4"], "o", {"w/d[1].mp4": "o/d[1].npz"}),  # a name before it is a pattern
        (["v/sub", "v/sub/c.mkv", "./v/sub/"], "o", {"v/sub/b.MP4": "o/b.npz", "v/sub/c.mkv": "o/c.npz"}),
        (["v/a.mp4", "w/a.avi"], "o", {"v/a.mp4": "o/a.mp4.npz", "w/a.avi": "o/a.avi.npz"}),
    ],
)
def test_targets(tree, inputs, output, expected):
    assert plan(inputs, output) == expected


@pytest.mark.parametrize(
    "inputs, output, message",
    [
        (["nope.mp4"], "o", "nope.mp4: no such file"),
        (["v/*.avi"], "o", "no file matches"),
        (["v", "w/x"], "o", "v/a.mp4 and w/x/a.mp4 would both become o/a.npz"),
        (["v"], "o.npz", "3 inputs"),
        (["v"], "v/notes.txt", "give a folder, or a file in .npz"),
        (["v/a.mp4"], "o.webm", "give a folder, or a file in .npz"),
    ],
)
def test_errors(tree, inputs, output, message):
    with pytest.raises(UserError, match=message.replace(".", r"\.").replace("*", r"\*")):
        plan(inputs, output)


def test_a_folder_without_videos(tree):
    (tree / "none").mkdir()
    with pytest.raises(UserError, match="none: no"):
        plan(["none"], "o")


def test_a_result_never_replaces_an_input(tree):
    with pytest.raises(UserError, match="is one of the inputs"):
        plan_jobs(find_files(["v/a.mp4"], (".mp4",)), "v", ".mp4", (".mp4",))
