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

from vidtok import archives, inputs, remote
from vidtok.datasets import (
    check,
    check_video,
    demo_clip,
    find_overlap,
    open_dataset,
    open_video,
    read_video,
    write_video,
)
from vidtok.datasets.samplers import uniform_segments
from vidtok.datasets.seek import read_selection
from vidtok.datasets.sources import videos_by_split
from vidtok.errors import VideoError
from vidtok.extraction.output import read_failures
from vidtok.extraction.run import extract
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


@pytest.fixture
def bucket(here, tmp_path, monkeypatch):
    """The folder of archives in fsspec's memory, as memory://archives."""
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setenv("VIDTOK_CACHE", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    for file in (path for path in here.rglob("*") if path.is_file()):
        system.pipe(f"/archives/{file.relative_to(here)}", file.read_bytes())
    for cache in (remote._ask_version, archives._members):
        cache.cache_clear()
    yield "memory://archives"
    system.rm("/archives", recursive=True)


@pytest.mark.parametrize("kind", KINDS)
def test_archives_at_addresses_are_sources(here, bucket, kind):
    url = f"{bucket}/{kind}"
    assert find_videos([url]) == [(Path(f"{url}/{name}"), Path(name)) for name in NAMES[:2]]
    assert find_videos([f"{url}/c.png"]) == [(Path(f"{url}/c.png"), Path("c.png"))]
    assert [item.path for item in plan_sources(url)] == [f"{url}/{name}" for name in NAMES[:2]]
    for name in NAMES:
        with open_video(here / "plain" / name) as expected, open_video(f"{url}/{name}") as reader:
            last = expected.num_frames - 1
            np.testing.assert_array_equal(reader.frames([last, 0]), expected.frames([last, 0]))
        assert file_version(Path(url, name)).size == (here / "plain" / name).stat().st_size
        with inputs.open_binary(f"{url}/{name}") as file:
            assert file.read() == (here / "plain" / name).read_bytes()
    assert inputs.exists(f"{url}/a.mp4") and not inputs.exists(f"{url}/none.mp4")
    row = check_video(f"{url}/a.mp4")
    assert (row["path"], row["status"], row["frames"]) == (f"{url}/a.mp4", "ok", 9)
    with pytest.raises(VideoError, match="no such file in the archive"):
        open_video(f"{url}/d.mp4")
    with pytest.raises(VideoError, match=r"memory://archives/.*: an archive of 3 files: give ARCHIVE/NAME"):
        open_video(url)
    ids = [item.id for item in plan_sources(f"{bucket}/*.zip")]
    assert ids == [f"{zipped}/{name}" for zipped in ("packed.zip", "stored.zip") for name in NAMES[:2]]


def test_an_index_takes_few_bytes_and_is_kept(here, bucket, tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "large.tar", "w") as tar:
        for number in range(4):
            entry = tarfile.TarInfo(f"{number}.bin")
            entry.size = 1 << 20
            tar.addfile(entry, io.BytesIO(bytes(entry.size)))
        tar.add(here / "plain/a.mp4", "a.mp4")
    with zipfile.ZipFile(tmp_path / "large.zip", "w") as file:
        for number in range(4):
            file.writestr(f"{number}.bin", bytes(1 << 20))
        file.write(here / "plain/a.mp4", "a.mp4")
    system, counts = remote.file_system(bucket)[0], []
    read, video = remote.RemoteFile._read, (here / "plain/a.mp4").read_bytes()

    def counted(self, place: int, count: int) -> bytes:
        counts.append(count)
        return read(self, place, count)

    monkeypatch.setattr(remote.RemoteFile, "_read", counted)
    for name in ("large.tar", "large.zip"):
        system.pipe(f"/archives/{name}", (tmp_path / name).read_bytes())
        assert len(inputs.members(f"{bucket}/{name}")) == 5
        assert 0 < sum(counts) < 1 << 20
        counts.clear()
        archives._members.cache_clear()  # as in another process
        with inputs.open_binary(f"{bucket}/{name}/a.mp4") as file:
            assert file.read() == video
        assert sum(counts) == len(video) + 30 * (name == "large.zip")
        counts.clear()
    system.pipe("/archives/large.tar", (here / "x.tar").read_bytes())  # another file under the same address
    remote._ask_version.cache_clear()
    assert list(inputs.members(f"{bucket}/large.tar")) == list(NAMES)
    for number in range(3):
        archives._keep(tmp_path / f"few/{number}.json", {})
    monkeypatch.setattr(archives, "_INDEXES", 2)
    archives._keep(tmp_path / "few/last.json", {"a": archives.Member(1, None)})
    assert len(list((tmp_path / "few").iterdir())) == 2


def test_bad_archives_at_addresses_are_rows_of_failures(here, bucket, tmp_path, tokenizer_path):
    system = remote.file_system(bucket)[0]
    data, secret = (here / "x.tar").read_bytes(), bytearray((here / "stored.zip").read_bytes())
    with tarfile.open(here / "x.tar") as tar:
        second = tar.getmember("./sub/b.webm")
    with zipfile.ZipFile(here / "stored.zip") as whole:
        secret[whole.start_dir + 8] |= 1  # the flag of encryption of the first file
    for root, write in (
        (bucket, lambda name, content: system.pipe(f"/archives/{name}", content)),
        (str(tmp_path), lambda name, content: (tmp_path / name).write_bytes(content)),
    ):
        write("cut.tar", data[: second.offset_data + second.size // 2])
        write("secret.zip", bytes(secret))
        write("bad.zip", (here / "stored.zip").read_bytes()[:-30])
        write("all.tar.gz", b"\x1f\x8b")
        write("list.csv", b"path,label,start,end\ncut.tar/a.mp4,p,0,0.5\ncut.tar/a.mp4,p,7,8\n")
        reasons = {
            f"{root}/bad.zip": "not an archive that can be read (File is not a zip file)",
            f"{root}/all.tar.gz": "a compressed archive: unpack it, or make it a .tar or .zip",
            f"{root}/cut.tar/sub/b.webm": "the archive is truncated",
            f"{root}/secret.zip/a.mp4": "it is encrypted",
            f"{root}/cut.tar/a.mp4 (7 to 8 s)": "the segment from 7 to 8 s is not within the video, which lasts 0.90 s",
        }
        out = tmp_path / f"out-{root == bucket}"
        sources = [f"{root}/bad.zip", f"{root}/all.tar.gz", f"{root}/cut*.tar", f"{root}/sec*.zip", f"{root}/list.csv"]
        stats = extract(sources, out, model=tokenizer_path, workers=0)
        assert {str(item): why for item, why in stats.failures} == reasons
        assert {row["reason"] for row in read_failures(out, None)} == set(reasons.values())
        assert stats.done == 3  # a.mp4 of the tar and its segment, b.webm of the zip


def test_class_folders_in_archives_and_at_addresses(here, bucket, tmp_path):
    system, videos = remote.file_system(bucket)[0], (here / "plain/a.mp4").read_bytes()
    names = ("train/p/0.mp4", "train/q/1.mp4", "val/p/2.mp4")
    with tarfile.open(tmp_path / "sets.tar", "w") as tar:
        for name in names:
            system.pipe(f"/archives/sets/{name}", videos)
            tar.add(here / "plain/a.mp4", name)
    system.pipe("/archives/sets.tar", (tmp_path / "sets.tar").read_bytes())
    for root in (tmp_path / "sets.tar", f"{bucket}/sets.tar", f"{bucket}/sets", f"{bucket}/sets/"):
        data = open_dataset(root, split="train")
        assert (data.ids, data.classes) == (list(names[:2]), ["p", "q"]) and data[1].video.shape[2] == 9
        items = plan_sources(root, class_folders=True)
        assert [(item.id, item.label, item.split) for item in items] == [
            ("train/p/0.mp4", "p", "train"), ("train/q/1.mp4", "q", "train"), ("val/p/2.mp4", "p", "val")
        ]  # fmt: skip
    assert list(videos_by_split(f"{bucket}/sets")) == ["train", "val"]
    with pytest.raises(ValueError, match=r"memory://archives/\*.tar: a pattern; give a folder"):
        open_dataset(f"{bucket}/*.tar")
    assert find_overlap(open_dataset(f"{bucket}/sets.tar", split="train"), open_dataset(f"{bucket}/sets.tar")) != []
    train, val = [f"{bucket}/sets/{name}" for name in names[:2]], [f"{bucket}/sets/{name}" for name in names[1:]]
    assert find_overlap(train, val) == [(train[1], train[1])]  # by the address alone


LISTS = {
    "list.csv": "path,label\nplain/a.mp4,p\nx.tar/sub/b.webm,q\n",
    "list.tsv": "path\tlabel\nplain/a.mp4\tp\nx.tar/sub/b.webm\tq\n",
    "list.txt": "plain/a.mp4 0\nx.tar/sub/b.webm 1\n",
    "list.json": '[{"path": "plain/a.mp4", "label": "p"}, {"path": "x.tar/sub/b.webm", "label": "q"}]',
    "metadata.jsonl": '{"file_name": "plain/a.mp4", "label": "p"}\n{"file_name": "x.tar/sub/b.webm", "label": "q"}\n',
    "absolute.csv": "path,label\nmemory://archives/plain/a.mp4,p\nmemory://archives/x.tar/sub/b.webm,q\n",
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_at_addresses(here, bucket, tmp_path, name):
    remote.file_system(bucket)[0].pipe(f"/archives/{name}", LISTS[name].encode())
    data = open_dataset(f"{bucket}/{name}")
    assert data.paths == [f"{bucket}/plain/a.mp4", f"{bucket}/x.tar/sub/b.webm"]
    assert [data[i].video.shape[2] for i in range(2)] == [9, 17]
    assert [item.path for item in plan_sources(f"{bucket}/{name}")] == data.paths
    assert list(videos_by_split(f"{bucket}/{name}").values()) == [[(path, None) for path in data.paths]]
    if name != "absolute.csv":
        assert open_dataset(f"{bucket}/{name}", root=here).paths == [f"{here}/plain/a.mp4", f"{here}/x.tar/sub/b.webm"]
    else:
        (tmp_path / name).write_text(LISTS[name])  # a list on this machine may name addresses
        assert open_dataset(tmp_path / name).paths == data.paths


def test_indexes_are_read_while_planning(here, bucket, monkeypatch):
    system = remote.file_system(bucket)[0]
    system.pipe("/archives/list.csv", b"path,label\nx.tar/a.mp4,p\nnone.tar/a.mp4,p\nbad.zip/a.mp4,p\n")
    system.pipe("/archives/bad.zip", b"PK")
    assert len(plan_sources(f"{bucket}/list.csv")) == 3
    archives._members.cache_clear()
    monkeypatch.setattr(archives, "_read_index", None)
    assert list(inputs.members(f"{bucket}/x.tar")) == list(NAMES)


def test_lists_in_archives(here, tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
        file.write(here / "plain/a.mp4", "videos/a.mp4")
        file.writestr("metadata.jsonl", '{"file_name": "videos/a.mp4", "label": "p"}\n')
    (item,) = plan_sources(tmp_path / "set.zip/metadata.jsonl")
    assert (item.path, item.label) == (f"{tmp_path}/set.zip/videos/a.mp4", "p")


def test_bad_lists_at_addresses_are_one_line(bucket):
    remote.file_system(bucket)[0].pipe("/archives/empty.csv", b"")
    for name, why in (("none.csv", "no such file or folder"), ("empty.csv", "the file is empty")):
        for function in (open_dataset, plan_sources, check):
            with pytest.raises(ValueError, match=why) as caught:
                function(f"{bucket}/{name}")
            assert str(caught.value).startswith(f"{bucket}/{name}: ")


def test_numbered_frames_at_an_address(here, bucket):
    system = remote.file_system(bucket)[0]
    image = (here / "plain/c.png").read_bytes()
    for number in range(3):
        system.pipe(f"/archives/frames/walk/{number:03d}.png", image)
    ((file, below),) = find_videos([f"{bucket}/frames"], 5)
    assert below == Path("walk") and file == Path(f"{bucket}/frames/walk/@5")
    with open_video(file) as reader:
        assert (reader.num_frames, reader.fps) == (3, 5)
    assert inputs.exists(file) and not inputs.exists(f"{bucket}/frames/none/@5")
