"""Audio of compressed videos: packets come back as they were; damage of the audio leaves the frames."""

import io
import re
import struct
import warnings
import zlib
from contextlib import suppress

import av
import numpy as np
import pytest
from sounds import FPS, SECONDS, packets, same, write_source
from test_codec import clip, packed
from test_codec_container import damage

import vidtok
from vidtok.cli.main import main
from vidtok.codec import CodecError, source
from vidtok.codec.container import ContainerReader
from vidtok.datasets import AudioPackets
from vidtok.datasets.writing import copy_audio
from vidtok.errors import VideoError
from vidtok.tokenizer import VideoTokenizer


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path) -> VideoTokenizer:
    return VideoTokenizer.from_pretrained(tokenizer_path)


@pytest.fixture(scope="module")
def data(tokenizer, tmp_path_factory) -> bytes:
    """A compressed video with AAC."""
    path = write_source(tmp_path_factory.mktemp("audio") / "in.mp4", "aac")
    return packed(path, tokenizer, audio=True, chunk_latents=4)


def timed(path) -> list[tuple[bytes, float]]:
    """[(bytes, seconds from the first frame)] of the audio."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        first = float(video.start_time * video.time_base)
    return [(data, time - first) for data, time in packets(str(path))]


def decompress(data: bytes, path, tokenizer, **options) -> int:
    return vidtok.decompress(io.BytesIO(data), path, model=tokenizer, **options)


@pytest.mark.parametrize(("codec", "suffix"), [("aac", ".mp4"), ("libopus", ".mkv"), ("pcm_s16le", ".mkv")])
def test_packets_and_times_come_back(tokenizer, tmp_path, codec, suffix):
    path, file, target = write_source(tmp_path / f"in{suffix}", codec), tmp_path / "x.vtk", tmp_path / f"out{suffix}"
    stats = vidtok.compress(path, file, model=tokenizer, audio=True)
    silent = vidtok.compress(path, io.BytesIO(), model=tokenizer)
    assert 0 < stats.audio_bytes < stats.bytes == file.stat().st_size and silent.audio_bytes == 0
    assert 0 <= stats.bytes - stats.audio_bytes - silent.bytes < 100  # what header and index say of it
    assert f"({stats.audio_bytes} of them audio)" in str(stats) and "audio" not in str(silent)
    assert vidtok.decompress(file, target, model=tokenizer) == SECONDS * FPS
    same(timed(target), timed(path), 1e-9)
    if codec != "pcm_s16le":
        assert timed(path)[0][1] < 0  # a packet from which the decoder starts
    assert timed(path)[-1][1] > SECONDS + 0.4
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("options", [{"video_start": 0.4}, {"seconds": 0.5}, {"video_start": 0.4, "seconds": 0.3}])
def test_audio_that_begins_early_or_ends_early(tokenizer, tmp_path, options, suffix):
    path = write_source(tmp_path / "in.mkv", "aac", **options)
    assert decompress(packed(path, tokenizer, audio=True), tmp_path / f"out{suffix}", tokenizer) == SECONDS * FPS
    same(timed(tmp_path / f"out{suffix}"), timed(path))


def test_a_part_has_the_packets_that_begin_in_it(tokenizer, tmp_path, data):
    path = tmp_path / "out.mp4"
    decompress(data, path, tokenizer)
    whole = timed(path)
    for start, end in [(0.4, 1.2), (0.4, None), (0, 1.2), (0, 99)]:
        decompress(data, path, tokenizer, start=start, end=end, force=True)
        first, last = start or -1, SECONDS + 1 if end is None else end
        same(timed(path), [(data, time - start) for data, time in whole if first <= time < last])
    short = packed(write_source(tmp_path / "in.mp4", "aac", seconds=0.2), tokenizer, audio=True)
    assert decompress(short, path, tokenizer, start=1, force=True) == FPS  # the audio has ended


def test_audio_ends_with_a_video_that_is_cut(tokenizer, tmp_path):
    path = write_source(tmp_path / "in.mp4", "aac")
    for options, end in [({"max_frames": 5}, 5 / FPS), ({"max_frames": 6, "fps": 10}, 0.6), ({"max_frames": 999}, 99)]:
        decompress(packed(path, tokenizer, audio=True, **options), tmp_path / "out.mp4", tokenizer, force=True)
        same(timed(tmp_path / "out.mp4"), [(data, time) for data, time in timed(path) if time < end])


def test_of_two_tracks_the_first_is_kept(tokenizer, tmp_path):
    path = write_source(tmp_path / "in.mkv", "flac", tracks=2)
    with pytest.warns(UserWarning, match=r"in\.mkv: has 2 audio tracks: the first is kept"):
        file = packed(path, tokenizer, audio=True)
    decompress(file, tmp_path / "out.mkv", tokenizer)
    same(timed(tmp_path / "out.mkv"), timed(path))


def test_a_source_without_audio(tokenizer, tmp_path):
    vidtok.write_video(tmp_path / "in.mp4", clip(5), 10)
    with pytest.warns(UserWarning, match=r"in\.mp4: has no audio"):
        file = packed(tmp_path / "in.mp4", tokenizer, audio=True)
    assert file == packed(tmp_path / "in.mp4", tokenizer)
    with pytest.raises(ValueError, match="a tensor has no audio"):
        packed(clip(5), tokenizer, audio=True)


def test_audio_that_fails(tokenizer, tmp_path, monkeypatch):
    path = write_source(tmp_path / "in.mp4", "aac")

    def fail(path, output, end, lead):
        copy_audio(path, output, 1.0, lead)
        raise VideoError(path, "its audio breaks")

    monkeypatch.setattr(source, "copy_audio", fail)
    with pytest.raises(VideoError, match="audio breaks"):
        vidtok.compress(path, tmp_path / "x.vtk", model=tokenizer, audio=True)
    assert not (tmp_path / "x.vtk").exists()
    with pytest.warns(UserWarning, match="audio breaks"):
        file = packed(path, tokenizer, audio=True, on_error="keep")
    decompress(file, tmp_path / "out.mp4", tokenizer)
    same(timed(tmp_path / "out.mp4"), [(data, time) for data, time in timed(path) if time < 1])


def test_damaged_audio(tokenizer, tmp_path, data):
    damaged = bytearray(data)
    damaged[data.index(b"AUDI") + 500] ^= 1
    with pytest.raises(CodecError, match=r"the file: its audio is damaged \(its checksum differs\): --no-audio or"):
        decompress(damaged, tmp_path / "out.mp4", tokenizer)
    assert list(tmp_path.iterdir()) == []
    assert vidtok.decompress(io.BytesIO(damaged), model=tokenizer).shape[2] == SECONDS * FPS  # frames alone
    assert decompress(damaged, tmp_path / "silent.mp4", tokenizer, audio=False) == SECONDS * FPS
    with pytest.warns(UserWarning, match=r"the audio is damaged and left out \(its checksum differs\)") as warned:
        assert decompress(damaged, tmp_path / "out.mp4", tokenizer, salvage=True) == SECONDS * FPS
    assert len(warned) == 1
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert not container.streams.audio


def test_salvage_of_a_file_without_index(tokenizer, tmp_path, data):
    for cut in (data[:-20], data[: data.index(b"AUDI") + 500], data[: data.index(b"AUDI")]):
        with pytest.raises(CodecError, match="4 chunks are good: --salvage"):
            decompress(cut, tmp_path / "out.mp4", tokenizer, force=True)
        with pytest.warns(UserWarning, match="cut off after chunk 3, and its audio is lost") as warned:
            assert decompress(cut, tmp_path / "out.mp4", tokenizer, salvage=True, force=True) == SECONDS * FPS
        assert len(warned) == 1


def test_salvage_keeps_the_audio_beside_a_damaged_chunk(tokenizer, tmp_path, data):
    damaged = bytearray(data)
    damaged[ContainerReader(io.BytesIO(data)).entries[1].offset + 50] ^= 1
    with pytest.warns(UserWarning, match="damaged chunks are left out: 1$"):
        frames = decompress(damaged, tmp_path / "out.mp4", tokenizer, salvage=True)
    assert frames == SECONDS * FPS - 16
    decompress(data, tmp_path / "whole.mp4", tokenizer)
    same(timed(tmp_path / "out.mp4"), timed(tmp_path / "whole.mp4"), 1e-9)


def replace_audio(data: bytes, change) -> bytes:
    """Put (packets, lead) = change(packets, lead) into a file, with right lengths and checksums."""
    offset, end = data.index(b"AUDI"), struct.unpack("<Q4s", data[-12:])[0]
    numbers = struct.unpack_from("<4sQdI", data, offset)
    packets, lead = change(data[offset + 24 : end], numbers[2])
    head = struct.pack("<Qd", len(packets), lead)
    audio = b"AUDI" + head + struct.pack("<I", zlib.crc32(packets, zlib.crc32(head))) + packets
    return data[:offset] + audio + data[end:-12] + struct.pack("<Q4s", offset + len(audio), b"VTKE")


def test_packets_that_are_none(tokenizer, tmp_path, data):
    whole = replace_audio(data, lambda packets, lead: (packets, lead))
    assert whole == data
    for change in (
        lambda packets, lead: (b"", lead), lambda packets, lead: (bytes(1000), lead),
        lambda packets, lead: (packets, float("nan")), lambda packets, lead: (packets, -1.0),
    ):  # fmt: skip
        with pytest.raises(CodecError, match="its audio is damaged") as error:
            decompress(replace_audio(data, change), tmp_path / "out.mp4", tokenizer)
        assert "\n" not in str(error.value)


def test_damaged_packets_give_errors_and_no_crash(tmp_path):
    file, generator = io.BytesIO(), np.random.default_rng(0)
    copy_audio(write_source(tmp_path / "in.mp4", "aac", seconds=0.5), file)
    for _ in range(200):
        with suppress(ValueError, av.error.FFmpegError):
            audio = AudioPackets(io.BytesIO(damage(file.getvalue(), generator)), whole=True)
            assert sum(packet.size for packet in audio.until(float("inf"))) < 10 * len(file.getvalue())
            audio.close()


def test_damage_is_never_taken_for_audio(tokenizer, tmp_path, data):
    path, generator, written = tmp_path / "out.mkv", np.random.default_rng(4), 0
    decompress(data, path, tokenizer)
    known = {packet for packet, _ in timed(path)}
    for _ in range(40):
        with suppress(CodecError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            decompress(damage(data, generator), path, tokenizer, salvage=True, force=True)
            written += 1
            with av.open(str(path)) as container:
                audio = container.streams.audio
                assert not audio or {bytes(packet) for packet in container.demux(audio[0]) if packet.size} <= known
    assert written > 10


def test_tokens_are_those_of_a_file_without_audio(tokenizer, tmp_path, data):
    (tmp_path / "a.vtk").write_bytes(data)
    ids = vidtok.TokenDataset(tmp_path)[0]["features"]
    reader = ContainerReader(io.BytesIO(data))
    assert len(ids) == sum(entry.latents for entry in reader.entries.values())


def test_commands(tokenizer_path, tmp_path, capsys):
    path, file = write_source(tmp_path / "in.mkv", "flac"), tmp_path / "x.vtk"
    model = ["--model", tokenizer_path]
    assert main(["compress", str(path), "-o", str(file), "--audio", *model]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"50 frames to \d+ bytes \(\d+ of them audio\), 0\.\d+ bits per pixel", shown)
    bits = re.search(r"(\S+) bits per pixel", shown)[1]
    assert main(["info", str(file)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^audio  +codec flac, rate 48000, channels 1, \d+ bytes$", shown, re.MULTILINE)
    assert f"{bits} bits per pixel" in shown and "(without audio)" in shown and "{" not in shown
    assert main(["decompress", str(file), "-o", str(tmp_path / "out.mov"), *model]) == 1
    assert "a .mov can't hold flac audio: write a .mkv, or leave the audio out" in capsys.readouterr().err
    assert main(["decompress", str(file), "-o", str(tmp_path / "out.mov"), "--no-audio", *model]) == 0
    assert main(["decompress", str(file), "-o", str(tmp_path / "out.gif"), *model]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["compress", str(path), "-o", str(file), "--force", *model]) == 0
    assert main(["info", str(file)]) == 0
    assert re.search(r"^audio  +none$", capsys.readouterr().out, re.MULTILINE)
