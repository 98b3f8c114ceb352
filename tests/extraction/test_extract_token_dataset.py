"""Features read back: as a dataset, as a frame, in batches for training."""

import pickle
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import vidtok
from vidtok.extraction import Record, RecordMeta, TokenBatches, TokenDataset, open_writer

META = RecordMeta(
    feature="ids", model="test", weight_hash="0123456789abcdef", precision="fp32", bits=18, stride=(4, 8, 8),
    dtype="uint32", fps=25.0, frames=5, size=(16, 24), coded_size=(16, 24), native_size=(16, 24), native_fps=25.0,
    source="clip.mp4", source_bytes=99, reader="pyav", bytes_per_token=4.0,
)  # fmt: skip
CONTAINERS = ["npz", "parquet", "webdataset"]
LABELS = ["wave", "nod", None, "sit"]


def record(number: int, latents: int = 2, **meta) -> Record:
    """Video `number`: of "train", every fourth one of "val"; all its ids tell the number and the latent."""
    ids = (100 * number + np.arange(latents))[:, None, None] + np.zeros((latents, 2, 3))
    split = "val" if number % 4 == 3 else "train"
    frames = 4 * latents - 3
    info = replace(META, frames=frames, **meta)
    return Record(f"{number}.mp4", LABELS[number % 4], split, ids.astype(info.dtype), np.arange(frames) / 25, info)


def folder(path, records, container="npz"):
    path.mkdir(exist_ok=True)
    writer = open_writer(path, container)
    for one in records:
        writer.write(one if isinstance(one, list) else [one])
    writer.close()
    return path


@pytest.fixture(scope="module")
def lengths(tmp_path_factory):
    """Eleven videos of 1 to 4 latents."""
    return folder(tmp_path_factory.mktemp("features") / "a", [record(i, 1 + i % 4) for i in range(11)])


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container(tmp_path, container, cached):
    path = folder(tmp_path / "features", [record(i, 1 + i % 3) for i in range(8)], container)
    cache = tmp_path / "cache" if cached else None
    data = vidtok.TokenDataset(path, cache=cache)
    assert len(data) == 8 and data.classes == ["nod", "sit", "wave"] and data.feature == "ids"
    assert data.meta["weight_hash"] == META.weight_hash and "fps" not in data.meta
    seen = {}
    for item, label, name in zip(pickle.loads(pickle.dumps(data)), data.labels, data.ids, strict=True):
        number = int(name[:-4])
        ids = item["features"]
        assert ids.dtype == torch.int64 and ids.shape == (1 + number % 3, 2, 3)
        assert torch.equal(ids[:, 0, 0], 100 * number + torch.arange(len(ids)))
        assert item["id"] == name and item["label"] == label == [2, 0, -1, 1][number % 4]
        np.testing.assert_array_equal(item["timestamps"], np.arange(4 * len(ids) - 3) / 25)
        seen[number] = item
    assert len(seen) == 8
    table = data.to_pandas()
    assert len(table) == 8 and table.attrs["model"] == "test" and table["label"].isna().sum() == 2
    assert {"id", "label", "split", "clip", "frames", "features", "timestamps", "fps", "reader"} <= set(table)
    row = table[table["id"] == "5.mp4"].iloc[0]
    assert row["features"].dtype == np.uint32 and row["features"].shape == (3, 2, 3) and row["fps"] == 25
    assert (row["label"], row["split"], row["frames"]) == ("nod", "train", 9)
    assert "features" not in data.to_pandas(features=False)


def test_by_split_label_and_id(lengths):
    train, val = TokenDataset(lengths, split="train"), TokenDataset(lengths, split="val")
    assert len(train) == 9 and len(val) == 2 and train.classes == val.classes == ["nod", "sit", "wave"]
    assert set(val.labels) == {1} and val[0]["label"] == 1
    waves = TokenDataset(lengths, labels=["wave", "nod"])
    assert waves.classes == ["wave", "nod"] and sorted(waves.labels) == [0, 0, 0, 1, 1, 1]
    assert TokenDataset(lengths, ids=["3.mp4", "8.mp4"]).ids == ["3.mp4", "8.mp4"]
    old = TokenDataset(lengths, classes=["sit", "wave"])  # what has another label, a model of those classes can't know
    assert sorted(set(old.labels)) == [-1, 0, 1] and len(old) == 8
    for wrong, words in [
        ({"split": "vall"}, "no split 'vall' here: did you mean 'val'"),
        ({"labels": ["stand"]}, "no label 'stand' here: known are nod, sit, wave"),
        ({"labels": "wave"}, "list of names"),
        ({"ids": ["99.mp4"]}, "no id '99.mp4'"),
        ({"split": "val", "labels": ["nod"]}, "none of the 11 records"),
    ]:
        with pytest.raises(ValueError, match=words):
            TokenDataset(lengths, **wrong)
    with pytest.raises(ValueError, match="no such file"):
        TokenDataset(lengths / "nothing", cache=lengths)
    with pytest.raises(IndexError):
        train[9]


def test_floats_clips_and_pooled(tmp_path):
    latents = np.random.default_rng(0).normal(size=(4, 2, 2, 3)).astype(np.float16)
    meta = replace(META, feature="latents", dtype="float16", clips=2)
    clips = [
        Record("a.mp4", "x", None, latents * (i + 1), np.arange(5) / 25 + i, replace(meta, clip=i)) for i in range(2)
    ]
    data = TokenDataset(folder(tmp_path / "clips", [clips]), cache=tmp_path / "cache")
    assert (
        data.ids == ["a.mp4", "a.mp4"] and data[1]["timestamps"][0] == 1 and data[0]["features"].dtype == torch.float32
    )
    assert torch.equal(data[0]["features"], torch.from_numpy(latents).float())
    assert data.to_pandas(features=False)["clip"].tolist() == [0, 1]
    batch = TokenBatches(data, 2, window=1)[0]
    assert batch["features"].shape == (2, 4, 1, 2, 3)
    pooled = replace(META, feature="hidden", dtype="float32", pool="mean", bytes_per_token=None)
    one = Record("a.mp4", "x", None, np.ones(7, np.float32), np.arange(5) / 25, pooled)
    data = TokenDataset(folder(tmp_path / "pooled", [one]))
    assert TokenBatches(data, 3)[0]["features"].shape == (3, 7)
    with pytest.raises(ValueError, match="pooled over time"):
        TokenBatches(data, 3, window=2)


def test_a_new_file_is_unpacked_anew(tmp_path):
    path, cache = tmp_path / "features", tmp_path / "cache"
    assert len(TokenDataset(folder(path, [record(0)]), cache=cache)) == 1
    before = {file: file.stat().st_mtime_ns for file in cache.iterdir()}
    assert len(TokenDataset(path, cache=cache)) == 1
    assert {file: file.stat().st_mtime_ns for file in cache.iterdir()} == before and len(before) == 2
    assert len(TokenDataset(folder(path, [record(1)]), cache=cache)) == 2


def test_dataloader_workers(lengths, tmp_path):
    data = TokenDataset(lengths, labels=["sit"], cache=tmp_path)
    loader = DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context="forkserver")
    for ours, theirs in zip(data, loader, strict=True):
        assert torch.equal(ours["features"], theirs["features"]) and ours["id"] == theirs["id"]


def test_batches_are_a_function_of_seed_and_number(lengths):
    data = TokenDataset(lengths)
    make = lambda **how: TokenBatches(data, 4, window=2, **how)  # noqa: E731
    batches = make()
    assert batches.summary() == "3 of 11 records are shorter than 2 latents" and batches.epoch_length == 2
    first = [batches[i] for i in range(6)]
    for batch in first:
        assert batch["features"].shape == (4, 2, 2, 3) and batch["features"].dtype == torch.int64
        numbers, starts = batch["features"][:, 0, 0, 0] // 100, batch["features"][:, 0, 0, 0] % 100
        assert [data.ids[i] for i in batch["index"]] == [f"{n}.mp4" for n in numbers]
        assert torch.equal(batch["start"], starts)
        assert batch["label"].tolist() == [data.labels[i] for i in batch["index"]]
        assert torch.equal(batch["features"][:, 1], batch["features"][:, 0] + 1)
    for epoch in range(3):  # each record once in two batches
        assert len(set(torch.cat([first[2 * epoch]["index"], first[2 * epoch + 1]["index"]]).tolist())) == 8
    starts = torch.cat([batch["start"] for batch in first])
    assert set(starts.tolist()) == {0, 1, 2}
    same = lambda a, b: all(torch.equal(a[key], b[key]) for key in a)  # noqa: E731
    assert all(same(a, b) for a, b in zip(first[3:], make().loader(start=3, stop=6, workers=2), strict=True))
    assert not same(first[0], make(seed=1)[0]) and not same(first[0], first[2])
    assert all((make(first_only=True)[i]["start"] == 0).all() for i in range(4))


def test_unpacked_records_are_those_of_the_files(lengths, tmp_path):
    files, unpacked = TokenDataset(lengths), TokenDataset(lengths, cache=tmp_path)
    assert files.entries == unpacked.entries and files.meta == unpacked.meta
    for i in range(len(files)):
        ours, theirs = unpacked.read(i), files.read(i)
        assert ours.meta == theirs.meta and (ours.timestamps == theirs.timestamps).all()
        assert (ours.features == theirs.features).all() and ours.features.dtype == theirs.features.dtype
        assert (unpacked.features(i) == files.features(i)).all()


def test_parts_of_token_batches_are_slices_and_read_their_own_records_alone(lengths, monkeypatch):
    batches, read = TokenBatches(TokenDataset(lengths), 4, window=2), []
    whole = list(batches.loader(start=1, stop=4))
    original = TokenDataset.features
    monkeypatch.setattr(TokenDataset, "features", lambda self, i: read.append(i) or original(self, i))
    for i in range(2):
        read.clear()
        parts = list(batches.loader(start=1, stop=4, shard=(i, 2)))
        assert read == torch.cat([batch["index"][2 * i : 2 * i + 2] for batch in whole]).tolist()
        for batch, part in zip(whole, parts, strict=True):
            assert all(torch.equal(value[2 * i : 2 * i + 2], part[key]) for key, value in batch.items())
    with pytest.raises(ValueError, match="a batch of 4 doesn't divide into 3 equal parts"):
        batches.loader(shard=(0, 3))


def test_epochs(lengths):
    data = TokenDataset(lengths)
    batches = TokenBatches(data, 4, window=1, shuffle=False)
    assert [batch["index"].tolist() for batch in batches.epoch()] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert batches[2]["index"].tolist() == [8, 9, 10, 0] and batches.summary() == ""
    drawn = TokenBatches(data, 4, window=1, seed=3)
    one, two = ([batch["index"].tolist() for batch in drawn.epoch(number)] for number in (0, 1))
    assert one != two and sorted(chain(*one)) == sorted(chain(*two)) == list(range(11))
    assert one == [batch["index"].tolist() for batch in drawn.epoch(0, workers=1)]


def test_what_makes_no_batches(lengths, tmp_path):
    data = TokenDataset(lengths)
    for wrong, words in [
        ({}, "records of 1 to 4 latents don't make batches: give a window"),
        ({"window": 9}, "longest record has 4 latents"),
        ({"window": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
    ]:
        with pytest.raises(ValueError, match=words):
            TokenBatches(data, **{"batch_size": 2} | wrong)
    wide = replace(
        record(1), features=np.zeros((2, 2, 4), np.uint32), meta=replace(META, size=(16, 32), coded_size=(16, 32))
    )
    with pytest.raises(ValueError, match="don't make batches"):
        TokenBatches(TokenDataset(folder(tmp_path / "mixed", [record(0), wide])), 2)


def compressed(path, video, tokenizer, **options) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    vidtok.compress(video, path, model=tokenizer, fps=10, **options)


@pytest.mark.parametrize("cached", [False, True])
def test_compressed_videos_are_a_dataset(tokenizer_path, tmp_path, cached):
    tokenizer = vidtok.VideoTokenizer.from_pretrained(tokenizer_path)
    videos = {f"{name}.vtk": torch.full((1, 3, frames, 16, 23), value) for name, frames, value in (
        ("a", 9, 0.5), ("b/c", 14, -0.5)
    )}  # fmt: skip
    for name, video in videos.items():
        compressed(tmp_path / "videos" / name, video, tokenizer, chunk_latents=2)
    data = vidtok.TokenDataset(tmp_path / "videos", cache=tmp_path / "cache" if cached else None)
    assert data.ids == [*videos] and data.labels == [-1, -1] and data.feature == "ids"
    assert data.meta["weight_hash"] == tokenizer.weight_hash
    for item, entry, video in zip(pickle.loads(pickle.dumps(data)), data.entries, videos.values(), strict=True):
        frames = video.shape[2]
        padded = torch.nn.functional.pad(video, (0, 1, 0, 0, 0, -(frames - 1) % 4), "replicate")
        assert (item["features"] == tokenizer.encode(padded)[0]).all()
        assert (entry.frames, entry.coded_size) == (frames, (16, 24))
        assert item["timestamps"].tolist() == pytest.approx([i / 10 for i in range(frames)])
    assert len(vidtok.TokenDataset(tmp_path / "videos" / "b" / "c.vtk")) == 1
    batches = TokenBatches(data, 2, window=2)
    assert batches[0]["features"].shape == (2, 2, 2, 3)


def test_damaged_compressed_videos_are_named(tokenizer_path, tmp_path):
    tokenizer = vidtok.VideoTokenizer.from_pretrained(tokenizer_path)
    path = tmp_path / "a.vtk"
    compressed(path, torch.zeros(1, 3, 9, 16, 16), tokenizer)
    content = bytearray(path.read_bytes())
    content[content.index(b"CHNK") + 40] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a.vtk: chunk 0 of 1 is damaged"):
        vidtok.TokenDataset(path)[0]
    path.write_bytes(content[:100])
    with pytest.raises(ValueError, match=r"a.vtk: the header is damaged or cut off"):
        vidtok.TokenDataset(path)
