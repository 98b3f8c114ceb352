"""Whatever reads a video hands out the frames asked for: clips made here, every frame numbered in its pixels."""

import random
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vidtok.datasets import VideoError, open_video
from vidtok.datasets.decode import PyAVReader
from vidtok.datasets.seek import read_selection, read_windows

BITS, N = 8, 100


def numbered(i: int, width: int = 160, height: int = 96) -> np.ndarray:
    """A picture with `i` in it: white and black blocks in the upper half, their complement in the lower."""
    image_HWC = np.full((height, width, 3), 40, np.uint8)
    for bit in range(BITS):
        left, right = bit * width // BITS, (bit + 1) * width // BITS
        image_HWC[: height // 2, left:right] = 235 if i >> bit & 1 else 20
        image_HWC[height // 2 :, left:right] = 20 if i >> bit & 1 else 235
    return image_HWC


def number(image_HWC: np.ndarray) -> int:
    height, width = image_HWC.shape[:2]
    centers = [(2 * bit + 1) * width // (2 * BITS) for bit in range(BITS)]
    upper, lower = (image_HWC[y - 2 : y + 3, centers].mean(axis=(0, 2)) for y in (height // 4, 3 * height // 4))
    return sum(1 << bit for bit in range(BITS) if upper[bit] > lower[bit])


def make(
    path: Path, codec="libx264", size=(160, 96), pix_fmt="yuv420p", frames=N, pts=None, turn=0, mux=None, **options
) -> Path:
    """Encode `frames` numbered pictures at 30/s. pts: frame number -> milliseconds. turn: display rotation, degrees."""
    with av.open(str(path), "w", options=mux or {}) as container:
        stream = container.add_stream(codec, rate=30, options={k: str(v) for k, v in options.items()})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        if turn:
            stream.set_display_rotation(turn)
        if pts:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered(i, *size), format="rgb24")
            if pts:
                frame.pts, frame.time_base = pts(i), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def trim(source: Path, path: Path, start: float) -> Path:
    """`ffmpeg -ss START -i SOURCE -c copy PATH`: from the keyframe before `start`, earlier times below zero."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        old.seek(round(start / stream.time_base), stream=stream)
        for packet in old.demux(stream):
            if packet.dts is not None:
                packet.pts -= round(start / stream.time_base)
                packet.dts -= round(start / stream.time_base)
                packet.stream = copy
                new.mux(packet)
    return path


X265 = {"codec": "libx265", "x265-params": "log-level=none:keyint=30:bframes=3:open-gop=1"}
CLIPS = {
    "h264_gop250.mp4": {"g": 250},
    "h264_gop12.mp4": {"g": 12, "bf": 2},
    "h264_open.mp4": {"x264-params": "open-gop=1:keyint=30:min-keyint=30:bframes=3:scenecut=0"},
    "h264_fragmented.mp4": {"g": 30, "mux": {"movflags": "frag_keyframe+empty_moov"}},
    "h264.mkv": {"g": 30},
    "h264.ts": {"g": 30},
    "h264_raw.h264": {"g": 30},
    "hevc.mp4": X265,
    "mpeg4.avi": {"codec": "mpeg4", "bf": 2, "g": 12, "b": 2_000_000, "mux": {"use_odml": "0"}},
    "mpeg4.mp4": {"codec": "mpeg4", "bf": 2, "g": 12, "b": 2_000_000},
    "mpeg.mpg": {"codec": "mpeg2video", "bf": 2, "g": 12, "b": 2_000_000},
    "vp8.webm": {"codec": "libvpx", "g": 30, "deadline": "realtime", "cpu-used": 8},
    "vp9.webm": {"codec": "libvpx-vp9", "g": 30, "deadline": "realtime", "cpu-used": 8},
    "clip.gif": {"codec": "gif", "pix_fmt": "rgb8", "frames": 20},
    "vfr.mp4": {"g": 30, "pts": lambda i: 20 * i + (i // 10) ** 2 * 30},
    "late.mkv": {"g": 30, "pts": lambda i: 1500 + 33 * i},
    "one.mp4": {"frames": 1},
    "odd.mp4": {"size": (161, 97), "pix_fmt": "yuv444p"},
    "small.mp4": {"size": (32, 16), "g": 12},
    "ten_bit.mp4": {"pix_fmt": "yuv420p10le", "g": 30},
}


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    made = {name: make(folder / name, **how) for name, how in CLIPS.items()}
    for turn in (90, 180, 270):
        made[f"turned{turn}.mp4"] = make(folder / f"turned{turn}.mp4", turn=turn, g=30)
    for name in ("h264_gop250", "h264_gop12"):
        made[f"trim_{name}.mp4"] = trim(made[f"{name}.mp4"], folder / f"trim_{name}.mp4", 1.13)
    return made


NAMES = [*CLIPS, "turned90.mp4", "turned180.mp4", "turned270.mp4", "trim_h264_gop250.mp4", "trim_h264_gop12.mp4"]


def presented(path: Path) -> tuple[list[float], list[int]]:
    """Times and numbers of what FFmpeg presents decoding from the start, turned by FFmpeg's own angle."""
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
    times = [i / 30 if f.time is None else f.time for i, f in enumerate(decoded)]
    return times, [number(np.rot90(f.to_ndarray(format="rgb24"), f.rotation // 90)) for f in decoded]


@pytest.mark.parametrize("backend", [None, "pyav", "decord", "torchcodec"])
@pytest.mark.parametrize("name", NAMES)
def test_frames_are_the_frames_asked_for(clips, name, backend):
    times, numbers = presented(clips[name])
    if name in CLIPS and not name.endswith(".mpg"):
        assert [n for n in numbers if n >= 0] == list(range(CLIPS[name].get("frames", N)))
    try:
        reader = open_video(clips[name], backend)
    except ImportError as e:
        pytest.skip(str(e))
    except VideoError as e:
        assert backend in ("decord", "torchcodec") and "can't be proven right" in str(e)
        return
    with reader:
        assert reader.backend == (backend or reader.backend)
        assert reader.num_frames == len(numbers)
        assert reader.start_time == pytest.approx(times[0])
        np.testing.assert_allclose(reader.timestamps, np.array(times) - times[0], atol=2e-3)
        assert reader.duration == pytest.approx(times[-1] - times[0] + 1 / reader.fps, abs=2e-3)
        rng = random.Random(0)
        for count in (1, 5, 16):
            indices = [rng.randrange(len(numbers)) for _ in range(count)]
            for asked in (indices, sorted(indices), sorted(indices, reverse=True)):
                frames_THWC = reader.frames(asked)
                assert frames_THWC.dtype == np.uint8 and frames_THWC.shape[3] == 3
                assert [number(f) for f in frames_THWC] == [numbers[i] for i in asked]
        chunks = list(reader.iter_frames(chunk=7))
        assert [number(f) for c in chunks for f in c.frames] == numbers
        np.testing.assert_array_equal(np.concatenate([c.timestamps for c in chunks]), reader.timestamps)
        assert max(len(c.frames) for c in chunks) <= 7


@pytest.mark.parametrize("name", NAMES)
def test_selections_are_the_frames_asked_for(clips, name):
    """What the datasets read with: by seeking where the packets prove where each frame is."""
    times, numbers = presented(clips[name])
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (2, 3), (16,)):
        asked = rng.integers(len(numbers), size=shape)
        frames, timestamps = read_selection(clips[name], lambda t, fps, asked=asked: asked)
        assert frames.shape[: len(shape)] == shape == timestamps.shape
        assert [number(f) for f in frames.reshape(-1, *frames.shape[-3:])] == [numbers[i] for i in asked.ravel()]
        np.testing.assert_allclose(timestamps, np.array(times)[asked] - times[0], atol=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_windows_are_the_frames_asked_for(clips, name, monkeypatch):
    """They overlap, and files that can't be seeked are decoded once nevertheless."""
    times, numbers = presented(clips[name])
    restarts = []
    monkeypatch.setattr(PyAVReader, "_restart", restarts.append)
    starts = np.arange(0, max(len(numbers) - 8, 1), 3)
    asked = np.minimum(starts[:, None] + 2 * np.arange(5), len(numbers) - 1)
    chunks = list(read_windows(clips[name], lambda *_: asked, 2))
    assert {len(chunk.frames) for chunk in chunks[:-1]} <= {2} and not restarts
    frames = np.concatenate([chunk.frames for chunk in chunks])
    assert [number(f) for f in frames.reshape(-1, *frames.shape[2:])] == [numbers[i] for i in asked.ravel()]
    found = np.concatenate([chunk.timestamps for chunk in chunks])
    np.testing.assert_allclose(found, np.array(times)[asked] - times[0], atol=2e-3)


def test_selections_where_packets_tell_no_presentation_times(tmp_path):
    """FFmpeg numbers H.264 packets of AVI as they come, so that the time of a frame is that of another."""
    path = make(tmp_path / "a.avi", frames=60, g=12, bf=3, b_strategy=0, sc_threshold=0)
    _, numbers = presented(path)
    assert numbers == list(range(60))
    for asked in (np.array([i]) for i in range(60)):
        assert [number(f) for f in read_selection(path, lambda t, fps, asked=asked: asked).frames] == asked


def test_times_of_h264_in_avi_are_those_of_presentation(tmp_path):
    """Frames are evenly spaced, and no B-frame counts as a restart of the clock."""
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": "3", "b_strategy": "0", "g": "12"})
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for i in range(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(i), "rgb24")))
        container.mux(stream.encode(None))
    with open_video(path) as reader:
        chunks = list(reader.iter_frames())
        np.testing.assert_allclose(np.concatenate([chunk.timestamps for chunk in chunks]), np.arange(40) / 10)
        np.testing.assert_allclose(reader.timestamps, np.arange(40) / 10)
        assert [number(f) for f in reader.frames([0, 5, 39])] == [0, 5, 39] and reader.duration == pytest.approx(4)


def test_selections_of_a_video_with_a_palette(tmp_path):
    """The palette comes with the first packet, which seeking skips."""
    path, palette = tmp_path / "a.mov", np.array([[255, 200, 30, 90], [255, 10, 180, 60]], np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("smc", rate=30, options={"g": "12"})
        stream.width, stream.height, stream.pix_fmt = 160, 96, "pal8"
        for i in range(60):
            levels_HW = (numbered(i)[..., 0] > 128).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray((levels_HW, np.resize(palette, (256, 4))), "pal8")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with open_video(path) as reader:
        whole = reader.frames(range(60))
    assert len(np.unique(whole.reshape(-1, 3), axis=0)) == 2
    for i in (0, 13, 40, 59):
        np.testing.assert_array_equal(read_selection(path, lambda *_, i=i: np.array([i])).frames[0], whole[i])


@pytest.mark.parametrize("name", ["truncated.mp4", "rotten.mp4", "no_moov.mp4", "empty.mp4", "page.mp4", "missing.mp4"])
def test_selections_from_broken_files_are_video_errors(broken, name):
    with pytest.raises(VideoError):
        read_selection(broken[name], lambda t, fps: np.arange(len(t)))


def test_decord_is_right_on_plain_files_and_refused_elsewhere(clips):
    pytest.importorskip("decord")
    proven = set()
    for name in NAMES:
        try:
            open_video(clips[name], "decord").close()
            proven.add(name)
        except VideoError as e:
            assert "can't be proven right" in str(e)
    assert {"h264_gop250.mp4", "h264_gop12.mp4", "h264.mkv"} <= proven
    assert not proven & {f"{name}.mp4" for name in ("trim_h264_gop250", "turned90", "h264_open", "hevc")}


def test_automatic_choice_gives_pyav_pixels(clips):
    with open_video(clips["h264_gop12.mp4"]) as chosen, open_video(clips["h264_gop12.mp4"], "pyav") as pyav:
        np.testing.assert_array_equal(chosen.frames([3, 17]), pyav.frames([3, 17]))


def rot(data: bytes, share: float = 0.01) -> bytes:
    """Random bytes in the last two thirds."""
    rng, rotten = np.random.default_rng(0), np.frombuffer(data, np.uint8).copy()
    where = rng.integers(len(data) // 3, len(data), int(share * len(data)))
    rotten[where] = rng.integers(0, 256, len(where))
    return rotten.tobytes()


@pytest.fixture(scope="session")
def broken(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("broken")
    whole = make(folder / "whole.mp4", g=25, mux={"movflags": "faststart"}).read_bytes()
    unfinished = make(folder / "unfinished.mp4").read_bytes()
    with av.open(str(folder / "audio.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    contents = {
        "truncated.mp4": whole[: len(whole) * 7 // 10],
        "rotten.mp4": rot(whole),
        "no_moov.mp4": unfinished[: len(unfinished) // 2],
        "empty.mp4": b"",
        "page.mp4": b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n" * 20,
        "notes.txt": b"not a film\n" * 20,
        "huge.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (60000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0",
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return {name: folder / name for name in (*contents, "audio.m4a", "missing.mp4", ".")}


REASONS = {
    "truncated.mp4": "breaks after",
    "rotten.mp4": "breaks after",
    "no_moov.mp4": "not a video",
    "empty.mp4": "empty",
    "page.mp4": "not a video",
    "notes.txt": "not a video",
    "audio.m4a": "no video stream",
    "huge.png": "pixels",
    "missing.mp4": "no such file",
    ".": "not a file",
}


@pytest.mark.parametrize("name", REASONS)
def test_broken_file_is_one_clear_error(broken, name):
    with pytest.raises(VideoError) as caught, open_video(broken[name]) as reader:
        for _ in reader.iter_frames():
            pass
    message = str(caught.value)
    assert message.startswith(f"{broken[name]}: ") and REASONS[name] in message and "\n" not in message


def test_absurd_size_takes_no_memory(broken):
    tracemalloc.start()
    with pytest.raises(VideoError):
        open_video(broken["huge.png"])
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["truncated.mp4", "rotten.mp4"])
def test_keeps_the_good_frames_when_asked(broken, name):
    with pytest.raises(VideoError) as caught, open_video(broken[name], "pyav") as reader:
        assert reader.num_frames
    with open_video(broken[name], on_error="keep") as reader:
        assert 0 < reader.num_frames == caught.value.good_frames < N
        numbers = [number(f) for c in reader.iter_frames() for f in c.frames]
        assert len(numbers) == reader.num_frames
        if name == "truncated.mp4":  # in the rotten file FFmpeg patches some frames before it gives up
            assert numbers == list(range(reader.num_frames))
        assert reader.error.good_frames == reader.num_frames


@pytest.mark.parametrize("indices", [[], [-1], [N], [0, 10**9], [[1]]])
@pytest.mark.parametrize("backend", [None, "pyav"])
def test_index_out_of_range_is_a_value_error(clips, indices, backend):
    with open_video(clips["h264_gop12.mp4"], backend) as reader, pytest.raises(ValueError):
        reader.frames(indices)


def test_refuses_unknown_backend_and_impossible_keep(clips):
    for wrong in ({"backend": "opencv"}, {"on_error": "ignore"}, {"backend": "decord", "on_error": "keep"}):
        with pytest.raises(ValueError):
            open_video(clips["one.mp4"], **wrong)


def test_tags_that_are_not_utf8_are_no_reason_to_reject_a_file(tmp_path):
    path = tmp_path / "latin.mp4"
    with av.open(str(path), "w") as file:
        file.metadata["title"] = "Cafe Muenchen"
        stream = file.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for packet in [*stream.encode(av.VideoFrame(32, 32, "yuv420p")), *stream.encode()]:
            file.mux(packet)
    path.write_bytes(path.read_bytes().replace(b"Cafe", b"Caf\xe9"))
    with open_video(path) as reader:
        assert reader.frames([0]).shape == (1, 32, 32, 3)
