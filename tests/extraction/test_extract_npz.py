"""The record and its npz container."""

import json
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest

from vidtok.extraction import Record, RecordMeta, open_reader, read_npz, write_npz
from vidtok.extraction import record as record_module
from vidtok.extraction.containers import open_writer
from vidtok.extraction.record import RecordSpool, id_type
from vidtok.names import result_candidates

META = RecordMeta(
    feature="ids", model="test", weight_hash="0123456789abcdef", precision="fp32", bits=18, stride=(4, 8, 8),
    dtype="uint32", fps=23.976, frames=7, size=(21, 30), coded_size=(24, 32), native_size=(42, 60), native_fps=23.976,
    resize=21, source="clip.mp4", source_bytes=99, reader="pyav", bytes_per_token=4.0,
)  # fmt: skip


def grid(bits=18, shape=(3, 3, 4)):
    ids = np.random.default_rng(0).integers(0, 2**bits, shape)
    ids.flat[0], ids.flat[1] = 2**bits - 1, 0
    return ids.astype(id_type(bits))


def times(frames=7):
    return np.arange(frames) / 23.976


def record(features=None, timestamps=None, **changes):
    features = grid() if features is None else features
    timestamps = times() if timestamps is None else timestamps
    return Record("a/clip.mp4", "wave", "train", features, timestamps, replace(META, **changes))


def same(ours, theirs):
    arrays = [(ours.features, theirs.features), (ours.timestamps, theirs.timestamps)]
    equal = all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in arrays)
    return equal and (ours.id, ours.label, ours.split, ours.meta) == (
        theirs.id,
        theirs.label,
        theirs.split,
        theirs.meta,
    )


@pytest.mark.parametrize(
    "bits, kind", [(1, "uint8"), (8, "uint8"), (9, "uint16"), (18, "uint32"), (32, "uint32"), (60, "uint64")]
)
def test_ids_in_the_smallest_type(tmp_path, bits, kind):
    path = tmp_path / "clip.npz"
    ours = record(grid(bits), bits=bits, dtype=kind)
    write_npz(path, [ours])
    (back,) = read_npz(path)
    assert same(ours, back)
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["ids"].dtype == kind and arrays["ids"].shape == (3, 3, 4)
        meta = json.loads(str(arrays["meta"]))
    assert meta["schema"] == "vidtok.features/1" and meta["id"] == "a/clip.mp4" and meta["label"] == "wave"
    assert [p.name for p in tmp_path.iterdir()] == ["clip.npz"]


@pytest.mark.parametrize(
    "features, changes",
    [
        (np.ones((18, 3, 3, 4), np.int8), {"feature": "codes", "dtype": "int8"}),
        (np.ones((18, 3, 3, 4), np.float32), {"feature": "latents", "dtype": "float32"}),
        (np.ones((5, 3, 3, 4), np.float16), {"feature": "hidden", "dtype": "float16"}),
        (np.ones(5, np.float32), {"feature": "hidden", "dtype": "float32", "pool": "mean"}),
        (np.ones(5, np.float32), {"feature": "embedding", "dtype": "float32", "head": "h, 0123"}),
    ],
)
def test_other_features(tmp_path, features, changes):
    ours = record(features, **changes)
    write_npz(tmp_path / "x.npz", [ours])
    assert same(ours, read_npz(tmp_path / "x.npz")[0])


def test_all_clips_of_a_video_are_one_file(tmp_path):
    clips = [record(grid() // (i + 1), times() + i, clip=i, clips=3) for i in range(3)]
    write_npz(tmp_path / "x.npz", clips)
    back = read_npz(tmp_path / "x.npz")
    assert len(back) == 3 and all(map(same, clips, back))
    with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
        assert arrays["ids"].shape == (3, 3, 3, 4) and arrays["timestamps"].shape == (3, 7)
    with pytest.raises(ValueError, match="not all"):
        write_npz(tmp_path / "y.npz", clips[:2])
    with pytest.raises(ValueError, match="several shapes"):
        wider = record(grid(shape=(3, 3, 5)), times(), clip=1, clips=3, size=(21, 38), coded_size=(24, 40))
        write_npz(tmp_path / "y.npz", [clips[0], wider, clips[2]])
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


@pytest.mark.parametrize("container", ["npz", "parquet", "webdataset"])
def test_features_of_many_clips_wait_in_a_file(tmp_path, monkeypatch, container):
    clips = [record(grid() // (i + 1), times() + i, clip=i, clips=6) for i in range(6)]
    monkeypatch.setattr(record_module, "MEMORY", 2 * clips[0].features.nbytes)
    waiting = RecordSpool()
    for i in (0, 2, 1, 5, 4, 3):  # batches end in any order
        waiting.append(clips[i])
    assert len(waiting._offsets) == 4 and len(waiting) == 6
    assert all(map(same, clips, waiting)) and all(map(same, clips, pickle.loads(pickle.dumps(waiting))))
    assert type(pickle.loads(pickle.dumps(waiting))) is list
    writer = open_writer(tmp_path, container)
    writer.write(waiting)
    writer.close()
    reader = open_reader(tmp_path)
    assert all(same(ours, reader.read(i)) for i, ours in enumerate(clips))


@pytest.mark.parametrize(
    "ours",
    [
        record(grid(19)),  # an id beyond the codebook
        record(grid()[0]),
        record(grid().astype(np.int64)),
        record(grid().astype(np.float32), dtype="float32"),
        record(timestamps=times(6)),
        record(timestamps=times(10), frames=10),
        record(timestamps=times(5), frames=5),
        record(size=(25, 30)),
        record(size=(16, 30)),
        record(coded_size=(24, 40)),
        record(feature="tokens"),
        record(clip=3, clips=3),
        record(np.ones((18, 3, 3, 4), np.float32), feature="hidden", dtype="float32", pool="mean"),
    ],
)
def test_refuses_what_does_not_belong_together(tmp_path, ours):
    with pytest.raises(ValueError):
        write_npz(tmp_path / "clip.npz", [ours])
    assert not list(tmp_path.iterdir())


def test_another_schema_is_named(tmp_path):
    path = tmp_path / "clip.npz"
    write_npz(path, [record()])
    with np.load(path) as arrays:
        parts = dict(arrays)
    meta = json.loads(str(parts["meta"])) | {"schema": "vidtok.features/2"}
    np.savez(path, **parts | {"meta": np.array(json.dumps(meta))})
    with pytest.raises(ValueError, match=r"clip\.npz.*'vidtok\.features/2'.*'vidtok\.features/1'"):
        read_npz(path)


def test_damage_is_one_error_that_names_the_file(tmp_path):
    path = tmp_path / "clip.npz"
    write_npz(path, [record()])
    good, features = path.read_bytes(), grid()
    rng = np.random.default_rng(0)
    damaged = [good[:cut] for cut in rng.integers(0, len(good), 40)]
    for _ in range(200):
        data = bytearray(good)
        data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
        damaged.append(bytes(data))
    refused = 0
    for data in damaged:
        path.write_bytes(data)
        try:
            # Bytes that don't matter, of times and attributes in the zip, may change.
            assert np.array_equal(read_npz(path)[0].features, features)
        except ValueError as error:
            assert "clip.npz" in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 150


@pytest.mark.parametrize(
    "content", [b"", b"<html></html>", b"PK\x03\x04", b"\x80\x04N.", b"\x93NUMPY\x01\x00", b"\x1aE\xdf\xa3" * 99]
)
def test_another_kind_of_file(tmp_path, content):
    path = tmp_path / "clip.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"clip\.npz: not a file of features"):
        read_npz(path)


def test_arrays_of_others_are_told_what_they_lack(tmp_path):
    np.savez(tmp_path / "clip.npz", ids=np.zeros(3))
    with pytest.raises(ValueError, match=r"not a file of features that can be read \(it has no description, as"):
        read_npz(tmp_path / "clip.npz")
    np.savez(tmp_path / "clip.npz", meta=np.array("{}"))
    with pytest.raises(ValueError, match=r"that can be read \(no 'schema'\)$"):
        read_npz(tmp_path / "clip.npz")


def test_pickles_are_not_loaded(tmp_path):
    path = tmp_path / "clip.npz"
    np.savez(path, ids=np.array([{}], dtype=object), timestamps=times(), meta=np.array("{}"))
    with pytest.raises(ValueError, match="not a file of features"):
        read_npz(path)
    with np.load(path, allow_pickle=True) as arrays:
        ids = arrays["ids"]
    write_npz(path, [record()])
    with np.load(path) as arrays:
        parts = dict(arrays)
    np.savez(path, **parts | {"ids": ids})
    with pytest.raises(ValueError, match="not a file of features"):
        read_npz(path)


def test_a_fifo_is_no_file_of_features(tmp_path):
    os.mkfifo(tmp_path / "clip.npz")
    for read in (read_npz, open_reader):
        with pytest.raises(ValueError, match=r"no regular file|no features"):
            read(tmp_path / "clip.npz")


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_npz(tmp_path / "clip.npz")


@pytest.mark.parametrize(
    "id, name",
    [
        ("a/b.mp4", "a/b.npz"), ("0004/turning left", "0004/turning left.npz"), ("id_1.5_000001", "id_1.5_000001.npz"),
        ("/data/x.webm", "data/x.npz"), ("../../x.mp4", "x.npz"), ("a\\b.AVI", "a/b.npz"), ("-x", "-x.npz"),
        ("//data/x.mp4", "data/x.npz"), ("C:\\data\\x.mp4", "data/x.npz"),
    ],
)  # fmt: skip
def test_names_stay_inside_the_folder(id, name):
    assert result_candidates(id, ".npz")[0] == name


def test_a_folder_is_read_back(tmp_path):
    (tmp_path / "sub").mkdir()
    write_npz(tmp_path / "sub" / "a.npz", [record()])
    write_npz(tmp_path / "b.npz", [record(clip=i, clips=2) for i in range(2)])
    (tmp_path / ".c.npz.17.part").write_bytes(b"half a file")
    reader = open_reader(tmp_path)
    assert [(e.id, e.label, e.split, e.clip) for e in reader.entries] == [
        ("a/clip.mp4", "wave", "train", clip) for clip in (0, 1, None)
    ]
    assert same(reader.read(1), record(clip=1, clips=2)) and len(reader) == 3
    write_npz(tmp_path / "d.npz", [record(precision="bf16")])
    with pytest.raises(ValueError, match=r"d\.npz.*precision"):
        open_reader(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no features"):
        open_reader(tmp_path / "none")
