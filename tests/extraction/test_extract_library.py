"""The library functions behind `vidtok extract`, `encode`, `decode` and `reconstruct`."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch

import vidtok
from vidtok.datasets import annotations, demo_clip, read_video, write_video
from vidtok.datasets.annotations import table
from vidtok.errors import UserError
from vidtok.extraction import open_reader, read_npz
from vidtok.extraction.run import encode_files, measure
from vidtok.extraction.sources import plan_sources
from vidtok.extraction.videos import decode_files, reconstruct_files


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for i, frames in enumerate((9, 17)):
        write_video(folder / f"{i}.mp4", demo_clip(frames + i, 64)[:, :, i:, :32, :48], 24)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path):
    return vidtok.VideoTokenizer.from_pretrained(tokenizer_path)


def test_extract_takes_plain_arguments_and_returns_a_summary(videos, tokenizer, tokenizer_path, tmp_path):
    (bad := tmp_path / "bad.mp4").write_text("no video")
    seen = []
    settings = {"model": tokenizer_path, "device": "cpu", "workers": 0}
    sources = [videos, bad]
    stats = vidtok.extract(sources, tmp_path / "out", progress=lambda s: seen.append(s.done + s.failed), **settings)
    assert (stats.total, stats.done, stats.skipped, stats.failed, stats.frames) == (3, 2, 0, 1, 26)
    assert [str(item) for item, _ in stats.failures] == [str(bad)] and seen[-1] == 3
    assert stats.tokens == (3 + 5) * 4 * 6 and stats.elapsed == stats.elapsed > 0
    assert str(stats).startswith("2 of 3 videos, 26 frames in ") and str(stats).endswith(", 1 failed")
    reader = open_reader(tmp_path / "out")
    for i in range(len(reader)):
        record = reader.read(i)
        ids = tokenizer.encode(read_video(videos / record.id, size=None))[0]
        assert np.array_equal(record.features, ids.numpy())
    again = vidtok.extract(str(videos), tmp_path / "out", **settings)
    assert (again.total, again.done, again.skipped, again.failures) == (2, 0, 2, [])
    assert vidtok.extract(str(videos), tmp_path / "out", force=True, **settings).done == 2


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"frames": 9}, "frames and stride are of clips"),
        ({"engine": "spark"}, "local or ray, not 'spark'"),
        ({"clips": "dens"}, "did you mean 'dense'"),
        ({"tile": 30}, "multiples of 8"),
        ({"container": "tar"}, "unknown container 'tar'"),
        ({"fps": -1}, "fps=-1 must be above 0"),
        ({"size": 0}, "size=0 must be above 0"),
    ],
)
def test_wrong_settings_of_extract(videos, tokenizer_path, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        vidtok.extract(videos, tmp_path, model=tokenizer_path, device="cpu", **settings)
    with pytest.raises(TypeError, match="modle"):
        vidtok.extract(videos, tmp_path, modle="vidtok-t")


def test_measure_gives_numbers(videos, tokenizer_path, monkeypatch):
    monkeypatch.setattr("vidtok.extraction.run.ROUNDS", 1)
    speeds = measure(videos, model=tokenizer_path, device="cpu", workers=0, max_frames=5)
    assert (speeds["frames"], speeds["max_frames"], speeds["batch"], speeds["decode_processes"]) == (10, 5, 1, 0)
    (once,) = speeds["rounds"]
    assert once.decode > 0 and once.model > 0 and once.together > 0


def test_files_there_and_back(videos, tokenizer, tokenizer_path, tmp_path):
    settings = {"model": tokenizer_path, "device": "cpu"}
    stats = encode_files(videos / "1.mp4", tmp_path / "1.npz", precision="bf16", **settings)
    assert (stats.done, stats.agreement.tokens) == (1, 5 * 4 * 6)
    assert encode_files([videos], tmp_path / "ids", **settings).agreement is None
    counted = []
    progress = lambda stats: counted.append(stats.frames)  # noqa: E731
    stats = decode_files(tmp_path / "ids", tmp_path / "videos", progress=progress, **settings)
    assert (stats.total, stats.done, stats.failed) == (2, 2, 0) and counted[-1] == stats.frames == 26
    stats = decode_files([tmp_path / "ids"], tmp_path / "videos", **settings)
    assert stats.done == 0 and all("exists: --force" in why for _, why in stats.failures)
    ids = torch.from_numpy(read_npz(tmp_path / "ids/0.npz")[0].features.astype("int64"))[None]
    assert read_video(tmp_path / "videos/0.mp4", size=None).shape == tokenizer.decode(ids).shape
    stats = reconstruct_files(videos, tmp_path / "both", side_by_side=True, max_frames=5, **settings)
    assert (stats.done, stats.frames) == (2, 10)
    assert read_video(tmp_path / "both/0.mp4", size=None).shape == (1, 3, 5, 32, 96)
    with pytest.raises(UserError, match="no such file"):
        decode_files(tmp_path / "nothing", tmp_path / "videos", **settings)


def test_a_long_list_is_read_once_and_takes_little_memory(tmp_path, monkeypatch):
    """A list of a million videos then starts in less than a minute; see docs/pages/extraction.md."""
    count = 20_000
    rows = (f"c/{i // 2}.mp4,{i % 2 * 2.5},{i % 2 * 2.5 + 2.5},c,{'val' if i % 9 else 'train'}" for i in range(count))
    (tmp_path / "list.csv").write_text("\n".join(["path,start,end,label,split", *rows]))
    calls = Counter()
    for function in (table.read_table, table.parse_time):
        counted = lambda *args, function=function: calls.update([function.__name__]) or function(*args)  # noqa: E731
        monkeypatch.setattr(table, function.__name__, counted)
    monkeypatch.setattr(annotations, "read_table", table.read_table)
    tracemalloc.start()
    items = plan_sources(tmp_path / "list.csv")
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(items) == count and calls == {"read_table": 1, "parse_time": 2 * count}
    assert kept < 700 * count
