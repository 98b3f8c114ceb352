"""Training batches, and the clip the package renders itself."""

import os
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from vidtok.datasets import ClipFolder, VideoError, demo_clip, open_video, write_video
from vidtok.datasets.seek import read_selection, window_indices


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    for i in range(3):
        where = root / f"class{i}"
        where.mkdir()
        write_video(where / f"{i}.mp4", demo_clip(40 + i, 80, seed=i)[..., : 64 + 8 * i, :], 30)
        write_video(where / f"{i}.png", demo_clip(1, 72, seed=i + 9), 30)
    return root


def test_batches_are_homogeneous_and_images_evenly_spread(folder):
    data = ClipFolder(folder, frames=9, crop=32, crops_per_clip=2, batch_size=4, image_fraction=0.25)
    batches = list(data.loader(stop=8))
    assert [b.shape[2] for b in batches] == [9, 9, 9, 1, 9, 9, 9, 1]
    for batch in batches:
        assert batch.shape == ((4, 3, 9, 32, 32) if batch.shape[2] == 9 else (16, 3, 1, 32, 32))
        assert batch.dtype == torch.float32 and -1 <= batch.min() < batch.max() <= 1
    assert data.is_image_batch(3) and not data.is_image_batch(4)
    assert len({b.sum().item() for b in batches}) == 8


def test_annotations_choose_the_files(folder, tmp_path):
    """A list as UCF-101 has it for its training split, and a csv with a column of splits."""
    (tmp_path / "trainlist01.txt").write_text("class0/0.mp4 1\nclass2/2.mp4 3\nclass1/9.mp4 2\n")
    data = ClipFolder(folder, crop=32, annotations=tmp_path / "trainlist01.txt")
    assert [Path(path).name for path in data.videos] == ["0.mp4", "2.mp4"] and not data.images
    (tmp_path / "all.csv").write_text("path,label,split\nclass0/0.mp4,a,train\nclass1/1.png,b,val\n")
    data = ClipFolder(folder, crop=32, annotations=tmp_path / "all.csv", split="val")
    assert [Path(path).name for path in data.images] == ["1.png"] and not data.videos
    with pytest.raises(ValueError, match="no split 'test', only train, val"):
        ClipFolder(folder, crop=32, annotations=tmp_path / "all.csv", split="test")
    (tmp_path / "none.txt").write_text("class0/a.mp4\nclass0/b.mp4\n")
    with pytest.raises(ValueError, match=r"no video or image that \S*none.txt names in"):
        ClipFolder(folder, crop=32, annotations=tmp_path / "none.txt")


@pytest.mark.parametrize("how", [{}, {"size": 48}, {"size": (32, 64)}, {"fps": 12.0}])
def test_batch_is_a_function_of_seed_and_number(folder, how):
    make = lambda seed=0: ClipFolder(folder, frames=9, crop=32, batch_size=2, seed=seed, **how)  # noqa: E731
    whole = list(make().loader(stop=5))
    resumed = list(make().loader(start=3, stop=5))
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], resumed, strict=True))
    assert not torch.equal(whole[0], make(seed=1)[0])


def test_workers_change_nothing(folder):
    data = ClipFolder(folder, frames=9, crop=32, batch_size=2, image_fraction=0.5)
    alone = list(data.loader(stop=6))
    shared = list(data.loader(stop=6, workers=2))
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


def test_crops_come_from_the_video(folder):
    """A crop without resizing or mirror is found in the decoded frames pixel for pixel."""
    data = ClipFolder(folder / "class0", frames=5, crop=64, flip=False, images=False, batch_size=2)
    with open_video(folder / "class0" / "0.mp4", "pyav") as reader:
        all_THWC = reader.frames(range(reader.num_frames)).astype(np.float32) / 127.5 - 1
    for clip_CTHW in data[0]:
        first_HWC = clip_CTHW[:, 0].permute(1, 2, 0).numpy()
        found = [
            (t, x)
            for t in range(len(all_THWC) - 4)
            for x in range(all_THWC.shape[2] - 63)
            if np.abs(all_THWC[t, :64, x : x + 64] - first_HWC).max() < 1e-5
        ]
        assert len(found) == 1
        t, x = found[0]
        np.testing.assert_allclose(clip_CTHW.permute(1, 2, 3, 0), all_THWC[t : t + 5, :64, x : x + 64], atol=1e-5)


def read_window(path, fps: float | None, position: float) -> np.ndarray:
    choose = partial(window_indices, path=path, frames=9, fps=fps, position=position)
    return read_selection(path, choose).frames


@pytest.mark.parametrize("position", [0.0, 0.37, 0.999])
@pytest.mark.parametrize("fps", [None, 10.0, 30.0])
def test_window_by_seeking_equals_decoding_from_the_start(tmp_path_factory, position, fps):
    path = tmp_path_factory.mktemp("window") / "a.mkv"
    write_video(path, demo_clip(300, 16), 30)  # more than one keyframe interval
    window_THWC = read_window(path, fps, position)
    with open_video(path, "pyav") as reader:
        frames_THWC = reader.frames(range(300))
    step = 1 if fps is None else round(30 / fps)
    matches = [
        t for t in range(300 - 8 * step) if np.array_equal(frames_THWC[t : t + 9 * step : step][:9], window_THWC)
    ]
    assert matches and abs(matches[0] - position * (300 - 9 * step)) <= 2


def test_unusable_files_are_skipped_and_counted(folder, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.mp4").write_bytes((folder / "class0" / "0.mp4").read_bytes())
    (tmp_path / "empty.mp4").write_bytes(b"")
    write_video(tmp_path / "short.mp4", demo_clip(4, 64), 30)
    write_video(tmp_path / "small.mp4", demo_clip(20, 24), 30)
    data = ClipFolder(tmp_path, frames=9, crop=32, batch_size=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first = list(data.loader(stop=8))
    assert sorted(p.name for p in data.skipped) == ["empty.mp4", "short.mp4", "small.mp4"]
    assert len([w for w in caught if "skipped from now on" in str(w.message)]) == 3
    assert all(torch.equal(a, b) for a, b in zip(first, data.loader(stop=8), strict=True))


class Diary(ClipFolder):
    """Notes what it opens."""

    def _read(self, path: str, position: float, image: bool) -> np.ndarray:
        opened.append((path, position))
        return super()._read(path, position, image)


opened = []


@pytest.mark.parametrize(("crops_per_clip", "count"), [(1, 4), (2, 4), (4, 2), (4, 8)])
def test_a_part_is_a_slice_and_opens_its_own_files_alone(folder, crops_per_clip, count):
    data = Diary(folder, frames=5, crop=32, batch_size=8, crops_per_clip=crops_per_clip, image_fraction=0.5)
    for index in (0, 1):  # videos, images
        opened.clear()
        whole, windows = data[index], opened.copy()
        assert len(windows) == len(whole) // crops_per_clip
        rows = len(whole) // count
        for i in range(count):
            opened.clear()
            assert torch.equal(data.shard_of(index, (i, count)), whole[i * rows : (i + 1) * rows])
            assert opened == windows[i * rows // crops_per_clip : -(-(i + 1) * rows // crops_per_clip)]


def test_parts_of_a_loader_make_the_whole(folder):
    data = ClipFolder(folder, frames=5, crop=32, batch_size=4, image_fraction=0.5)
    halves = [list(data.loader(stop=3, workers=workers, shard=(i, 2))) for i, workers in ((0, 0), (1, 1))]
    for whole, *parts in zip(data.loader(stop=3), *halves, strict=True):
        assert torch.equal(whole, torch.cat(parts))
    with pytest.raises(ValueError, match="a batch of 4 doesn't divide into 3 equal parts"):
        next(data.loader(shard=(0, 3)))
    with pytest.raises(
        ValueError, match="a batch of 6 doesn't divide into 4 equal parts"
    ):  # of images, which come later
        next(ClipFolder(folder, crop=32, batch_size=4, image_batch_size=6).loader(shard=(0, 4)))


class Trap(ClipFolder):
    """What some files do to a decoder."""

    def _read(self, path: str, position: float, image: bool) -> np.ndarray:
        if path.endswith("hangs.mp4"):
            time.sleep(1e6)
        if path.endswith("crashes.mp4"):
            os.kill(os.getpid(), signal.SIGSEGV)
        return super()._read(path, position, image)


def test_files_that_hang_or_crash_are_skipped_in_workers(folder, tmp_path):
    for name in ("a", "crashes", "hangs"):
        (tmp_path / f"{name}.mp4").write_bytes((folder / "class0" / "0.mp4").read_bytes())
    data = Trap(tmp_path, frames=5, crop=32, batch_size=2)
    with pytest.warns(UserWarning, match="decoder killed"), pytest.warns(UserWarning, match="SIGSEGV"):
        batches = list(data.loader(stop=6, workers=1, time_limit=3))
    assert sorted(p.name for p in data.skipped) == ["crashes.mp4", "hangs.mp4"]
    assert all(torch.equal(a, b) for a, b in zip(batches, data.loader(stop=6), strict=True))


def test_all_files_unusable_is_an_error(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(VideoError), pytest.warns(UserWarning, match="empty"):
        ClipFolder(tmp_path)[0]


def test_shares_of_several_folders(folder):
    data = ClipFolder({folder / "class0": 3.0, folder / "class1": 1.0}, frames=9, crop=32)
    assert data.video_shares.tolist() == [0.75, 1.0]
    assert len(ClipFolder([folder / "class0", folder / "class1"], frames=9, crop=32).videos) == 2


@pytest.mark.parametrize(
    "wrong", [{"frames": 16}, {"crop": 30}, {"crop": 64, "size": 32}, {"crops_per_clip": 3, "batch_size": 8}]
)
def test_bad_arguments_are_value_errors(folder, wrong):
    with pytest.raises(ValueError):
        ClipFolder(folder, **wrong)


def test_folder_without_videos_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match="no video"):
        ClipFolder(tmp_path)
    with pytest.raises(ValueError, match="not a folder"):
        ClipFolder(tmp_path / "nothing")


def test_demo_clip():
    clip_BCTHW = demo_clip()
    assert clip_BCTHW.shape == (1, 3, 33, 128, 128) and clip_BCTHW.dtype == torch.float32
    assert clip_BCTHW.min() >= -1 and clip_BCTHW.max() <= 1 and 0.2 < clip_BCTHW.std() < 0.6
    assert torch.equal(clip_BCTHW[:, :, :9], demo_clip(9))
    assert not torch.equal(clip_BCTHW, demo_clip(seed=1))
    motion = clip_BCTHW.diff(dim=2).abs().mean()
    assert 0.005 < motion < 0.1
    with pytest.raises(ValueError):
        demo_clip(0)


def test_a_break_in_the_middle_is_a_video_error(tmp_path):
    """Also where the window is found by seeking, after packets that look whole."""
    write_video(tmp_path / "x.mp4", demo_clip(60, 64), 30)
    data = bytearray((tmp_path / "x.mp4").read_bytes())
    data[len(data) // 3 : 2 * len(data) // 3] = bytes(len(data) // 3)
    (tmp_path / "x.mp4").write_bytes(data)
    with pytest.raises(VideoError, match=r"x\.mp4"):
        read_window(tmp_path / "x.mp4", None, 0.9)


def test_a_loader_left_early_lets_its_process_end(folder):
    """Workers that ignore the loader's own SIGTERM would keep the interpreter waiting for ever."""
    code = (
        "import sys; from vidtok.datasets import ClipFolder\n"
        "if __name__ == '__main__':\n"
        "    batches = ClipFolder(sys.argv[1], frames=9, crop=32, batch_size=2).loader(workers=1)\n"
        "    print(next(batches).shape[0])\n"
    )
    script = folder / "leave.py"
    script.write_text(code)
    out = subprocess.run([sys.executable, str(script), str(folder)], capture_output=True, text=True, timeout=120)
    assert out.returncode == 0 and out.stdout == "2\n" and out.stderr == ""
