"""Motion tasks: what an item depends on, balance, splits by file, and that no single frame tells the label."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from vidtok.datasets import MotionTasks, demo_clip, video_to_frames, write_video
from vidtok.datasets.decode import convert_pictures
from vidtok.datasets.frames import Chunk
from vidtok.datasets.synthetic import motion
from vidtok.datasets.synthetic.motion import TASKS, source_of, task_of

SMALL = {"frames": 9, "size": 32}
FRAMES = 60  # of a file


@pytest.fixture(scope="module")
def pictures() -> dict[str, np.ndarray]:
    """Frames of files by name, uint8 [T,H,W,3]."""
    return {f"{i}.mp4": video_to_frames(demo_clip(FRAMES, 64, seed=i)[0])[:, :48] for i in range(12)}


@pytest.fixture(scope="module")
def folder(pictures, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("motion")
    for i, (name, frames) in enumerate(pictures.items()):
        part = root / ("val" if i % 2 else "train")
        part.mkdir(exist_ok=True)
        write_video(part / name, torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1, 25)
    return root


@pytest.fixture
def in_memory(pictures, monkeypatch):
    """Files whose pictures are known exactly: an encoder's bytes differ from call to call."""

    def read(path, choose, cache, view, reader):
        frames, timestamps = pictures[Path(path).name], np.arange(FRAMES) / 25
        indices = choose(timestamps, 25.0)
        return Chunk(convert_pictures(frames[indices], view(*frames.shape[1:3])), timestamps[indices])

    monkeypatch.setattr(motion, "read_selection", read)


def test_an_item_depends_on_seed_task_and_number_alone(folder):
    one = MotionTasks(folder, "camera", "train", 24, **SMALL)
    sample = one[13]
    assert sample.video.shape == (1, 3, 9, 32, 32) and sample.video.dtype == torch.float32
    assert sample.video.min() >= -1 and sample.video.max() <= 1
    assert one.classes[sample.label] in {f"camera/{name}" for name in TASKS["camera"]}
    assert source_of(sample.id) == str(Path(one.paths[13]).relative_to(folder)) and sample.id.endswith("#camera-13")

    more = MotionTasks(folder, "camera", "train", 60, **SMALL)
    assert more.ids[:24] == one.ids and more.labels[:24] == one.labels
    torch.testing.assert_close(more[13].video, sample.video, rtol=0, atol=0)
    every = MotionTasks(folder, "all", "train", 7 * 24, **SMALL)
    place = every.ids.index(sample.id)
    torch.testing.assert_close(every[place].video, sample.video, rtol=0, atol=0)
    one.ids, one.labels, one.paths, one.segments = ([x[13]] for x in (one.ids, one.labels, one.paths, one.segments))
    torch.testing.assert_close(one[0].video, sample.video, rtol=0, atol=0)  # reduced to some items
    torch.testing.assert_close(more.draw(13, epoch=3).video, sample.video, rtol=0, atol=0)

    other = MotionTasks(folder, "camera", "train", 24, seed=1, **SMALL)
    assert other.ids == more.ids[:24] and other.labels == more.labels[:24]
    assert not torch.equal(other[13].video, sample.video)


def test_workers_make_the_same_clips(folder):
    videos = MotionTasks(folder, "all", "val", 8, **SMALL)
    alone, shared = (list(videos.loader(4, workers)) for workers in (0, 2))
    for ours, theirs in zip(alone, shared, strict=True):
        assert ours.id == theirs.id
        torch.testing.assert_close(ours.video, theirs.video, rtol=0, atol=0)


def test_classes_and_files_are_balanced_and_splits_share_no_file(folder):
    splits = [MotionTasks(folder, "all", split, 7 * 48, **SMALL) for split in ("train", "val")]
    assert splits[0].classes == splits[1].classes == [f"{task}/{name}" for task in TASKS for name in TASKS[task]]
    assert not {*map(source_of, splits[0].ids)} & {*map(source_of, splits[1].ids)}
    for videos in splits:
        counts = Counter(videos.classes[label] for label in videos.labels)
        for task, names in TASKS.items():
            assert [counts[f"{task}/{name}"] for name in names] == [48 // len(names)] * len(names)
            files = Counter(source_of(id) for id in videos.ids if f"#{task}-" in id)
            assert len(files) == 6 and set(files.values()) == {8}
    assert Counter(task_of(splits[0].classes[label]) for label in splits[0].labels) == {task: 48 for task in TASKS}
    assert len(MotionTasks(folder, "arrow", "train", **SMALL)) == 4000
    assert len(MotionTasks(folder, "all", "val", **SMALL)) == 7 * 2000


def test_a_source_without_splits_is_divided_by_a_hash_of_names(folder):
    whole = MotionTasks(folder / "train", "arrow", None, 12, **SMALL)
    parts = [MotionTasks(folder / "train", "arrow", split, 12, **SMALL) for split in ("train", "val")]
    names = [{*map(source_of, videos.ids)} for videos in (whole, *parts)]
    assert names[1] | names[2] == names[0] and not names[1] & names[2] and all(names)
    with pytest.raises(ValueError, match="has no splits; by a hash it has 'train' and 'val', not 'test'"):
        MotionTasks(folder / "train", "arrow", "test")
    with pytest.raises(ValueError, match="has no split 'test', only train, val"):
        MotionTasks(folder, "arrow", "test")


def test_files_that_are_too_short_are_left_out(folder):
    with pytest.raises(ValueError, match="no video with 65 frames for task 'speed'"), pytest.warns(UserWarning):
        MotionTasks(folder, "speed", "train")
    assert len(MotionTasks(folder, "camera", "train", 4, frames=99, size=32).files["camera"]) == 6  # of stills
    videos = MotionTasks(folder, "arrow", "train", 4, fps=12.5, **SMALL)
    assert videos[0].video.shape[2] == 9
    with pytest.raises(ValueError, match="no video"), pytest.warns(UserWarning):  # frames would be shown twice
        MotionTasks(folder, "arrow", "train", 4, fps=30, **SMALL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "camra"}, "unknown motion task 'camra'"),
        ({"clips": 0}, "want clips and stride of at least 1"),
        ({"frames": 2}, "at least 1, 3 frames"),
        ({"classes": ["camera/zoom-in"]}, "the classes lack 'camera/pan-right'"),
    ],
)
def test_bad_arguments(folder, settings, message):
    with pytest.raises(ValueError, match=message):
        MotionTasks(folder, **settings)


def test_clips_lie_around_the_same_middle_and_thirds_don_t_overlap():
    middles = {motion._offsets("speed", kind, 9, np.random.default_rng(0))[4] for kind in TASKS["speed"]}
    assert len(middles) == 1
    assert motion._offsets("speed", "4x", 9, np.random.default_rng(0)).max() == motion._span("speed", 9)
    for seed in range(20):
        offsets = motion._offsets("order", "312", 10, np.random.default_rng(seed))
        assert len(set(offsets.tolist())) == 10 and offsets.min() >= 0 and offsets.max() <= motion._span("order", 10)
        third, first, second = offsets[:4], offsets[4:7], offsets[7:]
        assert first.max() < second.min() - 1 and second.max() < third.min() - 1


def static_features(video_3TSS: torch.Tensor) -> np.ndarray:
    """Mean colors and mean absolute gradients of the cells of a 4x4 grid, of each frame: [T,F]."""
    frames = video_3TSS.transpose(0, 1)
    dx, dy = (frames.diff(dim=dim).abs() for dim in (-1, -2))
    return torch.cat([F.adaptive_avg_pool2d(x, 4).flatten(1) for x in (frames, dx, dy)], 1).numpy()


def flow_features(video_3TSS: torch.Tensor) -> np.ndarray:
    """Normal flow, of the cells of a 2x2 grid, and how much changes: [F]."""
    gray = F.avg_pool2d(video_3TSS.mean(0)[:, None], 2)[:, 0]
    dt = gray.diff(dim=0)[:, 1:-1, 1:-1]
    dy, dx = (gray[:-1, 2:, 1:-1] - gray[:-1, :-2, 1:-1]) / 2, (gray[:-1, 1:-1, 2:] - gray[:-1, 1:-1, :-2]) / 2
    flow = torch.stack([(dt * d).sum(0) / ((d * d).sum(0) + 0.02) for d in (dx, dy)])
    return torch.cat([F.adaptive_avg_pool2d(flow, 2).flatten(), dt.abs().mean((1, 2))]).numpy()


@pytest.mark.parametrize("task", list(TASKS))
def test_no_single_frame_tells_the_label(folder, in_memory, task):
    """Linear classifiers of the first, the middle and the last frame, and of the mean of all frames' features."""
    sides = []
    for split in ("train", "val"):
        videos = [*MotionTasks(folder, task, split, 240, **SMALL)]
        labels = np.array([sample.label for sample in videos])
        static = np.stack([static_features(sample.video[0]) for sample in videos])
        sides.append((labels, static, np.stack([flow_features(sample.video[0]) for sample in videos])))

    def accuracy(features) -> float:
        (labels, *train), (tested, *test) = sides
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
        return (model.fit(features(*train), labels).predict(features(*test)) == tested).mean()

    chance = 1 / len(TASKS[task])
    deviation = (chance * (1 - chance) / 240) ** 0.5
    for name, choose in {
        "first": lambda static, flow: static[:, 0],
        "middle": lambda static, flow: static[:, 4],
        "last": lambda static, flow: static[:, -1],
        "mean": lambda static, flow: static.mean(1),
    }.items():
        assert accuracy(choose) <= chance + 3 * deviation, (task, name)
    if task in ("camera", "speed", "object-direction", "object-speed"):
        assert accuracy(lambda static, flow: flow) > chance + 5 * deviation, task
