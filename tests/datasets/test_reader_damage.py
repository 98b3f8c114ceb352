"""Damage that FFmpeg passes over: frames it conceals, files that end too early; and pictures that EXIF turns."""

import random

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from vidtok.datasets import container
from vidtok.datasets.checking import check_video
from vidtok.datasets.decode import PyAVReader
from vidtok.errors import VideoError
from vidtok.extraction.decoding import Info, ReadConfig, read_chunks
from vidtok.extraction.sources import WorkItem, parse_clips

FRAMES = 60
REORDERED = 3  # x264's B-frames in a row


def write(path, codec: str, **options: str) -> None:
    with av.open(str(path), "w", options=options) as output:
        stream = output.add_stream(codec, rate=25, options={"g": "12"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.thread_count = 1  # with several, x264 writes other bytes every time
        rng = np.random.default_rng(0)
        for i in range(FRAMES):
            picture = np.full((64, 96, 3), i * 4 % 256, np.uint8)
            picture[:, i : i + 6] = 255
            picture[::7] ^= rng.integers(0, 64, (10, 96, 3), dtype=np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        output.mux(stream.encode())


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


@pytest.mark.parametrize("on_error", ["keep", "skip"])
@pytest.mark.parametrize("share", [0.5, 0.98])
def test_threads_change_nothing_of_a_damaged_file(tmp_path, monkeypatch, on_error, share):
    """With several threads FFmpeg drops errors of the last packets, and frames with them."""
    path = tmp_path / "a.mp4"
    write(path, "libx264", movflags="faststart")
    data = path.read_bytes()
    monkeypatch.setattr(container, "LARGE", 0)

    def outcome() -> tuple[np.ndarray, str]:
        with PyAVReader(path, on_error) as reader:
            frames_THWC = np.concatenate([chunk.frames for chunk in reader.iter_frames()])
            return frames_THWC, str(reader.error)

    rotten = bytearray(data)
    rotten[int(share * len(data)) - 200 : int(share * len(data))] = bytes(200)
    cut = data[: int(share * len(data))]
    for damaged in (cut, bytes(rotten)):
        path.write_bytes(damaged)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        frames_THWC, error = outcome()
        assert len(frames_THWC) > 0 and (path.name in error or damaged is not cut)
        for threads in (2, 5):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            again_THWC, other = outcome()
            assert error == other
            np.testing.assert_array_equal(again_THWC, frames_THWC)


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


def damage(source, path, number: int) -> float:
    """Copy a video with nonsense in the packet of that number; return the packet's time in seconds."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        for i, packet in enumerate(packet for packet in old.demux(stream) if packet.size):
            if i == number:
                lost, broken = float(packet.pts * packet.time_base), av.Packet(b"\xff" * packet.size)
                broken.pts, broken.dts, broken.duration = packet.pts, packet.dts, packet.duration
                broken.time_base, broken.is_keyframe = packet.time_base, packet.is_keyframe
                packet = broken
            packet.stream = copy
            new.mux(packet)
    return lost


@pytest.mark.parametrize("codec", ["libx264", "mjpeg"])
@pytest.mark.parametrize("number", [0, 1, 12, 25, 26, 27, 28, 59])
def test_goes_on_after_a_damaged_packet(tmp_path, codec, number):
    """Frames that the packet was not needed for are right, all others are listed."""
    write(tmp_path / "whole.mkv", codec)
    lost = damage(tmp_path / "whole.mkv", tmp_path / "a.mkv", number)
    with PyAVReader(tmp_path / "whole.mkv", "skip") as reader:
        whole, times = reader.frames(range(FRAMES)), reader.timestamps.round(3)
        assert reader.error is None and not reader.damage.reason and reader.damage.as_meta() == {}
    with PyAVReader(tmp_path / "a.mkv", "skip") as reader:
        frames, found = reader.frames(range(reader.num_frames)), reader.damage
        shown, missing, suspect = (
            np.round(np.add(part, reader.start_time), 3).tolist()
            for part in (reader.timestamps, found.missing, found.suspect)
        )
        assert found.good == len(frames) == len(shown) and reader.damage is found and str(found) == reader.error.reason
    assert round(lost, 3) in missing and sorted([*shown, *missing]) == times.tolist()
    if codec == "mjpeg":
        assert suspect == [] and len(frames) == FRAMES - 1
    truth = dict(zip(times.tolist(), whole, strict=True))
    for time, frame in zip(shown, frames, strict=True):
        if time not in suspect:
            np.testing.assert_array_equal(frame, truth[time])
    row = check_video(tmp_path / "a.mkv")
    assert row["status"] == "corrupt" and f"with on_error=keep: {found}" in row["reason"]


def test_a_stream_without_times_is_kept_by_the_number_of_its_packets(tmp_path):
    write(tmp_path / "whole.h264", "libx264")
    data = bytearray((tmp_path / "whole.h264").read_bytes())
    starts = [place for place in range(len(data)) if data[place : place + 3] == b"\0\0\1"]
    start, end = starts[len(starts) // 2 : len(starts) // 2 + 2]
    data[start + 4 : end - 1] = b"\xff" * (end - start - 5)
    (tmp_path / "a.h264").write_bytes(data)
    with PyAVReader(tmp_path / "a.h264", "skip") as reader:
        assert FRAMES - 10 < reader.num_frames < FRAMES and all(
            0 < time < FRAMES / 25 for time in reader.damage.missing
        )


def test_a_truncated_video_is_kept_to_its_end(tmp_path):
    write(tmp_path / "a.mkv", "libx264")
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data[: int(0.6 * len(data))])
    with PyAVReader(tmp_path / "a.mkv", "skip") as reader:
        assert 0 < reader.num_frames < FRAMES and "the file is truncated" in str(reader.damage)


def test_extraction_keeps_damaged_videos(tmp_path):
    write(tmp_path / "whole.mkv", "mjpeg")
    lost = damage(tmp_path / "whole.mkv", tmp_path / "a.mkv", 25)
    path = str(tmp_path / "a.mkv")

    def infos(item: WorkItem, **how) -> list[Info]:
        chunks = read_chunks(item, ReadConfig((4, 8, 8), **how))
        return [chunk.info for chunk in chunks if chunk.info is not None]

    for item in (WorkItem("a", path), WorkItem("a", path, segment=(0.5, 1.5))):
        for clips in (None, parse_clips("windows", 4)):
            with pytest.raises(VideoError):
                infos(item, clips=clips)
            (first, *_) = found = infos(item, clips=clips, on_error="keep")
            assert first.damage["missing"] == (lost,) and "missing at 1.00 s" in first.damage["damage"]
            assert len(np.concatenate([info.timestamps for info in found])) > 20
    with pytest.raises(ValueError, match="needs the reader pyav"):
        ReadConfig((4, 8, 8), on_error="keep", reader="decord")


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
