"""Videos as tensors, in and out."""

import math
import os
import tarfile
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from PIL import Image

from vidtok.datasets import (
    VideoError,
    VideoWriter,
    demo_clip,
    frames_to_video,
    iter_video,
    open_video,
    probe_video,
    read_video,
    resize_video,
    video_to_frames,
    write_video,
)
from vidtok.datasets.frames import resample_indices

SHARED = Path(os.environ.get("VIDTOK_SHARED", Path(__file__).parents[3] / "shared"))


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    return demo_clip(frames=31, size=96)


@pytest.fixture(scope="module")
def wide(clip, tmp_path_factory):
    """A video of 31 frames, 88 high and 96 wide, 30 frames/s."""
    path = tmp_path_factory.mktemp("read") / "wide.mp4"
    write_video(path, clip[..., 4:92, :], 30)
    return path


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return -10 * math.log10(max(((a - b) / 2).square().mean().item(), 1e-12))


@pytest.mark.parametrize(
    ("size", "expected"),
    [(64, (64, 64)), (88, (88, 96)), (48, (48, 48)), (176, (176, 192)), ((40, 72), (40, 72)), (None, (88, 96))],
)
def test_read_video_sizes(wide, size, expected):
    video_BCTHW = read_video(wide, size=size)
    assert video_BCTHW.shape == (1, 3, 29, *expected) and video_BCTHW.dtype == torch.float32
    assert video_BCTHW.min() >= -1 and video_BCTHW.max() <= 1


@pytest.mark.parametrize(("max_frames", "length"), [(1, 1), (4, 1), (5, 5), (17, 17), (30, 29), (1000, 29)])
def test_length_is_cut_to_1_plus_4k(wide, max_frames, length):
    assert read_video(wide, max_frames=max_frames).shape[2] == length


def test_resize_keeps_aspect_and_center():
    ramp_CTHW = torch.linspace(-1, 1, 200).expand(3, 2, 100, 200).contiguous()
    out_CTHW = resize_video(ramp_CTHW, 50)
    assert out_CTHW.shape == (3, 2, 50, 96)
    assert abs(out_CTHW.mean()) < 1e-4
    slope = (out_CTHW[0, 0, 0, -1] - out_CTHW[0, 0, 0, 0]) / 95
    assert slope == pytest.approx(2 / 100, rel=0.02)


@pytest.mark.parametrize("shape", [(96, 88), (95, 87), (33, 64), (2, 2), (1, 1)])
def test_write_then_read_is_exact_in_shape_and_close_in_value(clip, tmp_path, shape):
    video_BCTHW = clip[..., : shape[0], : shape[1]]
    write_video(tmp_path / "a.mp4", video_BCTHW, 24)
    back_BCTHW = read_video(tmp_path / "a.mp4", size=shape)
    assert back_BCTHW.shape == (1, 3, 29, *shape)
    if min(shape) > 2:
        assert psnr(back_BCTHW, video_BCTHW[:, :, :29]) > 34
    info = probe_video(tmp_path / "a.mp4")
    assert (info.height, info.width, info.num_frames, info.fps) == (*shape, 31, 24)


@pytest.mark.parametrize("fps", [8, 24, 25, 29.97, 30000 / 1001, 30, 60])
def test_frame_rate_survives(clip, tmp_path, fps):
    write_video(tmp_path / "a.mp4", clip[..., :32, :32], fps)
    assert probe_video(tmp_path / "a.mp4").fps == pytest.approx(fps, rel=1e-5)


def test_uint8_and_float_write_the_same(clip, tmp_path):
    frames_THWC = video_to_frames(clip[0])
    write_video(tmp_path / "f.mp4", clip, 30)
    write_video(tmp_path / "u.mp4", torch.from_numpy(frames_THWC).permute(3, 0, 1, 2), 30)
    # not the same bytes: libx264 itself decides a little differently from run to run
    assert psnr(read_video(tmp_path / "f.mp4"), read_video(tmp_path / "u.mp4")) > 40


def test_frames_and_floats_round_trip():
    frames_THWC = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    video_CTHW = frames_to_video(frames_THWC)
    assert video_CTHW.min() == -1 and video_CTHW.max() == 1 and video_CTHW.is_contiguous()
    np.testing.assert_array_equal(video_to_frames(video_CTHW), frames_THWC)


COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255), (0, 255, 255), (255, 255, 0), (220, 180, 160), (9,) * 3]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize(
    ("height", "width", "matrix"),
    [
        (720, 1280, Colorspace.ITU709),
        (640, 320, Colorspace.ITU709),  # upright
        (577, 161, Colorspace.ITU709),  # odd sides: 4:4:4
        (480, 640, Colorspace.ITU601),
        (63, 161, Colorspace.ITU601),
        (16, 160, Colorspace.ITU601),
    ],
)
def test_color_is_tagged_and_coded_as_players_expect_it(tmp_path, suffix, height, width, matrix):
    colors = torch.tensor(COLORS, dtype=torch.uint8)
    columns = torch.arange(width).mul(8).div(width, rounding_mode="floor")
    video_CTHW = colors[columns].T[:, None, None].expand(3, 2, height, width)
    path = tmp_path / f"a{suffix}"
    write_video(path, video_CTHW, 25)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        tags = context.colorspace, context.color_range, context.color_primaries, context.color_trc
        assert tags == (matrix, ColorRange.MPEG, ColorPrimaries.BT709, ColorTrc.BT709)
        frame = next(container.decode(video=0))
    at = np.arange(8) * width // 8 + width // 16
    # By its tags, and as a player does that guesses the matrix from the size.
    for arguments in ({}, {"src_colorspace": matrix, "dst_colorspace": matrix}):
        seen = frame.reformat(format="rgb24", **arguments).to_ndarray()[height // 2, at]
        assert np.abs(seen.astype(int) - colors.numpy()).max() <= 4
    for backend in ("pyav", None):
        with open_video(path, backend) as reader:
            assert np.abs(reader.frames([0])[0, height // 2, at].astype(int) - colors.numpy()).max() <= 4


def test_chunked_writing_equals_whole(clip, tmp_path):
    write_video(tmp_path / "whole.mp4", clip, 30)
    with VideoWriter(tmp_path / "chunks.mp4", 30) as writer:
        for chunk_BCTHW in clip.split(7, dim=2):
            writer.write(chunk_BCTHW)
    chunks_BCTHW, whole_BCTHW = read_video(tmp_path / "chunks.mp4"), read_video(tmp_path / "whole.mp4")
    assert chunks_BCTHW.shape == whole_BCTHW.shape and psnr(chunks_BCTHW, whole_BCTHW) > 40


def full_disk():
    raise OSError("No space left on device")


def test_failed_write_leaves_nothing(clip, tmp_path):
    (tmp_path / "old.mp4").write_bytes(b"old")
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / "old.mp4", 30) as writer:
        writer.write(clip)
        raise RuntimeError
    with pytest.raises(ValueError), VideoWriter(tmp_path / "new.mp4", 30) as writer:
        writer.write(clip)
        writer.write(clip[..., :48])
    with pytest.raises(ValueError), VideoWriter(tmp_path / "none.mp4", 30):
        pass
    with pytest.raises(ValueError):
        write_video(tmp_path / "two.png", clip[:, :, :2], 30)
    with pytest.raises(OSError), VideoWriter(tmp_path / "full.mp4", 30) as writer:
        writer._sink.abandon = full_disk
        writer.write(clip)
        full_disk()
    assert os.listdir(tmp_path) == ["old.mp4"] and (tmp_path / "old.mp4").read_bytes() == b"old"


@pytest.mark.parametrize("video", [torch.zeros(3, 8, 8), torch.zeros(2, 3, 1, 8, 8), torch.zeros(1, 4, 1, 8, 8)])
def test_wrong_shapes_are_value_errors(tmp_path, video):
    with pytest.raises(ValueError, match=r"\[3,T,H,W\]"):
        write_video(tmp_path / "a.mp4", video, 30)


def test_png_and_jpg_are_one_frame_videos(clip, tmp_path):
    write_video(tmp_path / "100%d.png", clip[:, :, :1], 30)  # a % must not be read as a numbered sequence
    image_BCTHW = read_video(tmp_path / "100%d.png", size=None)
    assert torch.equal(image_BCTHW, frames_to_video(video_to_frames(clip[0, :, :1]))[None])
    picture = Image.fromarray(video_to_frames(clip[0])[0][:80])
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert read_video(tmp_path / "turned.jpg", size=None).shape == (1, 3, 1, 96, 80)


def test_gif_round_trip(clip, tmp_path):
    write_video(tmp_path / "a.gif", clip[:, :, :5], 10)
    back_BCTHW = read_video(tmp_path / "a.gif", size=None)
    assert back_BCTHW.shape == (1, 3, 5, 96, 96) and psnr(back_BCTHW, clip[:, :, :5]) > 25


@pytest.mark.parametrize("fps", [7.5, 10, 25, 30, 60, 100])
def test_resampling_picks_the_latest_frame_not_after_each_time(wide, fps):
    expected = [min(int(j / fps * 30 + 1e-6), 30) for j in range(math.ceil(31 / 30 * fps - 1e-6))]
    native = torch.cat(list(iter_video(wide, size=None)), dim=2)
    with iter_video(wide, fps=fps, size=None, chunk=4) as stream:
        resampled = torch.cat(list(stream), dim=2)
        assert stream.num_frames == len(expected) and stream.fps == fps and stream.native_fps == 30
        np.testing.assert_allclose(stream.timestamps, np.arange(len(expected)) / fps)
    assert torch.equal(resampled, native[:, :, expected])
    np.testing.assert_array_equal(resample_indices(np.arange(31) / 30, fps), expected)


def test_resampling_survives_millisecond_timestamps():
    rounded = np.round(np.arange(300) / 30, 3)
    np.testing.assert_array_equal(resample_indices(rounded, 30), np.arange(300))


def test_stream_metadata_and_chunks(wide):
    with iter_video(wide, size=64, chunk=8) as stream:
        shapes = [tuple(video_BCTHW.shape) for video_BCTHW in stream]
        assert shapes == [(1, 3, 8, 64, 64)] * 3 + [(1, 3, 7, 64, 64)]
        assert stream.native_size == (88, 96) and stream.size == (64, 64) and stream.num_frames == 31
        np.testing.assert_allclose(stream.timestamps, np.arange(31) / 30, atol=1e-3)
        assert stream.backend == "pyav"


def test_no_pixel_is_lost_when_asked(clip, tmp_path):
    write_video(tmp_path / "odd.mp4", clip[..., :91, :93], 30)
    with iter_video(tmp_path / "odd.mp4", size=None, multiple=1) as stream:
        assert next(iter(stream)).shape[-2:] == (91, 93)


def test_long_video_is_never_held_whole(tmp_path):
    with VideoWriter(tmp_path / "long.mp4", 30) as writer:
        for _ in range(40):
            writer.write(torch.zeros(3, 25, 64, 64, dtype=torch.uint8))
    tracemalloc.start()  # numpy's and PyAV's pictures are counted; all of them together would be 12 MB
    frames = sum(video_BCTHW.shape[2] for video_BCTHW in iter_video(tmp_path / "long.mp4", size=None))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert frames == 1000 and peak < 3e6


def test_bad_arguments_are_value_errors_and_tiny_pictures_video_errors(wide, tmp_path):
    sizes = [{"size": size} for size in (0, -5, (0, 8), (128,), 128.0)]
    for wrong in ({"fps": 0}, {"fps": -1}, {"max_frames": 0}, *sizes):
        with pytest.raises(ValueError):
            read_video(wide, **wrong)
    with pytest.raises(ValueError), iter_video(wide, chunk=0):
        pass
    with pytest.raises(VideoError, match="not a video"):
        (tmp_path / "bad.mp4").write_bytes(b"<html>" * 100)
        probe_video(tmp_path / "bad.mp4")
    write_video(tmp_path / "tiny.png", torch.zeros(3, 1, 4, 4), 1)
    with pytest.raises(VideoError, match="leaves nothing"):
        read_video(tmp_path / "tiny.png", size=None)


@pytest.mark.skipif(not (SHARED / "data/video-val.tar").exists(), reason="needs the shared clips ($VIDTOK_SHARED)")
def test_real_clips(tmp_path):
    with tarfile.open(SHARED / "data/video-val.tar") as tar:
        members = [m for m in tar if m.name.endswith(".mp4")][::20]
        for member in members:
            (tmp_path / "clip.mp4").write_bytes(tar.extractfile(member).read())
            video_BCTHW = read_video(tmp_path / "clip.mp4", max_frames=17)
            assert min(video_BCTHW.shape[-2:]) == 128 and video_BCTHW.std() > 0.05, member.name
            with open_video(tmp_path / "clip.mp4") as auto, open_video(tmp_path / "clip.mp4", "pyav") as truth:
                assert auto.num_frames == truth.num_frames, member.name
                np.testing.assert_allclose(auto.timestamps, truth.timestamps, atol=1e-3)
                asked = [truth.num_frames - 1, 0, truth.num_frames // 2]
                worst = np.abs(auto.frames(asked).astype(int) - truth.frames(asked)).mean()
                assert worst < 2, (member.name, auto.backend)
