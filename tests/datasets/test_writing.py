"""Audio beside written videos: the packets of the source, at its times."""

from fractions import Fraction
from io import BytesIO

import av
import numpy as np
import pytest
import torch

from vidtok.cli.main import main
from vidtok.datasets import AudioPackets, VideoWriter
from vidtok.datasets.writing import copy_audio

RATE, FPS, SECONDS = 48000, 25, 2


def write_source(path, codec, video_start=0.0):
    """Write a video of SECONDS with a tone that is half a second longer; the video begins after `video_start`."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS)
        video.width = video.height = 32
        sound = container.add_stream(codec, rate=RATE)
        sound.layout = "mono"
        for i in range(SECONDS * FPS):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
            frame.pts, frame.time_base = i + round(video_start * FPS), Fraction(1, FPS)
            container.mux(video.encode(frame))
        tone = np.sin(np.arange(round((SECONDS + 0.5) * RATE)) * (440 * 2 * np.pi / RATE)) * 9000
        samples = sound.codec_context.format.name
        data = (tone / 32768).astype(np.float32) if samples.startswith("flt") else tone.astype(np.int16)
        for start in range(0, len(data), 1024):
            frame = av.AudioFrame.from_ndarray(data[None, start : start + 1024], format=samples, layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
            container.mux(sound.encode(frame))
        container.mux([*video.encode(None), *sound.encode(None)])
    return path


def packets(file, format=None):
    """[(bytes, seconds)] of the audio."""
    with av.open(file, format=format) as container:
        return [(bytes(p), float(p.pts * p.time_base)) for p in container.demux(audio=0) if p.size]


def write(path, audio, time_base=None):
    with VideoWriter(path, FPS, time_base, audio) as writer:
        for _ in range(SECONDS * 5):
            writer.write(torch.zeros(3, FPS // 5, 32, 32))


def same(written, expected, tolerance=1e-3):
    assert [data for data, _ in written] == [data for data, _ in expected] != []
    assert np.allclose([time for _, time in written], [time for _, time in expected], atol=tolerance)


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le", "flac"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_the_packets_of_the_source_stand_beside_the_frames(tmp_path, codec, suffix):
    source = write_source(tmp_path / "in.mkv", codec)
    expected = [(data, time) for data, time in packets(str(source)) if 0 <= time < SECONDS]
    write(tmp_path / f"out{suffix}", AudioPackets(source))
    same(packets(str(tmp_path / f"out{suffix}")), expected)


def test_times_count_from_the_first_frame_and_the_copy_is_cut(tmp_path):
    source = write_source(tmp_path / "in.mkv", "pcm_s16le", video_start=0.4)
    copied = BytesIO()
    copy_audio(source, copied, end=1.5)
    expected = [(data, time - 0.4) for data, time in packets(str(source)) if -1e-9 <= time - 0.4 < 1.5]
    copied.seek(0)
    same(packets(copied, "nut"), expected)
    copied.seek(0)
    write(tmp_path / "out.mkv", AudioPackets(copied, start=0.5, end=1.0))
    same(packets(str(tmp_path / "out.mkv")), [(d, time - 0.5) for d, time in expected if 0.5 <= time < 1.0])


def test_what_has_no_place_for_audio(tmp_path):
    source = write_source(tmp_path / "in.mkv", "flac")
    with pytest.raises(ValueError, match=r"a \.mov can't hold flac audio: write a \.mkv, or leave"):
        write(tmp_path / "out.mov", AudioPackets(source))
    write(tmp_path / "out.gif", AudioPackets(source))  # a silent picture
    write(tmp_path / "silent.mp4", None)
    with pytest.raises(ValueError, match=r"silent\.mp4: has no audio"):
        AudioPackets(tmp_path / "silent.mp4")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.mkv", "out.gif", "silent.mp4"]


def test_reconstruct_keeps_the_audio(tmp_path, tokenizer_path, capsys):
    source = write_source(tmp_path / "in.mkv", "aac")
    expected = [(data, time) for data, time in packets(str(source)) if 0 <= time < SECONDS]
    command = ["reconstruct", str(source), "--model", tokenizer_path, "-o"]
    assert main([*command, str(tmp_path / "out.mp4")]) == 0
    same(packets(str(tmp_path / "out.mp4")), expected)
    assert main([*command, str(tmp_path / "five.mp4"), "--max-frames", "5"]) == 0
    same(packets(str(tmp_path / "five.mp4")), [(data, time) for data, time in expected if time < 5 / FPS])
    assert main([*command, str(tmp_path / "silent.mp4"), "--no-audio"]) == 0
    with av.open(str(tmp_path / "silent.mp4")) as container:
        assert not container.streams.audio
    write_source(tmp_path / "in.mkv", "flac")
    capsys.readouterr()
    assert main([*command, str(tmp_path / "out.mov")]) == 1
    assert "in.mkv: a .mov can't hold flac audio: write a .mkv" in capsys.readouterr().err
    assert not (tmp_path / "out.mov").exists()
