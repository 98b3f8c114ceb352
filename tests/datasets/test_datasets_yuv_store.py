"""Crops of stored videos are those of decoded ones, whatever their colors, sizes and orientation."""

import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from vidtok.datasets import ClipFolder, demo_clip, open_video, video_to_frames, write_video
from vidtok.datasets.yuv_store import YUVStore, _key, _save_index, add_videos, yuv_to_video


def write(path, frames, height, width, pix_fmt="yuv420p", matrix=2, range=0, turn=0) -> Path:
    """A video of the demo clip, tagged with a matrix (1: BT.709, 2: none, 9: BT.2020), a range (2: full) and a turn."""
    side = max(height, width)
    clip = demo_clip(frames, side + side % 2, seed=len(path.name))[0, :, :, :height, :width]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264" if pix_fmt.startswith("yuv") else "ffv1", rate=25)
        if turn:
            stream.set_display_rotation(turn)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, range
        if pix_fmt.startswith("yuv"):
            stream.options = {"crf": "12"}
        for image in video_to_frames(clip):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            spaces = {"dst_colorspace": 5 if matrix == 2 else matrix, "dst_color_range": range or 1}
            container.mux(stream.encode(frame.reformat(format=pix_fmt, **({} if pix_fmt == "bgr0" else spaces))))
        container.mux(stream.encode(None))
    return path


def stored(path: Path, folder: Path, device=None):
    add_videos(folder, [str(path)])
    store = YUVStore(folder, device)
    return store, store.find(path)


def psnr(a, b) -> float:
    return float(-10 * torch.log10(((a - b) / 2).square().mean()))


KINDS = {
    "untagged": {},
    "bt709": {"matrix": 1},
    "bt2020": {"matrix": 9},
    "full range": {"range": 2},
    "bt709, full range": {"matrix": 1, "range": 2},
    "4:4:4": {"pix_fmt": "yuv444p", "matrix": 1},
    "rgb": {"pix_fmt": "bgr0"},
}


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("kind", KINDS)
def test_crops_are_those_of_the_decoded_frames(tmp_path, kind, device):
    """Against swscale's RGB, cut and resized as float. It repeats samples of chroma, where the store interpolates."""
    path = write(tmp_path / "a.mkv", 21, 96, 130, **KINDS[kind])
    store, video = stored(path, tmp_path / "cache", device)
    assert (video.frames, video.height, video.width, video.fps) == (21, 96, 130, 25)
    assert (video.matrix, video.full_range) == {
        "untagged": (601, False), "bt709": (709, False), "bt2020": (2020, False), "full range": (601, True),
        "bt709, full range": (709, True), "4:4:4": (601, False), "rgb": (601, False),
    }[kind]  # fmt: skip
    with open_video(path, "pyav") as reader:
        np.testing.assert_array_equal(reader.timestamps, video.timestamps)
        rgb_TCHW = torch.from_numpy(reader.frames(range(21)).copy()).permute(0, 3, 1, 2) / 127.5 - 1
    for indices, top, left, side, size in [((3, 4, 5, 6, 7), 10, 22, 64, 32), ((0, 9, 9, 20), 0, 34, 96, 64)]:
        ours = store.crop(video, np.array(indices), top, left, side, size)
        assert ours.shape == (3, len(indices), size, size) and ours.dtype == torch.float32
        cut = rgb_TCHW[list(indices), :, top : top + side, left : left + side]
        wanted = torch.nn.functional.interpolate(cut, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)
        wanted = wanted.transpose(0, 1)
        assert psnr(ours, wanted) > 43
        # No color cast, but for swscale's own: its green is 1 to 2 levels of 255 below what the standard says.
        torch.testing.assert_close(ours.mean((1, 2, 3)), wanted.mean((1, 2, 3)), atol=2 / 127.5, rtol=0)
        mirrored = store.crop(video, np.array(indices), top, left, side, size, mirror=True)
        assert torch.equal(mirrored, ours.flip(-1))


@pytest.mark.parametrize("matrix", [601, 709, 2020])
@pytest.mark.parametrize("full", [False, True])
def test_conversion_is_the_standards(matrix, full):
    """White, black and gray are exact; all of YUV goes to RGB as swscale has it, but for its rounding."""
    white, black = (255, 0) if full else (235, 16)
    y, neutral = torch.tensor([[[white, black]]], dtype=torch.uint8), torch.full((1, 1, 2), 128, dtype=torch.uint8)
    rgb = yuv_to_video(y, neutral, neutral, matrix, full)
    torch.testing.assert_close(rgb[..., 0], torch.ones(3, 1, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(rgb[..., 1], -torch.ones(3, 1, 1), atol=1e-5, rtol=0)
    frame = av.VideoFrame(64, 64, "yuv420p")
    frame.colorspace, frame.color_range = {601: 5, 709: 1, 2020: 9}[matrix], 2 if full else 1
    rng = np.random.default_rng(0)
    planes = [np.repeat(np.repeat(rng.integers(16, 235, (8, 8), dtype=np.uint8), k, 0), k, 1) for k in (8, 4, 4)]
    for plane, values in zip(frame.planes, planes, strict=True):
        padded = np.zeros((plane.height, plane.line_size), np.uint8)
        padded[:, : values.shape[1]] = values
        plane.update(padded.tobytes())
    wanted = frame.reformat(format="rgb24").to_ndarray()
    blocks = [torch.from_numpy(p[None, :: len(p) // 8, :: len(p) // 8].copy()) for p in planes]
    ours = (yuv_to_video(*blocks, matrix, full)[:, 0].permute(1, 2, 0) + 1) * 127.5
    assert np.abs(ours.numpy() - wanted[::8, ::8]).max() < 3


@pytest.mark.parametrize("turn", [0, 90, 180])
@pytest.mark.parametrize("size", [(50, 70), (51, 67)])
def test_rotation_is_applied_and_odd_sizes_are_stored(tmp_path, turn, size):
    path = write(tmp_path / "a.mp4", 5, *size, pix_fmt="yuv420p" if size[0] % 2 == 0 else "yuv444p", turn=turn)
    store, video = stored(path, tmp_path / "cache")
    assert (video.height, video.width) == (size[::-1] if turn == 90 else size)
    with open_video(path, "pyav") as reader:
        rgb = torch.from_numpy(reader.frames([2]).copy()).permute(3, 0, 1, 2) / 127.5 - 1
    assert psnr(store.crop(video, np.array([2]), 2, 0, 48, 48), rgb[:, :, 2:50, :48]) > 38


def test_planes_are_the_decoders(tmp_path):
    """Bit for bit, frame by frame."""
    path = write(tmp_path / "a.mkv", 9, 50, 70)
    store, video = stored(path, tmp_path / "cache")
    with av.open(str(path)) as container:
        for t, frame in enumerate(container.decode(video=0)):
            wanted = frame.to_ndarray()
            y, u, v = (plane[t] for plane in store.planes(video))
            assert np.array_equal(y, wanted[:50])
            assert np.array_equal(torch.cat([u.flatten(), v.flatten()]), wanted[50:].ravel())


def test_a_file_larger_than_memory_is_mapped(tmp_path):
    """The frames lie at the end of a file of 1 TB, which takes no room on the disk."""
    path = write(tmp_path / "a.mkv", 3, 32, 32)
    _, video = stored(path, tmp_path)
    frames = (tmp_path / "frames.yuv").read_bytes()
    far = replace(video, offset=10**12)
    with open(tmp_path / "frames.yuv", "r+b") as file:
        file.seek(far.offset)
        file.write(frames)
        _save_index(tmp_path, {_key(path): far}, file)
    assert YUVStore(tmp_path).planes(far)[0].numpy().tobytes()[:1024] == frames[:1024]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    for i in range(4):
        write_video(root / f"{i}.mp4", demo_clip(31 + 2 * i, 80, seed=i)[..., : 64 + 2 * i, :], 25)
    write_video(root / "still.png", demo_clip(1, 72, seed=9), 25)
    return root


def clips(folder, cache=None, cache_gb=None, **more) -> ClipFolder:
    settings = {"size": (32, 64), "crop": 32, "batch_size": 4, "image_fraction": 0.25} | more
    return ClipFolder(folder, 9, cache=cache, cache_gb=cache_gb, **settings)


@pytest.mark.parametrize("fps", [None, 10.0])
@pytest.mark.parametrize("cache_gb", [None, 0.0006])
def test_a_cache_draws_the_same_crops(folder, tmp_path, fps, cache_gb):
    """With room for all videos, or for some."""
    plain, cached = (clips(folder, cache, cache_gb, fps=fps) for cache in (None, tmp_path))
    for i in range(8):
        assert plain[i].shape == cached[i].shape and psnr(plain[i], cached[i]) > 40
    assert torch.equal(plain[3], cached[3]) and plain.is_image_batch(3)
    sizes = os.path.getsize(tmp_path / "frames.yuv")
    assert (0 < sizes <= 6e5 and 0 < len(cached._store) < 4) if cache_gb else len(cached._store) == 4
    stored_first = set(cached._stored)
    again = clips(folder, tmp_path, cache_gb, fps=fps)
    assert torch.equal(again[5], cached[5]) and set(again._stored) == stored_first
    assert os.path.getsize(tmp_path / "frames.yuv") == sizes


def test_workers_fill_and_map_the_cache(folder, tmp_path):
    shared = list(clips(folder, tmp_path / "by workers").loader(stop=4, workers=2))
    alone = list(clips(folder, tmp_path / "alone").loader(stop=4))
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))
    assert (tmp_path / "by workers" / "frames.yuv").read_bytes() == (tmp_path / "alone" / "frames.yuv").read_bytes()
    data = clips(folder, tmp_path / "alone")
    data[0]
    assert len(pickle.dumps(data._store)) < 20_000, "the frames themselves were sent"


def test_a_changed_file_is_decoded_anew_and_a_broken_one_is_not_tried_again(folder, tmp_path):
    path, cache = tmp_path / "x.mp4", tmp_path / "cache"
    path.write_bytes((folder / "0.mp4").read_bytes())
    store, video = stored(path, cache)
    rotten = bytearray((folder / "1.mp4").read_bytes())
    rotten[len(rotten) // 2 : len(rotten) // 2 + 500] = bytes(500)
    path.write_bytes(rotten)
    assert store.find(path) is None
    again, broken = stored(path, cache)
    assert broken is None and len(again) == 1
    before = (cache / "index.npz").stat().st_mtime_ns
    add_videos(cache, [str(path)])
    assert (cache / "index.npz").stat().st_mtime_ns == before, "decoded again"
    path.write_bytes((folder / "2.mp4").read_bytes())
    _, other = stored(path, cache)
    assert other.frames == 35 and other.offset == video.end
    assert store.planes(video)[0].shape[0] == 31, "a reader from before goes on"


def test_a_killed_process_leaves_a_cache_that_is_gone_on_with(folder, tmp_path, monkeypatch):
    code = (
        "import sys, time; from vidtok.datasets import yuv_store\n"
        "yuv_store.SAVE_SECONDS = 0\n"
        "decode = yuv_store._decode\n"
        "def slow(job):\n"
        "    video = decode(job)\n"
        "    time.sleep(1)\n"
        "    return video\n"
        "yuv_store._decode = slow\n"
        "yuv_store.add_videos(sys.argv[1], sys.argv[2:])\n"
    )
    paths = sorted(map(str, folder.glob("*.mp4")))
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), *paths])
    deadline = time.monotonic() + 60
    while not (tmp_path / "index.npz").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = len(YUVStore(tmp_path))
    assert 0 < kept < 4
    with open(tmp_path / "frames.yuv", "ab") as file:
        file.write(b"half a video")
    add_videos(tmp_path, paths)
    add_videos(tmp_path / "whole", paths)
    assert (tmp_path / "frames.yuv").read_bytes() == (tmp_path / "whole" / "frames.yuv").read_bytes()
    assert not list(tmp_path.glob("part-*"))


def test_processes_that_fill_one_cache_do_not_corrupt_it(folder, tmp_path):
    paths = sorted(map(str, folder.glob("*.mp4")))
    context = get_context("spawn")
    fill = partial(add_videos, tmp_path / "shared")
    processes = [context.Process(target=fill, args=(paths[i:] + paths[:i],)) for i in (0, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    add_videos(tmp_path / "alone", paths)
    assert (tmp_path / "shared" / "frames.yuv").read_bytes() == (tmp_path / "alone" / "frames.yuv").read_bytes()


def test_a_range_of_sizes_enlarges_by_no_more_than_an_eighth(tmp_path):
    """The side that is cut out of 48 rows: never less than a crop's share of 9/8 x 48."""
    write_video(tmp_path / "a.mp4", demo_clip(9, 64)[..., :48, :], 25)
    write_video(tmp_path / "small.mp4", demo_clip(9, 24), 25)
    data = clips(tmp_path, tmp_path / "cache", size=(32, 96), images=False)
    sides = []
    data[0]
    cut = data._store.crop
    data._store.crop = lambda video, indices, top, left, side, *more: (
        sides.append(side) or cut(video, indices, top, left, side, *more)
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(20):
            data[i]
    assert min(sides) == 28 and max(sides) == 48  # 32 x 48 / 54
    assert [Path(path).name for path in data.skipped] == ["small.mp4"] and len(caught) <= 1
    single = clips(tmp_path, tmp_path / "cache", size=96, images=False)
    assert single[0].shape[-1] == 32 and not single.skipped


def test_uneven_crops_are_value_errors(folder, tmp_path):
    store, video = stored(folder / "0.mp4", tmp_path)
    with pytest.raises(ValueError, match="must be even"):
        store.crop(video, np.array([0]), 1, 0, 32, 32)
