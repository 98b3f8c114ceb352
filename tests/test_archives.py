"""Videos inside tar and zip files, read in place."""

import io
import os
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidtok import archives, inputs
from vidtok.datasets import check, demo_clip, open_dataset, open_video, read_video, write_video
from vidtok.datasets.samplers import uniform_segments
from vidtok.datasets.seek import read_selection
from vidtok.errors import VideoError
from vidtok.extraction.sources import plan_sources
from vidtok.inputs import file_version, find_videos

NAMES = ("a.mp4", "sub/b.webm", "c.png")
KINDS = ("x.tar", "stored.zip", "packed.zip")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder of files, and archives of them."""
    root = tmp_path_factory.mktemp("archives")
    (root / "plain/sub").mkdir(parents=True)
    for name, frames in (("a.mp4", 9), ("sub/b.mkv", 17)):
        write_video(root / "plain" / name, demo_clip(frames, 64), 10)
    os.rename(root / "plain/sub/b.mkv", root / "plain/sub/b.webm")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.arange(24 * 40 * 3, dtype=np.uint8).reshape(24, 40, 3)).save(root / "plain/c.png", exif=exif)
    with tarfile.open(root / "x.tar", "w") as tar:
        for name in NAMES:
            tar.add(root / "plain" / name, f"./{name}")
        tar.add(root / "plain/a.mp4", "sub/.hidden.mp4")
        tar.add(root / "plain/a.mp4", "../out.mp4")
    for kind, how in (("stored.zip", zipfile.ZIP_STORED), ("packed.zip", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(root / kind, "w", how) as file:
            for name in NAMES:
                file.write(root / "plain" / name, name)
            file.write(root / "plain/a.mp4", "__MACOSX/a.mp4")
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_members_are_read_as_files_are(here, kind):
    assert list(inputs.members(here / kind)) == list(NAMES)
    for name in NAMES:
        plain, inside = here / "plain" / name, here / kind / name
        with open_video(plain) as expected, open_video(inside) as reader:
            assert (reader.size, reader.fps, reader.num_frames) == (expected.size, expected.fps, expected.num_frames)
            np.testing.assert_array_equal(reader.timestamps, expected.timestamps)
            last = expected.num_frames - 1
            np.testing.assert_array_equal(reader.frames([last, 0]), expected.frames([last, 0]))
        assert file_version(inside).size == plain.stat().st_size and inputs.exists(inside)
        with inputs.open_binary(inside) as file:
            assert file.read() == plain.read_bytes() and file.seek(-3, os.SEEK_END) == plain.stat().st_size - 3
            assert file.read(10) == plain.read_bytes()[-3:]
    choose = lambda timestamps, fps: np.array([8, 2])  # noqa: E731
    np.testing.assert_array_equal(
        read_selection(here / kind / "a.mp4", choose).frames, read_selection(here / "plain/a.mp4", choose).frames
    )


def test_a_seeking_reader_is_told_of_no_member(here, capfd):
    for backend in ("decord", "torchcodec"):
        with pytest.raises(VideoError, match=f"{backend} can't be proven right on this file: it reads files on disk"):
            open_video(here / "x.tar/a.mp4", backend)
    assert capfd.readouterr() == ("", "")  # decord writes of what it can't open


@pytest.mark.parametrize("kind", KINDS)
def test_archives_are_sources(here, kind, monkeypatch):
    monkeypatch.chdir(here)
    assert find_videos([kind]) == [(Path(kind, name), Path(name)) for name in NAMES[:2]]
    assert find_videos([f"{kind}/c.png"]) == [(Path(kind, "c.png"), Path("c.png"))]
    assert [item.id for item in plan_sources(kind)] == ["a.mp4", "sub/b.webm"]
    found = check(kind, workers=1)
    assert found.ok and found.table["frames"].tolist() == [9, 1, 17]
    with pytest.raises(VideoError, match="no such file in the archive"):
        open_video(Path(kind, "d.mp4"))
    with pytest.raises(VideoError, match="an archive of 3 files: give ARCHIVE/NAME"):
        open_video(kind)


def test_shards_of_a_pattern_keep_their_names(here, monkeypatch):
    monkeypatch.chdir(here)
    ids = [item.id for item in plan_sources(["*.zip"])]
    assert ids == [f"{kind}/{name}" for kind in ("packed.zip", "stored.zip") for name in NAMES[:2]]


def test_annotations_lead_into_archives(here):
    (here / "list.csv").write_text("path,label\nx.tar/a.mp4,p\nstored.zip/sub/b.webm,q\n")
    data = open_dataset(here / "list.csv", sampler=lambda t, fps, rng=None: uniform_segments(t, fps, frames=4))
    assert [data.classes[data[i].label] for i in range(2)] == ["p", "q"] and data.ids == [
        "x.tar/a.mp4",
        "stored.zip/sub/b.webm",
    ]
    assert read_video(here / "x.tar/a.mp4").equal(read_video(here / "plain/a.mp4"))


def test_bad_archives_fail_with_a_reason(here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = (here / "x.tar").read_bytes()
    with tarfile.open(here / "x.tar") as tar:
        second = tar.getmember("./sub/b.webm")
    Path("cut.tar").write_bytes(data[: second.offset_data + second.size // 2])
    Path("bad.zip").write_bytes((here / "stored.zip").read_bytes()[:-30])
    Path("all.tar.gz").write_bytes(b"\x1f\x8b")
    secret = bytearray((here / "stored.zip").read_bytes())
    with zipfile.ZipFile(here / "stored.zip") as whole:
        secret[whole.start_dir + 8] |= 1  # the flag of encryption of the first file
    Path("secret.zip").write_bytes(secret)
    reasons = {
        "cut.tar/sub/b.webm": "the archive is truncated",
        "bad.zip": "not an archive that can be read",
        "all.tar.gz": "a compressed archive: unpack it",
        "secret.zip/a.mp4": "it is encrypted",
    }
    files = {str(file): file for file, _ in find_videos(["cut.tar", "bad.zip", "all.tar.gz", "secret.zip"])}
    assert list(files) == ["cut.tar/a.mp4", "cut.tar/sub/b.webm", *list(reasons)[1:], "secret.zip/sub/b.webm"]
    for path, file in files.items():
        if path not in reasons:
            open_video(file).close()
            continue
        with pytest.raises(VideoError, match=reasons[path]) as caught:
            open_video(file)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_folder_may_have_the_name_of_an_archive(here, tmp_path):
    (tmp_path / "x.tar").mkdir()
    (tmp_path / "x.tar/a.mp4").write_bytes((here / "plain/a.mp4").read_bytes())
    assert len(find_videos([str(tmp_path / "x.tar")])) == 1 and read_video(tmp_path / "x.tar/a.mp4").shape[2] == 9


def zip_with(name: str, data: bytes, how: int, stated: int | None = None, raw_name: bytes | None = None) -> bytes:
    """A zip file of one member; its directory may state another size, or a name of other bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as whole:
        whole.writestr(name, data)
    zipped = bytearray(file.getvalue())
    entry = zipped.rindex(b"PK\x01\x02")
    if stated is not None:
        zipped[entry + 24 : entry + 28] = stated.to_bytes(4, "little")
    if raw_name is not None:
        zipped[entry + 46 : entry + 46 + len(name.encode())] = raw_name
    return bytes(zipped)


def test_a_compressed_member_that_is_too_large_is_refused(here, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_UNPACKED", 1000)
    path = tmp_path / "large.zip"
    path.write_bytes(zip_with("a.mp4", bytes(1001), zipfile.ZIP_DEFLATED))
    with pytest.raises(VideoError, match="it is compressed, and states 1001 bytes: at most 1000 are unpacked"):
        inputs.open_binary(path / "a.mp4")
    path.write_bytes(zip_with("a.mp4", bytes(1001), zipfile.ZIP_STORED))
    os.utime(path, (1, 1))
    assert len(inputs.open_binary(path / "a.mp4").read()) == 1001
    os.utime(path, (2, 2))
    path.write_bytes(zip_with("a.mp4", bytes(1000), zipfile.ZIP_DEFLATED))
    assert len(inputs.open_binary(path / "a.mp4").read()) == 1000


@pytest.mark.parametrize("how", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_member_that_states_too_little_is_not_unpacked_beyond(tmp_path, how):
    (tmp_path / "bomb.zip").write_bytes(zip_with("a.mp4", bytes(1 << 27), how, stated=100))
    tracemalloc.start()
    try:
        with pytest.raises(VideoError, match="it can't be unpacked"):
            inputs.open_binary(tmp_path / "bomb.zip/a.mp4")
        assert tracemalloc.get_traced_memory()[1] < 96 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", [b"\xff\xff", b"\0\0"])
def test_names_that_no_path_can_have(tmp_path, name):
    path = tmp_path / "x.zip"
    path.write_bytes(zip_with("é", b"", zipfile.ZIP_STORED, raw_name=name))
    if name == b"\0\0":  # zipfile ends a name there
        assert inputs.members(path) == {}
    else:
        with pytest.raises(VideoError, match="not an archive that can be read"):
            inputs.members(path)
    local = bytearray(zip_with("é", b"", zipfile.ZIP_DEFLATED))
    local[30:32] = name
    path.write_bytes(local)
    with pytest.raises(VideoError, match="it can't be unpacked"):
        inputs.open_binary(path / "é")
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo("a.mp4")
        entry.pax_headers = {"path": "a\0.mp4"}
        tar.addfile(entry)
    assert inputs.members(tmp_path / "x.tar") == {}
