"""Audio beside written videos: the packets of the source, at its times."""

from io import BytesIO

import av
import pytest
import torch
from sounds import FPS, SECONDS, packets, same, write_source

from vidtok.cli.main import main
from vidtok.datasets import AudioPackets, VideoWriter
from vidtok.datasets.writing import copy_audio


def write(path, audio, time_base=None):
    with VideoWriter(path, FPS, time_base, audio) as writer:
        for _ in range(SECONDS * 5):
            writer.write(torch.zeros(3, FPS // 5, 32, 32))


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


@pytest.mark.parametrize("layout", ["stereo", "5.1"])
def test_pcm_whose_file_does_not_name_its_channels(tmp_path, layout):
    source = write_source(tmp_path / "in.mkv", "pcm_s16le", layout=layout)
    with av.open(str(source)) as container:
        assert container.streams.audio[0].layout.name.endswith(" channels")
    write(tmp_path / "out.mp4", AudioPackets(source))
    same(packets(str(tmp_path / "out.mp4")), [(d, time) for d, time in packets(str(source)) if time < SECONDS])
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.audio[0].layout.name == layout


def test_what_has_no_place_for_audio(tmp_path):
    source = write_source(tmp_path / "in.mkv", "flac")
    with pytest.raises(ValueError, match=r"a \.mov can't hold flac audio: write a \.mkv, or leave"):
        write(tmp_path / "out.mov", AudioPackets(source))
    write(tmp_path / "out.gif", AudioPackets(source))  # a silent picture
    write(tmp_path / "silent.mp4", None)
    with pytest.raises(ValueError, match=r"silent\.mp4: has no audio"):
        AudioPackets(tmp_path / "silent.mp4")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.mkv", "out.gif", "silent.mp4"]


def test_audio_of_an_unknown_codec(tmp_path):
    source = write_source(tmp_path / "in.mp4", "flac")
    source.write_bytes(source.read_bytes().replace(b"fLaC", b"abcd"))
    with pytest.raises(ValueError, match=r"in\.mp4: has audio of a codec that FFmpeg doesn't know: leave"):
        AudioPackets(source)


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
