"""Labeled datasets: which file has which label, samples that depend on nothing but their number, failures."""

import json
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from vidtok.datasets import (
    EvalTransform,
    Kinetics,
    MovingDigits,
    SomethingSomethingV2,
    TrainTransform,
    VideoError,
    VideoFolder,
    VideoList,
    collate_samples,
    demo_clip,
    dense_clips,
    random_clip,
    read_video,
    uniform_segments,
    whole_windows,
    write_video,
)

TRAIN = {"sampler": partial(random_clip, frames=5, stride=2), "transform": TrainTransform(32)}
EVAL = {"sampler": partial(dense_clips, frames=5, stride=2, clips=2), "transform": EvalTransform(32, crops=3)}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("videos")
    for i in range(4):
        write_video(root / f"{i}.mp4", demo_clip(15 + i, 48, seed=i), 25)
    return sorted(root.iterdir())


def put(clip: Path, *places: Path) -> None:
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(clip.read_bytes())


@pytest.fixture
def folder(clips, tmp_path) -> Path:
    for i, clip in enumerate(clips):
        put(clip, tmp_path / "data" / ("a", "b")[i % 2] / clip.name)
    return tmp_path / "data"


def test_a_name_without_suffix_is_one_file(clips, tmp_path):
    root = tmp_path / "data"
    put(clips[0], root / "train/run/0001.mp4", root / "x/v1.2.mp4")
    put(clips[1], root / "val/run/0001.mp4")
    put(clips[2], root / "0001.mp4")

    def found(*names: str) -> list[str]:
        listed = _written(tmp_path / "list.csv", "path,label\n" + "".join(f"{name},a\n" for name in names))
        return [str(Path(path).relative_to(root)) for path in VideoList(listed, root).paths]

    exact = ["train/run/0001.mp4", "val/run/0001.mp4", "0001.mp4"]
    assert found("train/run/0001", "val/run/0001", "0001") == found("./train//run/0001", *exact[1:]) == exact
    assert found(str(root / "val/run/0001")) == ["val/run/0001.mp4"]
    assert found("v1.2", "videos/v1.2", "gone/0002") == ["x/v1.2.mp4", "x/v1.2.mp4", "gone/0002"]
    with pytest.raises(ValueError, match=r"run/0001 is .*train/run/0001\.mp4 or .*val/run/0001\.mp4"):
        found("run/0001")
    put(clips[0], root / "0001.webm")
    with pytest.raises(ValueError, match=r"0001 is .*0001\.mp4 or .*0001\.webm"):
        found("0001")


def test_video_folder(folder):
    data = VideoFolder(folder)
    assert len(data) == 4 and data.classes == ["a", "b"] and data.labels == [0, 0, 1, 1] and data.split is None
    video, label, name, timestamps = data[2]
    assert video.shape == (1, 3, 16, 48, 48) and video.dtype == torch.float32 and (label, name) == (1, "b/1.mp4")
    assert torch.equal(video[:, :, :13], read_video(data.paths[2], size=None, max_frames=13))
    np.testing.assert_allclose(timestamps, np.arange(16)[None] / 25, atol=1e-6)
    assert [sample.id for sample in data] == data.ids
    with pytest.raises(ValueError, match="not a folder"):
        VideoFolder(folder, "val")
    assert VideoFolder(folder.parent, "data").ids[0] == "data/a/0.mp4"
    flat = VideoFolder(folder / "a")
    assert flat.classes == [] and flat.labels == [-1, -1]
    put(Path(data.paths[0]), folder / "stray.mp4")
    with pytest.raises(ValueError, match="stray"):
        VideoFolder(folder)


def test_images_are_videos_of_one_frame(tmp_path):
    (tmp_path / "cat").mkdir()
    write_video(tmp_path / "cat" / "x.png", demo_clip(1, 40), 1)
    sample = VideoFolder(tmp_path)[0]
    assert sample.video.shape == (1, 3, 1, 40, 40) and sample.timestamps.tolist() == [[0.0]]
    assert VideoFolder(tmp_path, **EVAL)[0].video.shape == (6, 3, 5, 32, 32)


def test_views(folder):
    sample = VideoFolder(folder, **EVAL)[3]
    assert sample.video.shape == (6, 3, 5, 32, 32) and sample.timestamps.shape == (6, 5)
    assert torch.equal(sample.timestamps[0], sample.timestamps[2]) and sample.timestamps[3, 0] > 0
    batch = next(VideoFolder(folder, **EVAL).loader(4))
    assert batch.video.shape == (4, 6, 3, 5, 32, 32) and batch.label.tolist() == [0, 0, 1, 1] and batch.failed == []
    with pytest.raises(ValueError, match="in one batch"):
        next(VideoFolder(folder).loader(4))


def test_samples_depend_on_seed_epoch_and_number_alone(folder):
    data = VideoFolder(folder, **TRAIN)
    first = [data[i].video for i in range(4)]
    again, other = VideoFolder(folder, **TRAIN), VideoFolder(folder, seed=1, **TRAIN)
    for i in reversed(range(4)):
        assert torch.equal(again[i].video, first[i]) and not torch.equal(other[i].video, first[i])
    data.set_epoch(1)
    assert not torch.equal(data[0].video, first[0])
    shuffled = [list(data.loader(3, workers, shuffle=True)) for workers in (0, 2)]
    assert [len(b.label) for b in shuffled[0]] == [3, 1]
    for a, b in zip(*shuffled, strict=True):
        assert torch.equal(a.video, b.video) and a.id == b.id and torch.equal(a.timestamps, b.timestamps)
    assert len(list(data.loader(3, drop_last=True))) == 1
    torchs = DataLoader(data, 3, collate_fn=collate_samples, num_workers=1, multiprocessing_context="forkserver")
    for a, b in zip(data.loader(3), torchs, strict=True):
        assert torch.equal(a.video, b.video)


@pytest.mark.parametrize("sampler", [partial(f, frames=4) for f in (uniform_segments, dense_clips, whole_windows)])
def test_evaluation_sees_the_same_moments_always(folder, sampler):
    """Whatever seed and epoch: the samplers of evaluation draw nothing."""
    data = VideoFolder(folder, sampler=sampler)
    first = [data[i].timestamps for i in range(4)]
    data.set_epoch(5)
    other = VideoFolder(folder, sampler=sampler, seed=7)
    for i in range(4):
        assert torch.equal(data[i].timestamps, first[i]) and torch.equal(other[i].timestamps, first[i])


def test_a_failed_video_is_never_replaced_in_evaluation(folder):
    (folder / "a" / "2.mp4").write_bytes(b"")
    with pytest.raises(VideoError, match="empty"):
        VideoFolder(folder, **EVAL)[1]
    with pytest.raises(VideoError, match="empty"):
        list(VideoFolder(folder, **EVAL).loader(2, workers=1))
    batches = list(VideoFolder(folder, on_error="return", **EVAL).loader(2))
    assert [b.id for b in batches] == [["a/0.mp4"], ["b/1.mp4", "b/3.mp4"]]
    assert [len(b.failed) for b in batches] == [1, 0] and batches[0].failed[0].path.name == "2.mp4"
    only = next(VideoFolder(folder / "a", on_error="return", **EVAL).loader(1)), collate_samples([batches[0].failed[0]])
    assert len(only[0].video) == 1 and len(only[1].video) == len(only[1].label) == 0


def test_training_resamples_counts_and_says_so(folder):
    (folder / "a" / "2.mp4").write_bytes(b"")
    runs = []
    for workers in (0, 2):
        data = VideoFolder(folder, on_error="resample", **TRAIN)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            runs.append(next(data.loader(4, workers)))
        assert data.resampled >= 1 and "a/2.mp4" not in runs[-1].id and len(runs[-1].id) == 4
        if not workers:  # a worker says it on the console
            assert "2.mp4: the file is empty (0 bytes); replaced by another video" in str(caught[0].message)
    assert torch.equal(runs[0].video, runs[1].video) and runs[0].id == runs[1].id
    for path in folder.rglob("*.mp4"):
        path.write_bytes(b"")
    with pytest.raises(VideoError), pytest.warns(UserWarning):
        VideoFolder(folder, on_error="resample", **TRAIN)[0]


def sleepy(duration, fps, rng, frames=5):
    """A decoder that hangs on the video of 16 frames."""
    if round(duration * fps) == 16:
        time.sleep(1e6)
    return random_clip(duration, fps, rng, frames=frames)


def test_a_video_that_hangs(folder):
    data = VideoFolder(folder, sampler=sleepy, transform=EvalTransform(32), on_error="return")
    batch = next(data.loader(4, workers=1, time_limit=2.5))
    assert batch.id == ["a/0.mp4", "a/2.mp4", "b/3.mp4"] and "no result within 2.5 s" in str(batch.failed[0])
    data = VideoFolder(folder, sampler=sleepy, transform=EvalTransform(32), on_error="resample")
    with pytest.warns(UserWarning, match=r"1\.mp4: no result within 2\.5 s; decoder killed; replaced by another video"):
        batch = next(data.loader(4, workers=1, time_limit=2.5))
    assert len(batch.id) == 4 and "b/1.mp4" not in batch.id and data.resampled >= 1


def test_what_was_checked_bad_is_left_out(folder, tmp_path):
    table = tmp_path / "checked.csv"
    table.write_text(f"path,status\n{folder / 'a' / '0.mp4'},ok\n{folder / 'b' / '3.mp4'},corrupt\n")
    with pytest.warns(UserWarning, match="1 of 4 videos left out"):
        data = VideoFolder(folder, checked=table)
    assert data.ids == ["a/0.mp4", "a/2.mp4", "b/1.mp4"] and data.labels == [0, 0, 1]
    assert [Path(p).name for p in data.left_out] == ["3.mp4"]
    table.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="vidtok check"):
        VideoFolder(folder, checked=table)


KINETICS = """label,youtube_id,time_start,time_end,split
air drumming,-abc,5,15,train
zumba,-abc,20,30,train
air drumming,xyz,0,10,validate
zumba,gone,1,11,val
"""


@pytest.mark.parametrize("where", [["", "", ""], ["air_drumming", "zumba", "air drumming"], ["train/x", "", "val"]])
def test_kinetics(clips, tmp_path, where):
    (tmp_path / "k.csv").write_text(KINETICS)
    root = tmp_path / "k"
    names = ["-abc_000005_000015.mp4", "-abc_000020_000030.mkv", "xyz_000000_000010.mp4"]
    for clip, place, name in zip(clips, where, names, strict=False):
        put(clip, root / place / name)
    train = Kinetics(tmp_path / "k.csv", root, "train")
    assert train.ids == ["-abc_000005_000015", "-abc_000020_000030"] and train.labels == [0, 1]
    assert train[1].video.shape[2] == 16 and train[1].label == 1
    val = Kinetics(tmp_path / "k.csv", root, "val", classes=train.classes)
    assert val.labels == [0, 1] and val.classes == ["air drumming", "zumba"] and val[0].video.shape[2] == 17
    with pytest.raises(VideoError, match=r"gone_000001_000011\.mp4: no such file"):
        val[1]
    with pytest.raises(ValueError, match="no split 'test', only train, val"):
        Kinetics(tmp_path / "k.csv", root, "test")
    with pytest.raises(ValueError, match="zumba"):
        Kinetics(tmp_path / "k.csv", root, classes=["air drumming"])


def test_kinetics_takes_the_copy_in_the_folder_of_its_class(clips, tmp_path):
    (tmp_path / "k.csv").write_text(KINETICS)
    name = "-abc_000020_000030.mp4"
    put(clips[0], tmp_path / "k" / "air_drumming" / name)
    put(clips[1], tmp_path / "k" / "zumba" / name)
    assert Path(Kinetics(tmp_path / "k.csv", tmp_path / "k", "train").paths[1]).parent.name == "zumba"


def test_something_something(clips, tmp_path):
    train = tmp_path / "something-something-v2-train.json"
    train.write_text(
        json.dumps([{"id": "7", "template": "Pushing [x] left"}, {"id": 9, "template": "Holding [something]"}])
    )
    labels = tmp_path / "something-something-v2-labels.json"
    labels.write_text(json.dumps({"Pushing x left": "1", "Holding something": "0", "Other": "2"}))
    put(clips[0], tmp_path / "v" / "7.webm")
    put(clips[1], tmp_path / "v" / "9.mp4")
    data = SomethingSomethingV2(train, tmp_path / "v", classes=labels)
    assert data.classes == ["Holding something", "Pushing x left", "Other"] and data.labels == [1, 0]
    assert data.ids == ["7", "9"] and data[1].video.shape[2] == 16
    with pytest.raises(ValueError, match="left and right"):
        SomethingSomethingV2(train, tmp_path / "v", **TRAIN)
    SomethingSomethingV2(train, tmp_path / "v", transform=TrainTransform(32, flip=False))
    with pytest.raises(ValueError, match="not Something"):
        SomethingSomethingV2(_written(tmp_path / "x.csv", "a.mp4 1\n"), tmp_path)
    with pytest.raises(ValueError, match="not a class list"):
        SomethingSomethingV2(train, tmp_path / "v", classes=train)


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_video_list(folder, tmp_path):
    spaced = VideoList(_written(tmp_path / "train.csv", "a/0.mp4 1\nb/1.mp4 0\n"), folder)
    assert spaced.labels == [1, 0] and spaced.classes == ["0", "1"] and spaced.format == "list separated by space"
    text = "file,verb,fold\na/0.mp4,put,train\nb/1.mp4,,train\nb/3.mp4,take,val\n"
    listed = _written(folder / "l.csv", text)
    with pytest.warns(UserWarning, match="1 rows without a label"):
        data = VideoList(listed, split="train", label_column="verb", split_column="fold")
    assert data.dropped == 1 and data.ids == ["a/0.mp4"] and data.classes == ["put", "take"]
    assert data[0].video.shape[2] == 15
    bare = VideoList(_written(tmp_path / "bare.txt", "0 4\n3 4\n"), folder)
    assert [Path(p).name for p in bare.paths] == ["0.mp4", "3.mp4"] and bare[1].label == 4
    unlabeled = VideoList(_written(tmp_path / "test.txt", "a/0.mp4\n"), folder)
    assert unlabeled.labels == [-1] and unlabeled.classes == []
    with pytest.raises(ValueError, match="labels from 0 to 1, legal are 0 to 0"):
        VideoList(tmp_path / "train.csv", folder, classes=["x"])


class TestMovingDigits:
    def test_protocol(self):
        train, val = MovingDigits(), MovingDigits("val")
        assert len(train) + len(val) == 1797 * 9 and len(val) == 359 * 9 and len(val.classes) == 9
        assert not {i.split("/")[0] for i in train.ids} & {i.split("/")[0] for i in val.ids}
        sample = val[13]
        assert sample.video.shape == (1, 3, 17, 64, 64) and sample.video.dtype == torch.float32
        assert -1 <= sample.video.min() < sample.video.max() <= 1 and sample.id == "0009/turning left"
        assert sample.label == 4 == val.labels[13] and sample.timestamps.tolist() == [[j / 25 for j in range(17)]]
        batch = next(MovingDigits(transform=EvalTransform(32)).loader(4, shuffle=True))
        assert batch.video.shape == (4, 1, 3, 17, 32, 32)

    def test_deterministic(self):
        a, b = MovingDigits(), MovingDigits()
        b.set_epoch(3)
        assert torch.equal(a[100].video, b[100].video)
        assert not torch.equal(a[100].video, MovingDigits(seed=1)[100].video)

    def test_the_motion_is_the_label(self):
        """Measured on the ink: where its center goes, how it spreads, how it turns."""
        data = MovingDigits(size=48)
        for label, name in enumerate(data.classes):
            moved = np.array([_motion(data[9 * k + label].video[0]) for k in range(0, 120, 8)])
            x, y, turn, growth = np.median(moved, axis=0)
            measured = {
                ("left", "right"): x / 0.02,
                ("up", "down"): y / 0.02,
                ("turning left", "turning right"): turn / 0.1,
                ("shrinking", "growing"): growth / 0.02,
            }
            for (less, more), amount in measured.items():
                assert {less: amount < -0.5, more: amount > 0.5}.get(name, abs(amount) < 0.5), (name, measured)

    def test_a_frame_alone_says_nothing(self):
        """Ink, place and spread of first, middle and last frame have the same mean in all classes."""
        data = MovingDigits(size=32)
        videos = (data[i].video[0] for i in range(120 * 9))
        facts = np.array([[_facts(video[:, t]) for t in (0, 8, 16)] for video in videos]).reshape(120, 9, -1)
        errors = facts.std(axis=(0, 1)) / np.sqrt(120)
        assert (np.abs(facts.mean(0) - facts.mean((0, 1))) / errors).max() < 4.2

    def test_classes_in_the_order_of_a_head(self):
        ours, theirs = MovingDigits("val"), MovingDigits("val", classes=sorted(MovingDigits("val").classes))
        assert [ours.classes[label] for label in ours.labels] == [theirs.classes[label] for label in theirs.labels]
        assert torch.equal(ours[3].video, theirs[3].video) and ours[3].label != theirs[3].label
        with pytest.raises(ValueError, match="the classes lack 'left'"):
            MovingDigits("val", classes=["up", "down"])

    def test_some_of_them_stay_what_they_are(self):
        whole, some = MovingDigits("val"), MovingDigits("val")
        some.keep(np.array([14, 30]))
        assert [some[i].id for i in range(2)] == [whole[14].id, whole[30].id]
        assert all(torch.equal(some[i].video, whole[j].video) for i, j in enumerate((14, 30)))
        assert [some[i].label for i in range(2)] == [14 % 9, 30 % 9]

    def test_bad_arguments(self):
        for wrong in ({"split": "test"}, {"frames": 0}, {"size": 8}, {"transform": TrainTransform(32)}):
            with pytest.raises(ValueError):
                MovingDigits(**wrong)


def _ink(frame_CHW) -> np.ndarray:
    """[H,W] in [0, 1], by distance from the ground's color, which most pixels have."""
    ground = frame_CHW.flatten(1).median(1).values
    ink = (frame_CHW - ground[:, None, None]).abs().sum(0)
    return (ink / ink.max()).numpy()


def _circle(ink) -> tuple[complex, complex]:
    """Center of the ink on the torus: the phase of x and of y."""
    phase = np.exp(2j * np.pi * np.arange(len(ink)) / len(ink))
    return (ink.sum(0) * phase).sum() / ink.sum(), (ink.sum(1) * phase).sum() / ink.sum()


def _facts(frame_CHW) -> list[float]:
    ink = _ink(frame_CHW)
    x, y = _circle(ink)
    return [ink.mean(), x.real, x.imag, y.real, y.imag, abs(x), abs(y)]


def _motion(video_CTHW) -> np.ndarray:
    """Medians over the frames of (x, y in pictures, turn in radians, growth in log) from one frame to the next."""
    steps = []
    for t in range(video_CTHW.shape[1] - 1):
        (a, b), states = (_ink(video_CTHW[:, t + k]) for k in range(2)), []
        for ink in (a, b):
            x, y = _circle(ink)
            side = len(ink)
            rolled = np.roll(ink, [round(side / 2 - np.angle(p) / 2 / np.pi * side) for p in (y, x)], (0, 1))
            u, v = np.meshgrid(np.arange(side) - side / 2, np.arange(side) - side / 2)
            uu, vv, uv = ((rolled * w).sum() / rolled.sum() for w in (u * u, v * v, u * v))
            states.append((np.angle(x), np.angle(y), np.arctan2(2 * uv, uu - vv), np.log(uu + vv) / 2))
        step = np.subtract(states[1], states[0])
        step[:3] = np.angle(np.exp(1j * step[:3]))
        steps.append(step / [2 * np.pi, 2 * np.pi, 2, 1])
    return np.median(steps, axis=0)
