"""All containers behind one Writer and one Reader."""

import json
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest

from vidtok.extraction import Record, RecordMeta, containers, open_reader, open_writer

META = RecordMeta(
    feature="ids", model="test", weight_hash="0123456789abcdef", precision="fp32", bits=18, stride=(4, 8, 8),
    dtype="uint32", fps=25.0, frames=5, size=(16, 24), coded_size=(16, 24), native_size=(16, 24), native_fps=25.0,
    source="clip.mp4", source_bytes=99, reader="pyav", bytes_per_token=4.0,
)  # fmt: skip
SHARDED = ["parquet", "webdataset"]


def video(number, clips=None, **changes):
    """The records of a video."""
    rng = np.random.default_rng(number)
    times = np.arange(5) / 25
    return [
        Record(
            f"a.b/{number}.mp4", "wave" if number % 2 else None, "train", rng.integers(0, 2**18, (2, 2, 3), np.uint32),
            times + i, replace(META, clip=None if clips is None else i, clips=clips, **changes),
        )
        for i in range(clips or 1)
    ]  # fmt: skip


def same(ours, theirs):
    arrays = [(ours.features, theirs.features), (ours.timestamps, theirs.timestamps)]
    equal = all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in arrays)
    return equal and replace(ours, features=None, timestamps=None) == replace(theirs, features=None, timestamps=None)


def by_key(records):
    return sorted(records, key=lambda record: (record.id, record.meta.clip or 0))


def read_all(path):
    reader = open_reader(path)
    records = [reader.read(i) for i in range(len(reader))]
    assert [(e.id, e.label, e.split, e.clip) for e in reader.entries] == [
        (r.id, r.label, r.split, r.meta.clip) for r in records
    ]
    return by_key(records)


def files_of(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))


@pytest.mark.parametrize("container", ["npz", *SHARDED])
@pytest.mark.parametrize("clips", [None, 3])
def test_round_trip(tmp_path, container, clips):
    writer = open_writer(tmp_path, container)
    videos = [video(i, clips) for i in range(4)]
    complete = [id for records in videos for id in writer.write(records)] + writer.close()
    assert sorted(complete) == [records[0].id for records in videos]
    ours = by_key(record for records in videos for record in records)
    assert all(map(same, ours, read_all(tmp_path))) and len(read_all(tmp_path)) == len(ours)
    for finder in (writer, open_writer(tmp_path, container)):
        entry = finder.find("a.b/1.mp4")
        assert (entry.id, entry.label, entry.split, entry.source_bytes) == ("a.b/1.mp4", "wave", "train", 99)
        assert finder.find("a.b/9.mp4") is None
    if container != "npz":  # one file is a dataset, too
        (file,) = files_of(tmp_path)
        assert len(read_all(file)) == len(ours)


@pytest.mark.parametrize("container", SHARDED)
@pytest.mark.parametrize(
    "features, changes",
    [
        (np.ones((18, 2, 2, 3), np.int8), {"feature": "codes", "dtype": "int8"}),
        (np.random.default_rng(0).random((5, 2, 2, 3), np.float32), {"feature": "hidden", "dtype": "float32"}),
        (np.ones((5, 2, 2, 3), np.float16), {"feature": "latents", "dtype": "float16"}),
        (np.ones(5, np.float32), {"feature": "embedding", "dtype": "float32", "bytes_per_token": None}),
    ],
)
def test_other_features(tmp_path, container, features, changes):
    ours = replace(video(1, **changes)[0], features=features)
    writer = open_writer(tmp_path, container)
    writer.write([ours])
    writer.close()
    assert same(ours, read_all(tmp_path)[0])


@pytest.mark.parametrize("container", SHARDED)
def test_shards_end_and_are_found_by_others(tmp_path, container, monkeypatch):
    monkeypatch.setattr(containers, "VIDEOS", 2)
    ours, theirs = open_writer(tmp_path, container), open_writer(tmp_path, container)
    assert ours.write(video(0)) == [] and theirs.find("a.b/0.mp4") is None and not files_of(tmp_path)
    assert ours.write(video(1)) == ["a.b/0.mp4", "a.b/1.mp4"]
    assert theirs.find("a.b/0.mp4") is not None
    ours.write(video(2))
    theirs.write(video(3))
    theirs.write(video(1))  # a video that is there twice is read once
    assert ours.close() == ["a.b/2.mp4"] and theirs.close() == []
    assert len(files_of(tmp_path)) == 3 and [r.id for r in read_all(tmp_path)] == [f"a.b/{i}.mp4" for i in range(4)]


@pytest.mark.parametrize("container", SHARDED)
def test_what_a_dead_process_was_making_is_removed(tmp_path, container):
    alive = open_writer(tmp_path, container)
    alive.write(video(0))
    (making,) = tmp_path.glob(".part-*.part")
    shutil.copy(making, tmp_path / ".part-of-a-dead-one.part")
    other = open_writer(tmp_path, container)
    assert [*tmp_path.glob(".part-*.part")] == [making]
    other.write(video(1))
    other.abandon()
    alive.close()
    assert [r.id for r in read_all(tmp_path)] == ["a.b/0.mp4"] and not [*tmp_path.glob(".part-*")]


@pytest.mark.parametrize("container", ["npz", *SHARDED])
def test_damage_is_found(tmp_path, container):
    writer = open_writer(tmp_path, container)
    writer.write(video(0))
    writer.close()
    (file,) = files_of(tmp_path)
    good = file.read_bytes()
    rng = np.random.default_rng(0)
    cuts = rng.integers(0, len(good), 12).tolist()
    refused, flips = 0, 40
    for case in (*cuts, *[None] * flips):
        data = bytearray(good[:case])
        if case is None:
            data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
        for hidden in tmp_path.glob(".*"):
            hidden.unlink()
        file.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = open_writer(tmp_path, container).find("a.b/0.mp4")
        if found is None:
            refused += 1
        else:  # bytes that don't matter: padding, names, sizes of what is not read
            assert case is None and same(read_all(tmp_path)[0], video(0)[0])
    assert refused >= len(cuts) + (3 if container == "webdataset" else flips // 3)


@pytest.mark.parametrize("container", SHARDED)
def test_a_damaged_shard_is_put_aside_and_said(tmp_path, container):
    writer = open_writer(tmp_path, container)
    writer.write(video(0))
    writer.close()
    (file,) = files_of(tmp_path)
    file.write_bytes(file.read_bytes()[:-700])
    with pytest.warns(UserWarning, match=f"{file.name}.*done again"):
        assert open_writer(tmp_path, container).find("a.b/0.mp4") is None
    assert not files_of(tmp_path) and len([*tmp_path.glob(".*.damaged")]) == 1


def test_webdataset_reads_it(tmp_path):
    wds = pytest.importorskip("webdataset")
    writer = open_writer(tmp_path, "webdataset")
    for i in range(3):
        writer.write(video(i))
    writer.close()
    (file,) = files_of(tmp_path)
    samples = [*wds.WebDataset(str(file), shardshuffle=False).decode()]
    assert len(samples) == 3
    for i, sample in enumerate(samples):
        assert sample["json"]["id"] == f"a.b/{i}.mp4" and json.loads(str(sample["npz"]["meta"])) == sample["json"]
        assert np.array_equal(sample["npz"]["ids"], video(i)[0].features)


@pytest.mark.parametrize("container", ["npz", *SHARDED])
def test_a_file_that_is_written_anew_is_read_anew(tmp_path, container):
    for number in (0, 1):
        folder = tmp_path / str(number)
        writer = open_writer(folder, container)
        writer.write([replace(video(number)[0], id="a.mp4")])
        writer.close()
        (file,) = files_of(folder)
        target = shutil.copy(file, tmp_path / f"x{file.suffix}")
        assert same(read_all(target)[0], replace(video(number)[0], id="a.mp4"))


def test_pandas_reads_it(tmp_path):
    import pandas as pd

    writer = open_writer(tmp_path, "parquet")
    for i in range(3):
        writer.write(video(i))
    writer.close()
    frame = pd.read_parquet(tmp_path)
    assert frame["id"].tolist() == [f"a.b/{i}.mp4" for i in range(3)]
    assert frame["label"].dropna().to_dict() == {1: "wave"}
    ids = frame["features"][1].reshape(frame["shape"][1])
    assert ids.dtype == np.uint32 and np.array_equal(ids, video(1)[0].features)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="no features"):
        open_reader(tmp_path)
    with pytest.raises(ValueError, match="no such"):
        open_reader(tmp_path / "x")
    with pytest.raises(ValueError, match="'parquet'"):
        open_writer(tmp_path, "parket")
