"""Samplers against the definitions that the field writes in frames."""

import numpy as np
import pytest

from vidtok.datasets import dense_clips, random_clip, random_segments, uniform_segments, whole_windows
from vidtok.datasets.frames import indices_at


def frames_of(times, count, fps=25.0):
    return indices_at(np.arange(count) / fps, times)


@pytest.mark.parametrize("count", [16, 37, 80, 250, 251])
@pytest.mark.parametrize("fps", [12.0, 25.0, 30000 / 1001])
class TestAgainstFrames:
    def test_uniform_segments(self, count, fps):
        tick = count / 16
        clips = frames_of(uniform_segments(count / fps, fps, frames=16), count, fps)
        assert clips.tolist() == [[int(tick / 2 + tick * i + 1e-9) for i in range(16)]]
        two = frames_of(uniform_segments(count / fps, fps, frames=16, clips=2), count, fps)
        assert two.tolist() == [[int(tick * (i + k / 2) + 1e-9) for i in range(16)] for k in range(2)]

    def test_random_segments(self, count, fps):
        times = random_segments(count / fps, fps, np.random.default_rng(0), frames=8, clips=300)
        clips = frames_of(times, count, fps)
        edges = np.arange(9) * count / 8
        rounding = 1e-3 * fps  # a moment within 1 ms before a frame counts as the frame
        assert (clips + 1 >= edges[:-1]).all() and (clips < edges[1:] + rounding).all()
        assert {0, count - 1} <= set(clips.ravel().tolist())

    def test_dense_clips(self, count, fps):
        clips = frames_of(dense_clips(count / fps, fps, frames=16, stride=4, clips=5), count, fps)
        room = max(count - 61, 0)
        starts = [int(room * k / 4) for k in range(5)]
        assert clips.tolist() == [[min(s + 4 * i, count - 1) for i in range(16)] for s in starts]
        middle = frames_of(dense_clips(count / fps, fps, frames=16, stride=4), count, fps)
        assert middle[0, 0] == room // 2

    def test_random_clip(self, count, fps):
        times = random_clip(count / fps, fps, np.random.default_rng(0), frames=5, stride=3, clips=3000)
        clips = frames_of(times, count, fps)
        assert (np.diff(clips) == 3).all() and (clips.max(), clips.min()) == (count - 1, 0)
        assert set(clips[:, 0].tolist()) == set(range(count - 12))
        shares = np.bincount(clips[:, 0]) / 3000 * (count - 12)
        assert np.abs(shares - 1).max() < 6 * np.sqrt((count - 12) / 3000)

    def test_whole_windows_miss_nothing(self, count, fps):
        clips = frames_of(whole_windows(count / fps, fps, frames=16), count, fps)
        assert (np.diff(clips) == 1).all() and len(clips) == -(-count // 16)
        assert set(clips.ravel().tolist()) == set(range(count))
        assert clips[:-1, 0].tolist() == list(range(0, count - 16, 16))
        half = frames_of(whole_windows(count / fps, fps, frames=16, hop=8), count, fps)
        assert half[:, 0].tolist() == [*range(0, count - 16, 8), count - 16]


def test_short_videos_hold_their_last_frame():
    for times in (
        dense_clips(0.2, 25.0, frames=8, clips=2),
        random_clip(0.2, 25.0, np.random.default_rng(0), frames=8, clips=2),
        whole_windows(0.2, 25.0, frames=8),
    ):
        assert all(clip == [0, 1, 2, 3, 4, 4, 4, 4] for clip in frames_of(times, 5).tolist())


def test_one_frame():
    for times in (uniform_segments(0.04, 25.0, frames=4), dense_clips(0.04, 25.0, frames=4)):
        assert frames_of(times, 1).tolist() == [[0, 0, 0, 0]]


def test_a_stride_at_a_rate_is_the_same_stretch_of_time_in_every_video():
    for fps in (12.0, 25.0, 60.0):
        times = dense_clips(10.0, fps, frames=16, stride=4, clips=3, at_fps=30.0)
        np.testing.assert_allclose(np.diff(times), 4 / 30)
        assert times[0, 0] == 0 and times.max() <= 10 - 1 / fps + 1e-9
        times = random_clip(10.0, fps, np.random.default_rng(0), frames=16, stride=4, at_fps=30.0)
        np.testing.assert_allclose(np.diff(times), 4 / 30)
