"""Damage that FFmpeg passes over: frames it conceals, files that end too early; and pictures that EXIF turns."""

import random

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from vidtok.datasets.decode import PyAVReader
from vidtok.errors import VideoError

FRAMES = 60
REORDERED = 3  # x264's B-frames in a row


def write(path, codec: str) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"g": "12"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.thread_count = 1  # with several, x264 writes other bytes every time
        rng = np.random.default_rng(0)
        for i in range(FRAMES):
            picture = np.full((64, 96, 3), i * 4 % 256, np.uint8)
            picture[:, i : i + 6] = 255
            picture[::7] ^= rng.integers(0, 64, (10, 96, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())


def read(path, on_error: str = "raise") -> np.ndarray:
    with PyAVReader(path, on_error) as reader:
        return np.concatenate([chunk.frames for chunk in reader.iter_frames()])


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.avi"])
def test_a_file_that_is_cut_off(tmp_path, name):
    path = tmp_path / name
    write(path, {"a.mkv": "libx264", "a.webm": "libvpx", "a.avi": "mpeg4"}[name])
    whole, data = read(path), path.read_bytes()
    assert len(whole) == FRAMES
    for share in (0.9, 0.6):
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(VideoError, match=rf"{name}: the stream breaks after \d+ good frames") as caught:
            read(path)
        good = caught.value.good_frames
        kept = read(path, "keep")
        assert 0 < good < FRAMES and len(kept) == good
        # The last packet may be half there, and frames shown before its own have been predicted from it.
        np.testing.assert_array_equal(kept[: good - REORDERED], whole[: good - REORDERED])


def test_a_lost_index_is_no_lost_frame(tmp_path):
    """What lies behind the last frame of an .mkv may be missing."""
    path = tmp_path / "a.mkv"
    write(path, "libx264")
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"\x1c\x53\xbb\x6b")])  # Cues
    assert len(read(path)) == FRAMES


def test_concealed_frames_end_the_good_ones(tmp_path):
    """Of an H.264 video with flipped bits all frames that are given out are right, where the decoder notices at all."""
    path = tmp_path / "a.mp4"
    write(path, "libx264")
    whole, data, rng = read(path), path.read_bytes(), random.Random(0)
    noticed = 0
    for _ in range(200):  # x264 writes other bytes every time, and not all damage is noticed
        if noticed == 4:
            break
        rotten = bytearray(data)
        place = rng.randrange(len(data) // 4, len(data) * 3 // 4)
        for i in range(4):
            rotten[place + i] ^= rng.randrange(1, 256)
        path.write_bytes(rotten)
        with PyAVReader(path, "keep") as reader:
            frames = np.concatenate([chunk.frames for chunk in reader.iter_frames()])
            if reader.error is None:
                continue
        noticed += 1
        assert len(frames) == reader.error.good_frames < FRAMES
        good = max(len(frames) - REORDERED, 0)
        assert np.abs(frames.astype(int)[:good] - whole[:good]).mean((1, 2, 3)).max(initial=0) < 0.5
    assert noticed == 4


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_all_orientations_of_images(tmp_path, suffix):
    picture = np.zeros((24, 40, 3), np.uint8)
    picture[:8, :20], picture[16:, :8] = (250, 0, 0), (0, 250, 0)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.{suffix}"
        options = {"jpg": {"quality": 95}, "webp": {"lossless": True}}.get(suffix, {})
        Image.fromarray(picture).save(path, exif=exif, **options)
        with Image.open(path) as image:
            truth = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
        with PyAVReader(path) as reader:
            assert reader.size == truth.shape[:2]
            assert np.abs(reader.frames([0])[0] - truth).mean() < 6
