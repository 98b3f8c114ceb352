"""Clocks that restart or jump, rates that no header states, and files that are overwritten."""

import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from vidtok.datasets import VideoError, check_video, iter_video, open_video, probe_video, write_video
from vidtok.datasets.container import JUMP, LONGEST_GAP, read_timeline
from vidtok.datasets.decode import Clock, PyAVReader
from vidtok.datasets.seek import read_selection
from vidtok.datasets.writing import gif_delays


def make(path: Path, frames=10, rate=10, codec="libx264", first=0, ticks=None, mux=None, **options) -> Path:
    """Encode grey pictures, number i of brightness 16 + 4 (first + i). ticks: frame number -> milliseconds."""
    with av.open(str(path), "w", options=mux or {}) as container:
        exact = {"qp": "1"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=rate, options=exact | {k: str(v) for k, v in options.items()})
        stream.width = stream.height = 32
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        if ticks:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(frames):
            image = np.full((32, 32, 3), (16 + 4 * (first + i)) % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if ticks:
                frame.pts, frame.time_base = ticks(i), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def shift(source: Path, path: Path, frame: int, seconds: float) -> Path:
    """Copy a video, with the packets from number `frame` on `seconds` later."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        for number, packet in enumerate(old.demux(stream)):
            if packet.dts is not None:
                later = round(seconds / stream.time_base) if number >= frame else 0
                packet.pts, packet.dts, packet.stream = packet.pts + later, packet.dts + later, copy
                new.mux(packet)
    return path


def brightness(path: Path, indices: list[int]) -> list[int]:
    """Numbers of the frames shown, by way of `read_selection`."""
    frames = read_selection(path, lambda timestamps, fps: np.array(indices)).frames
    return [round((float(frame.mean()) - 16) / 4) for frame in frames]


@pytest.mark.parametrize("offset", [0, 0.05, 0.45])  # times of the second recording that collide, and that don't
@pytest.mark.parametrize("suffix", [".ts", ".mpg"])
def test_two_recordings_joined_with_cat_are_one_video(tmp_path, suffix, offset):
    codec = {"codec": "mpeg2video", "rate": 25} if suffix == ".mpg" else {}
    one = make(tmp_path / f"one{suffix}", bf=0, **codec)
    two = make(tmp_path / f"two{suffix}", bf=0, first=10, mux={"output_ts_offset": str(offset)}, **codec)
    both = joined(tmp_path / f"both{suffix}", one, two)
    rate = codec.get("rate", 10)
    with open_video(both) as reader:
        assert reader.backend == "pyav"
        np.testing.assert_allclose(reader.timestamps, np.arange(20) / rate, atol=1e-3)
        assert reader.fps == pytest.approx(rate) and reader.num_frames == 20
        assert "restarts at frame 10" in str(reader.clock)
    with iter_video(both, fps=rate) as stream:
        assert sum(chunk.shape[2] for chunk in stream) == 20
    if suffix == ".ts":
        assert brightness(both, [3, 9, 10, 15]) == [3, 9, 10, 15]
    row = check_video(both)
    assert (row["status"], row["frames"]) == ("ok", 20) and "restarts at frame 10" in row["warning"]


@pytest.mark.parametrize("bf", [0, 2])
def test_a_clock_set_forward_leaves_no_gap_where_ffmpeg_leaves_none(tmp_path, bf):
    whole = make(tmp_path / "whole.ts", frames=20, bf=bf, g=10)
    assert check_video(whole)["warning"] == ""
    far = shift(whole, tmp_path / "far.ts", 10, 3600)
    with PyAVReader(far) as reader:
        np.testing.assert_allclose(reader.timestamps, np.arange(20) / 10, atol=1e-3)
    assert "jumps 3600 s at frame 10" in check_video(far)["warning"]
    assert read_timeline(far).unreliable is not None and read_timeline(whole).unreliable is None
    near = shift(whole, tmp_path / "near.ts", 10, 5)  # a pause
    with PyAVReader(near) as reader:
        np.testing.assert_allclose(reader.timestamps[[9, 10]], [0.9, 6], atol=1e-3)


def test_a_pause_is_kept_in_containers_whose_clock_does_not_jump(tmp_path):
    paused = make(tmp_path / "paused.mkv", ticks=lambda i: 100 * i + 3_600_000 * (i >= 5))
    with PyAVReader(paused) as reader:
        assert reader.timestamps[5] == pytest.approx(3600.5)
    assert check_video(paused)["warning"] == ""


def test_clock():
    clock = Clock(JUMP, interval=0.5)
    times = [7, 7.1, 7.2, 100.0, 100.1, None, 3, 3.1, 3.05, 3.2]
    shown = [clock.time(time, i) for i, time in enumerate(times)]
    np.testing.assert_allclose(shown, [7, 7.1, 7.2, 7.3, 7.4, 7.5, 7.6, 7.7, 7.7, 7.8])
    assert [number for number, _ in clock.breaks] == [3, 6]
    assert str(clock) == "the clock jumps 93 s at frame 3, restarts at frame 6; its times were made continuous"
    slow = Clock(LONGEST_GAP, interval=10)
    assert [slow.time(time, i) for i, time in enumerate([0, 3600, 7200])] == [0, 3600, 7200] and str(slow) == ""


def without_rate(path: Path) -> Path:
    """Blank the frame rate in the header of a WebM, as browsers write it: DefaultDuration becomes Void."""
    data = bytearray(path.read_bytes())
    place = data.index(b"\x23\xe3\x83")
    size = data[place + 3] & 0x7F
    data[place : place + 4 + size] = bytes([0xEC, 0x80 | (2 + size)]) + bytes(2 + size)
    path.write_bytes(data)
    return path


VP8 = {"codec": "libvpx", "deadline": "realtime", "cpu-used": 8}
RATES = {
    "browser.webm": (30, {**VP8, "frames": 30, "ticks": lambda i: i * 1000 // 30}),
    "varying.webm": (20, {**VP8, "frames": 30, "ticks": lambda i: 50 * i + (i % 3) * 10}),
    "slow.webm": (0.5, {**VP8, "frames": 5, "ticks": lambda i: 2000 * i}),
    "fast.webm": (500, {**VP8, "frames": 30, "ticks": lambda i: 2 * i}),
}


@pytest.mark.parametrize("name", RATES)
def test_the_rate_of_a_webm_that_states_none_is_measured(tmp_path, name):
    rate, how = RATES[name]
    path = without_rate(make(tmp_path / name, rate=30, **how))
    assert probe_video(path).fps == pytest.approx(rate, rel=0.02)
    assert read_timeline(path).fps == pytest.approx(rate, rel=0.02)
    with open_video(path, "pyav") as reader:
        assert reader.fps == read_timeline(path).fps
        assert reader.duration == pytest.approx(how["frames"] / rate, rel=0.03)


@pytest.mark.parametrize(
    ("name", "rate", "how"),
    [
        ("stated30.mkv", 10, {"rate": 30, "ticks": lambda i: 100 * i, "frames": 20}),
        ("stated1000.mkv", 25, {"rate": 1000, "ticks": lambda i: 40 * i, "frames": 20}),
        ("varying.mp4", 20, {"rate": 100, "ticks": lambda i: 50 * i + (i % 3) * 10, "frames": 50}),
        ("tenth.mp4", 0.1, {"rate": Fraction(1, 10), "frames": 4}),
        ("tenth.mkv", 0.1, {"rate": Fraction(1, 10), "frames": 4}),
        ("tenth.ts", 0.1, {"rate": Fraction(1, 10), "frames": 4}),
        ("tenth.wmv", 0.1, {"rate": Fraction(1, 10), "frames": 4, "codec": "wmv2"}),
        ("one.mp4", 0.1, {"rate": Fraction(1, 10), "frames": 1}),
        ("one.ts", 0.1, {"rate": Fraction(1, 10), "frames": 1}),
        ("fast.mp4", 480, {"rate": 480, "frames": 30}),
        ("ntsc.mkv", 30000 / 1001, {"rate": Fraction(30000, 1001), "frames": 30}),
        ("thirty.gif", 30, {"codec": "gif", "rate": 30, "frames": 31}),
    ],
)
def test_a_rate_that_the_times_contradict_is_measured(tmp_path, name, rate, how):
    path = make(tmp_path / name, **how)
    with open_video(path, "pyav") as reader:
        assert reader.fps == pytest.approx(rate, rel=0.01)
        assert reader.duration == pytest.approx(how["frames"] / rate, rel=0.02)
    assert read_timeline(path).fps == pytest.approx(rate, rel=0.01)
    assert check_video(path)["warning"] == ""


def test_an_overwritten_file_is_read_as_it_is_now(tmp_path):
    path = tmp_path / "x.mp4"
    for count in (30, 50, 20):
        make(path, frames=count)
        last = lambda timestamps, fps: np.array([len(timestamps) - 1])  # noqa: E731
        chunk = read_selection(path, last)
        assert round((float(chunk.frames.mean()) - 16) / 4) == count - 1
        assert chunk.timestamps[0] == pytest.approx((count - 1) / 10)


@pytest.mark.parametrize("replace", [os.replace, shutil.copyfile])
def test_a_file_that_changes_between_times_and_frames_is_an_error(tmp_path, replace):
    path, other = make(tmp_path / "x.mp4", frames=30), make(tmp_path / "y.mp4", frames=60)

    def choose(timestamps, fps):
        replace(other, path)
        return np.array([3, 27])

    with pytest.raises(VideoError, match="changed while it was read"):
        read_selection(path, choose)


def test_a_reader_notices_that_its_file_was_overwritten(tmp_path):
    path = make(tmp_path / "x.mp4", frames=30)
    with PyAVReader(path) as reader:
        reader.frames([5])
        make(path, frames=60)
        with pytest.raises(VideoError, match="changed while it was read"):
            reader.frames([4])
        with pytest.raises(VideoError, match="changed while it was read"):
            reader.num_frames  # noqa: B018


def test_an_old_av_is_refused_in_one_line(tmp_path):
    path = make(tmp_path / "x.mp4")
    code = "import av; av.__version__ = '16.1.0'; from vidtok.cli.main import main; raise SystemExit(main())"
    done = subprocess.run([sys.executable, "-c", code, "info", str(path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "vidtok: vidtok needs av>=17, not 16.1.0: pip install -U av\n"


@pytest.mark.parametrize("fps", [30, 29.97, 12.5, 50, 60, 0.1])
def test_a_gif_lasts_as_long_as_its_frames(tmp_path, fps):
    path, frames = tmp_path / "x.gif", 31
    video = torch.arange(frames) / frames * 2 - 1
    write_video(path, video[None, :, None, None].expand(3, frames, 16, 16), fps)
    with open_video(path) as reader:
        assert reader.fps == pytest.approx(min(fps, 50), rel=0.01)
        assert reader.duration == pytest.approx(frames / fps, abs=0.02)
        assert reader.num_frames == (frames if fps <= 50 else round(frames * 50 / fps))


def test_gif_delays():
    assert gif_delays(6, Fraction(30)) == [3, 4, 3, 3, 4, 3] and gif_delays(2, Fraction(1, 10)) == [1000, 1000]
    assert gif_delays(1, Fraction(1000)) == [2] and sum(gif_delays(60, Fraction(60))) == 100
    assert {*gif_delays(60, Fraction(60))} == {0, 2}


@pytest.mark.parametrize("fps", [0.1, 1 / 3600, 1 / 3.7])
def test_low_rates_are_written_and_read(tmp_path, fps):
    for suffix in (".mp4", ".mkv"):
        path = tmp_path / f"x{suffix}"
        write_video(path, torch.zeros(3, 3, 16, 16), fps)
        with open_video(path) as reader:
            assert reader.fps == pytest.approx(fps, rel=1e-3)
            np.testing.assert_allclose(reader.timestamps, np.arange(3) / fps, rtol=1e-3)


def test_an_animated_webp_has_its_frames_and_times(tmp_path):
    path = tmp_path / "x.webp"
    images = [Image.fromarray(np.full((33, 48, 3), 40 * i, np.uint8)) for i in range(5)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=[100, 200, 50, 50, 300], lossless=True)
    with open_video(path) as reader:
        np.testing.assert_allclose(reader.timestamps, [0, 0.1, 0.3, 0.35, 0.4])
        assert [int(frame.mean()) for frame in reader.frames(range(5))] == [0, 40, 80, 120, 160]
        assert reader.fps == pytest.approx(5 / 0.7, rel=1e-3)
    assert read_selection(path, lambda timestamps, fps: np.array([3])).timestamps == pytest.approx([0.35])
    images[0].save(tmp_path / "still.webp")
    with open_video(tmp_path / "still.webp") as reader:
        assert reader.num_frames == 1
    (tmp_path / "bad.webp").write_bytes(path.read_bytes()[:60])
    with pytest.raises(VideoError, match="bad"):
        open_video(tmp_path / "bad.webp")
