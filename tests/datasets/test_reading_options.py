"""Sample aspect ratio, HDR, interlacing, rotation and clocks: named, and read as asked."""

import warnings
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import ColorTrc

import vidtok
from vidtok.cli.main import main
from vidtok.datasets import VideoWriter, check, demo_clip, open_video, probe_video, read_video
from vidtok.datasets.backends import pixels_version, split_reader
from vidtok.datasets.frames import warn_of_hdr
from vidtok.datasets.seek import read_selection
from vidtok.extraction import read_npz
from vidtok.info import describe

SIZE = (48, 64)
FRAMES = 9


def moving_bar(half: int) -> np.ndarray:
    """A picture at a time in half frames: a bright bar that moves 4 pixels in each."""
    picture_HWC = np.full((*SIZE, 3), 40, np.uint8)
    picture_HWC[:, 2 + 4 * half % 48 : 14 + 4 * half % 48] = 220
    return picture_HWC


def encode(path, interlaced=False, trc=None, rotation=0):
    """Write moving bars: frames of one time each, or of two fields."""
    with av.open(str(path), "w") as container:
        options = {"qp": "4"} | ({"x264-params": "tff=1"} if interlaced else {})
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = SIZE[1], SIZE[0], "yuv420p"
        if trc is not None:
            stream.codec_context.color_trc = trc
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(FRAMES):
            picture_HWC = moving_bar(2 * number)
            if interlaced:
                picture_HWC[1::2] = moving_bar(2 * number + 1)[1::2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture_HWC, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    encode(folder / "fields.mp4", interlaced=True)
    encode(folder / "hdr.mp4", trc=ColorTrc.SMPTE2084)
    encode(folder / "plain.mp4")
    encode(folder / "turned.mov", rotation=-90)
    with VideoWriter(folder / "wide.mp4", 25, sar=Fraction(4, 3)) as writer:
        writer.write(demo_clip(FRAMES, 64)[..., :48, :])
    part = encode(folder / "part.ts")
    (folder / "joined.ts").write_bytes(2 * part.read_bytes())
    part.unlink()
    return folder


TRAITS = {
    "fields.mp4": {"scan": "interlaced"},
    "hdr.mp4": {"transfer": "PQ (HDR, read without tone mapping)"},
    "plain.mp4": {},
    "turned.mov": {"rotation": "90 degrees clockwise"},
    "wide.mp4": {"sample aspect ratio": "4:3"},
}


def test_info_and_check_name_them(videos, capsys):
    for name, traits in TRAITS.items():
        assert probe_video(videos / name).traits == traits
        assert traits.items() <= describe(videos / name).items()
    assert describe(videos / "joined.ts")["clock"] == "restarts or jumps; its times are made continuous"
    assert "clock" not in describe(videos / "plain.mp4")
    found = check(videos, workers=1)
    warnings = dict(zip((path.rpartition("/")[2] for path in found.table["path"]), found.table["warning"], strict=True))
    assert found.ok and "the clock restarts at frame 9" in warnings.pop("joined.ts")
    assert warnings == {name: "; ".join(f"{k} {v}" for k, v in traits.items()) for name, traits in TRAITS.items()}
    assert main(["check", str(videos), "--workers", "1"]) == 0
    assert "wide.mp4: ok, but sample aspect ratio 4:3" in capsys.readouterr().out


def combing(frames_THWC: np.ndarray) -> float:
    rows = frames_THWC.astype(np.float32)
    return float(np.abs(rows[:, 1:-1] - (rows[:, :-2] + rows[:, 2:]) / 2).mean())


def test_deinterlacing_removes_combs_and_keeps_times(videos):
    with open_video(videos / "fields.mp4") as plain, open_video(videos / "fields.mp4", "auto+deinterlace") as reader:
        before, after = plain.frames(range(FRAMES)), reader.frames(range(FRAMES))
        np.testing.assert_array_equal(reader.timestamps, plain.timestamps)
        np.testing.assert_array_equal(reader.frames([4, 1]), after[[4, 1]])
    assert combing(after) < 0.4 * combing(before)
    with open_video(videos / "plain.mp4") as plain, open_video(videos / "plain.mp4", "pyav+deinterlace") as reader:
        np.testing.assert_array_equal(reader.frames(range(FRAMES)), plain.frames(range(FRAMES)))


def test_hdr_is_read_with_a_warning(videos, tmp_path, tokenizer_path):
    arguments = [f"{videos}/hdr.mp4", "-o", f"{tmp_path}/out", "--model", tokenizer_path, "--workers", "0"]
    for work in (lambda: read_video(videos / "hdr.mp4"), lambda: main(["extract", *arguments])):
        warn_of_hdr.cache_clear()
        with pytest.warns(UserWarning, match=r"^HDR \(PQ\) is read without tone mapping") as found:
            work()
        assert len(found) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_video(videos / "plain.mp4").shape[2] == FRAMES


def test_square_pixels(videos):
    with open_video(videos / "wide.mp4") as plain, open_video(videos / "wide.mp4", "pyav+sar") as reader:
        assert (plain.size, plain.sar, reader.size, reader.sar) == (SIZE, Fraction(4, 3), (48, 85), 1)
        assert reader.frames([0]).shape == (1, 48, 85, 3)
    chosen = read_selection(videos / "wide.mp4", lambda times, fps: np.array([3]), reader="auto+sar")
    assert chosen.frames.shape == (1, 48, 85, 3)
    with open_video(videos / "plain.mp4", "pyav+sar") as reader:
        assert reader.size == SIZE


def test_options_are_part_of_the_settings(videos, tmp_path, tokenizer_path, capsys):
    assert pixels_version("auto+sar+deinterlace") == f"{pixels_version('auto')}+deinterlace+sar"
    arguments = [f"{videos}/wide.mp4", "-o", f"{tmp_path}/out", "--model", tokenizer_path]
    assert main(["encode", *arguments, "--sar", "apply", "--reader", "pyav", "--deinterlace"]) == 0
    meta = read_npz(tmp_path / "out/wide.npz")[0].meta
    assert (meta.size, meta.pixels) == ((48, 85), pixels_version("pyav+deinterlace+sar"))
    capsys.readouterr()
    for rest, line in (
        (["--sar", "ignore"], "+deinterlace+sar, not"),
        (["--tone-map"], "HDR is not tone-mapped: convert the video first"),
        (["--reader", "decord", "--sar", "apply"], "sar is for the reader pyav, not decord"),
    ):
        assert main(["encode", *arguments, *rest]) == 1
        printed = capsys.readouterr().err
        assert line in printed and printed.count("\n") == 1
    with pytest.raises(ValueError, match="did you mean 'deinterlace'"):
        split_reader("pyav+deinterlaced")
    with pytest.raises(ValueError, match="sar is without a cache"):
        read_selection(videos / "wide.mp4", lambda times, fps: np.array([0]), tmp_path / "cache", reader="auto+sar")


def test_reconstruct_keeps_the_aspect_ratio(videos, tmp_path, tokenizer_path):
    arguments = ["reconstruct", f"{videos}/wide.mp4", "--model", tokenizer_path, "-o"]
    assert main([*arguments, f"{tmp_path}/same.mp4"]) == 0
    assert probe_video(tmp_path / "same.mp4").traits == TRAITS["wide.mp4"]
    assert main([*arguments, f"{tmp_path}/square.mp4", "--sar", "apply"]) == 0
    info = probe_video(tmp_path / "square.mp4")
    assert (info.width, info.height, info.traits) == (85, 48, {})
    assert read_video(tmp_path / "same.mp4", size=None).shape == (1, 3, FRAMES, 48, 64)


def test_compressed_videos_keep_the_aspect_ratio(videos, tmp_path, tokenizer_path):
    for name, expected in {"wide.mp4": TRAITS["wide.mp4"], "plain.mp4": {}}.items():
        file, target = tmp_path / f"{name}.vtk", tmp_path / name
        vidtok.compress(videos / name, file, model=tokenizer_path)
        vidtok.decompress(file, target, model=tokenizer_path)
        assert probe_video(target).traits == expected
    file, target = tmp_path / "square.vtk", tmp_path / "square.mp4"
    vidtok.compress(videos / "wide.mp4", file, model=tokenizer_path, reader="pyav+sar")
    vidtok.decompress(file, target, model=tokenizer_path)
    info = probe_video(target)
    assert (info.width, info.height, info.traits) == (85, 48, {})
