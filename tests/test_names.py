"""Names of results: distinct, short enough, and the same in every run."""

import os

import pytest

from vidtok.names import escape_name, result_candidates, result_names, unescape_name

ODD = {
    b"latin\xe9.mp4": "latin%xE9.mp4",
    b"two\nlines\t.mp4": "two%x0Alines%x09.mp4",
    b"a\x7f\xff/b.mp4": "a%x7F%xFF/b.mp4",
    b"%xE9.mp4": "%x25xE9.mp4",
    b"%x25xE9.mp4": "%x25x25xE9.mp4",
}
PLAIN = ["50%.mp4", "a%20b.mp4", "%E4%BD%A0.mp4", "%d.mp4", "é.mp4", "e\u0301.mp4", "\U0001f600 .mp4", "-a, 'b' \".mp4"]


def test_what_some_encodings_refuse_is_escaped():
    for raw, text in ODD.items():
        name = os.fsdecode(raw)
        assert escape_name(name) == text and unescape_name(text) == name
        text.encode()
    for name in PLAIN:
        assert escape_name(name) == name == unescape_name(name)


@pytest.mark.parametrize(
    "id, name",
    [
        ("a\\b.AVI", "a/b.npz"), ("//data/x.mp4", "data/x.npz"), ("C:\\data\\x.mp4", "data/x.npz"),
        (".h/.x.mp4", "%x2Eh/%x2Ex.npz"), ("a/./../x.mp4", "a/x.npz"),
        ("-x", "-x.npz"), ("a.b..mp4", "a.b..npz"), ("x /y .mp4", "x /y .npz"),
        (os.fsdecode(b"\xe9/\xe9.mp4"), "%xE9/%xE9.npz"),
    ],
)  # fmt: skip
def test_names_stay_inside_the_folder(id, name):
    assert result_candidates(id, ".npz")[0] == name


@pytest.mark.parametrize(
    "id", ["", "..", "/", "é" * 200 + ".mp4", os.fsdecode(b"\xe9" * 200), "m" * 252 + ".ts", "a" * 999]
)
def test_every_id_has_a_name_that_file_systems_take(id, tmp_path):
    for candidate in {*result_candidates(id, ".parquet")}:
        assert candidate.endswith(".parquet") and not candidate.startswith((".", "/"))
        path = tmp_path / candidate
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(exist_ok=False)
        path.unlink()


def test_names_that_are_cut_stay_distinct():
    ids = ["m" * 260 + ending for ending in ("a", "b", "a.mp4")]
    assert len({*result_names([(id, None) for id in ids], ".npz").values()}) == 3


def names_of(*files, root):
    ids = {os.path.relpath(file, root): file for file in files}
    return [*result_names(ids.items(), ".npz").values()]


def test_files_that_differ_in_the_suffix_keep_it_whichever_are_given(tmp_path):
    for name in ("a.mp4", "a.webm", "a.jpg", "b.mp4", "b.jpg", "c.jpg", "c.png", "d.MP4", "d.mp4", "e.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "e.webm").mkdir()
    (tmp_path / "._e.mov").touch()
    wanted = {
        "a.mp4": "a.mp4.npz", "a.webm": "a.webm.npz", "a.jpg": "a.jpg.npz", "b.mp4": "b.npz", "b.jpg": "b.jpg.npz",
        "c.jpg": "c.jpg.npz", "c.png": "c.png.npz", "d.MP4": "d.MP4.npz", "d.mp4": "d.mp4.npz", "e.mp4": "e.npz",
    }  # fmt: skip
    paths = {name: str(tmp_path / name) for name in wanted}
    assert names_of(*paths.values(), root=tmp_path) == [*wanted.values()]
    for name, result in wanted.items():
        assert names_of(paths[name], root=tmp_path) == [result]


def test_ids_that_would_share_a_name_get_a_hash():
    names = result_names(
        [(id, None) for id in ("/d/a.mp4", "d/a.mp4", "b/a.mp4", "x", "x.mp4", "y.mp4", "y.npz/a")], ".npz"
    )
    assert len({*names.values()}) == 7 and names["b/a.mp4"] == "b/a.npz" and names["x.mp4"] == "x.mp4.npz"
    assert names["/d/a.mp4"].startswith("d/a-") and names["d/a.mp4"].startswith("d/a-")
    assert names["y.npz/a"] == "y.npz/a.npz" and names["y.mp4"] != "y.npz"  # a file and a folder
