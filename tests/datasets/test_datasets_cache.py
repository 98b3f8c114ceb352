"""Decoded frames kept on disk change nothing but the time it takes."""

import os
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest

from vidtok.datasets import VideoError, demo_clip, open_video, write_video
from vidtok.datasets.seek import cached_frames, read_selection, window_indices


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("cached")
    for i, (name, fps) in enumerate([("a.mp4", 30), ("b.mkv", 24), ("c.gif", 15), ("d.mp4", 30000 / 1001)]):
        write_video(root / name, demo_clip(31 + 2 * i, 48, seed=i), fps)
    return root


def test_cached_frames_are_the_frames(folder, tmp_path):
    frames_THWC, timestamps, fps = cached_frames(folder / "b.mkv", tmp_path)
    with open_video(folder / "b.mkv", "pyav") as reader:
        assert np.array_equal(frames_THWC, reader.frames(range(reader.num_frames)))
        assert np.array_equal(timestamps, reader.timestamps) and fps == reader.fps


def test_a_changed_file_is_decoded_anew(folder, tmp_path):
    path = tmp_path / "x.mp4"
    write_video(path, demo_clip(9, 32), 30)
    assert len(cached_frames(path, tmp_path / "cache")[0]) == 9
    write_video(path, demo_clip(13, 32), 30)
    os.utime(path, ns=(1, 1))
    assert len(cached_frames(path, tmp_path / "cache")[0]) == 13


def test_a_broken_video_leaves_nothing(folder, tmp_path):
    path = tmp_path / "x.mp4"
    rotten = bytearray((folder / "a.mp4").read_bytes())
    rotten[len(rotten) // 2 : len(rotten) // 2 + 500] = bytes(500)
    path.write_bytes(rotten)
    for _ in range(2):
        with pytest.raises(VideoError):
            cached_frames(path, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_the_frame_rate_is_the_readers_own(tmp_path):
    """Not guessed from the timestamps: with a pause in the middle, the last frame's display time would be another."""
    path = tmp_path / "pause.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 48, 48, "yuv420p"
        for i in range(40):
            frame = av.VideoFrame.from_ndarray(np.full((48, 48, 3), 5 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = i + (60 if i > 20 else 0), Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for position in np.linspace(0, 1, 40, endpoint=False):
        choose = partial(window_indices, path=path, frames=9, fps=12.0, position=position)
        plain, cached = (read_selection(path, choose, cache).frames for cache in (None, tmp_path / "cache"))
        assert np.array_equal(plain, cached)
