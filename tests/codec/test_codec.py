"""compress and decompress: frames, sizes and times come back; parts, damage, wrong models; the commands."""

import io
import warnings
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from test_codec_container import damage

import vidtok
from vidtok.cli.main import main
from vidtok.codec import CodecError, decode, encode
from vidtok.codec.container import Chunk, ContainerReader, ContainerWriter
from vidtok.codec.header import Header
from vidtok.datasets import VideoWriter, demo_clip, iter_video
from vidtok.datasets.decode import PyAVReader
from vidtok.datasets.frames import video_to_frames
from vidtok.errors import UserError, VideoError, one_line
from vidtok.info import describe
from vidtok.tokenizer import TokenizerConfig, VideoTokenizer


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path) -> VideoTokenizer:
    return VideoTokenizer.from_pretrained(tokenizer_path)


def clip(frames: int, height: int = 16, width: int = 24) -> torch.Tensor:
    """A smooth pattern that moves: float32 [1, 3, T, H, W]."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.sin(0.3 * x + 0.1 * t), torch.cos(0.2 * y - 0.2 * t), torch.sin(0.1 * (x + y))])[None]


def packed(video: torch.Tensor | Path, tokenizer: VideoTokenizer, **options) -> bytes:
    file = io.BytesIO()
    vidtok.compress(video, file, model=tokenizer, **options)
    return file.getvalue()


@pytest.mark.parametrize("entropy", ["raw", "adaptive"])
def test_tensors_come_back_as_the_tokenizer_gives_them(tokenizer, entropy):
    video = clip(29)
    file = io.BytesIO()
    stats = vidtok.compress(video, file, model=tokenizer, entropy=entropy, chunk_latents=3)
    assert (stats.frames, stats.chunks, stats.tokens, stats.bytes) == (29, 3, 8 * 2 * 3, len(file.getvalue()))
    assert stats.raw_bytes == 8 * 2 * 3 * 18 / 8 and stats.pixels == 29 * 16 * 24
    expected = tokenizer.decode(tokenizer.encode(video))
    torch.testing.assert_close(vidtok.decompress(file, model=tokenizer), expected)


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 8, 8), (2, 9, 15), (13, 17, 8), (14, 3, 5)])
def test_any_length_and_size(tokenizer, frames, height, width):
    data = packed(clip(frames, height, width), tokenizer, chunk_latents=2)
    assert vidtok.decompress(io.BytesIO(data), model=tokenizer).shape == (1, 3, frames, height, width)


def test_ids_do_not_depend_on_the_number_of_threads(tokenizer):
    torch.set_num_threads(1)
    one = packed(clip(9), tokenizer)
    torch.set_num_threads(2)
    assert packed(clip(9), tokenizer) == one


def test_lower_quality_takes_fewer_bytes(tokenizer):
    video = clip(61, 32, 32)
    stats = [vidtok.compress(video, io.BytesIO(), model=tokenizer, quality=quality) for quality in (100, 50, 10, 1)]
    sizes = [each.token_bytes for each in stats]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.6 * sizes[0]
    with pytest.raises(ValueError, match="above 0 and at most 100"):
        packed(video, tokenizer, quality=0)


def test_tokens_of_lower_quality_come_back_as_they_were_coded(tokenizer):
    video = clip(29)
    latents = tokenizer.encode_latents(video)
    quality = 20
    codes = torch.cat([tokenizer.quantizer.hold(part, encode.HALF * 4) for part in latents.split(3, 2)], 2)
    file = io.BytesIO(packed(video, tokenizer, quality=quality, chunk_latents=3))
    expected = tokenizer.decode(tokenizer.codes_to_ids(codes))
    torch.testing.assert_close(vidtok.decompress(file, model=tokenizer), expected)
    assert (tokenizer.codes_to_ids(codes) != tokenizer.encode(video)).any()


def test_bits_per_pixel_are_not_exceeded(tokenizer):
    video = clip(61, 64, 64)
    whole = vidtok.compress(video, io.BytesIO(), model=tokenizer, chunk_latents=4)
    full = 8 * whole.bytes / whole.pixels
    for bpp in (2 * full, 0.8 * full, 0.6 * full):
        stats = vidtok.compress(video, io.BytesIO(), model=tokenizer, chunk_latents=4, bpp=bpp)
        assert 0.8 * min(bpp, full) <= 8 * stats.bytes / stats.pixels <= bpp
    assert stats.quality < 100 and "at quality" in str(stats) and "quality" not in str(whole)
    with pytest.warns(UserWarning, match="no fewer than .* at this size: give a smaller size or fps"):
        vidtok.compress(video, io.BytesIO(), model=tokenizer, bpp=0.001)
    for options in ({"bpp": 0}, {"bpp": 1, "quality": 50}, {"bpp": 1, "entropy": "raw"}):
        with pytest.raises(ValueError, match="bpp"):
            packed(video, tokenizer, **options)


@pytest.fixture(scope="module")
def fsq(tmp_path_factory) -> VideoTokenizer:
    path = tmp_path_factory.mktemp("fsq")
    net = {"kind": "patch", "width": 16, "blocks": 1, "decoder_blocks": 1}
    VideoTokenizer(TokenizerConfig("fsq", net, {"kind": "fsq", "levels": [8, 5, 5]})).save_pretrained(path)
    return VideoTokenizer.from_pretrained(path)


def test_tokens_of_other_quantizers(fsq):
    video = clip(5)
    decoded = vidtok.decompress(io.BytesIO(packed(video, fsq)), model=fsq)
    torch.testing.assert_close(decoded, fsq.decode(fsq.encode(video)))


def test_quality_is_for_lfq(fsq):
    with pytest.raises(ValueError, match="for LFQ tokenizers, and fsq is none"):
        packed(clip(5), fsq, quality=50)


def test_parts_are_those_of_the_whole(tokenizer):
    file = io.BytesIO(packed(clip(141), tokenizer, chunk_latents=4, fps=10))
    whole = vidtok.decompress(file, model=tokenizer)
    for start, end, frames in [(0, 0.1, [0, 1]), (11.1, 11.9, [111, 119]), (13, None, [130, 141]), (5, 99, [50, 141])]:
        part = vidtok.decompress(file, model=tokenizer, start=start, end=end)
        torch.testing.assert_close(part, whole[:, :, slice(*frames)], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="no frames between 20 s and its end"):
        vidtok.decompress(file, model=tokenizer, start=20)
    with pytest.raises(ValueError, match="0 <= start < end"):
        vidtok.decompress(file, model=tokenizer, start=2, end=1)


def test_a_part_decodes_few_latents_before_it(tokenizer, monkeypatch):
    file = io.BytesIO(packed(clip(141), tokenizer, fps=10))  # one chunk of 36 latents
    whole = vidtok.decompress(file, model=tokenizer)
    decoded = []
    decode_chunks = decode.decode_chunks

    def count(tokenizer, ids, tile):
        for video in decode_chunks(tokenizer, ids, tile):
            decoded.append(video.shape[2])
            yield video

    monkeypatch.setattr(decode, "decode_chunks", count)
    part = vidtok.decompress(file, model=tokenizer, start=12.0)
    torch.testing.assert_close(part, whole[:, :, 120:], atol=1e-5, rtol=0)
    assert sum(decoded) == 1 + 4 * 22  # latents 14 to 35, and one frame that is left out


def test_a_part_reads_only_its_chunks(tokenizer):
    data = bytearray(packed(clip(141), tokenizer, chunk_latents=4, fps=10))
    entries = ContainerReader(io.BytesIO(bytes(data))).entries
    for number in (0, 2, 8):  # frames 109 to 124 are in chunk 7, and the decoder looks back 16 latents
        data[entries[number].offset + 50] ^= 1
    part = vidtok.decompress(io.BytesIO(bytes(data)), model=tokenizer, start=11.3, end=12.5)
    whole = vidtok.decompress(io.BytesIO(packed(clip(141), tokenizer)), model=tokenizer)
    torch.testing.assert_close(part, whole[:, :, 113:125], atol=1e-5, rtol=0)


def test_damage_is_named_and_salvage_gives_the_rest(tokenizer):
    data = bytearray(packed(clip(61), tokenizer, chunk_latents=4))
    data[ContainerReader(io.BytesIO(bytes(data))).entries[1].offset + 50] ^= 1
    with pytest.raises(CodecError, match="the file: chunk 1 of 4 is damaged"):
        vidtok.decompress(io.BytesIO(bytes(data)), model=tokenizer)
    with pytest.warns(UserWarning, match="damaged chunks are left out: 1$"):
        rest = vidtok.decompress(io.BytesIO(bytes(data)), model=tokenizer, salvage=True)
    whole = vidtok.decompress(io.BytesIO(packed(clip(61), tokenizer)), model=tokenizer)
    assert rest.shape[2] == 61 - 16
    torch.testing.assert_close(rest[:, :, :13], whole[:, :, :13])
    torch.testing.assert_close(rest[:, :, -16:], whole[:, :, -16:], atol=1e-5, rtol=0)  # far enough from the gap


@pytest.mark.parametrize("entropy", ["raw", "adaptive"])
def test_damage_is_never_taken_for_frames(tokenizer, entropy):
    whole, generator = packed(clip(29), tokenizer, chunk_latents=2, entropy=entropy), np.random.default_rng(3)
    frames, refused = vidtok.decompress(io.BytesIO(whole), model=tokenizer), 0
    for _ in range(200):
        data = damage(whole, generator)
        try:
            torch.testing.assert_close(vidtok.decompress(io.BytesIO(data), model=tokenizer), frames)
        except CodecError as error:
            assert "\n" not in str(error)
            refused += 1
        with suppress(CodecError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            salvaged = vidtok.decompress(io.BytesIO(data), model=tokenizer, salvage=True)
            assert salvaged.shape[2] <= 29 and salvaged.shape[3:] == frames.shape[3:]
            if salvaged.shape[2] == 29:
                torch.testing.assert_close(salvaged, frames)
    assert refused > 180


def test_the_file_grows_while_the_video_is_read(tokenizer):
    file = io.BytesIO()
    sizes = []
    vidtok.compress(clip(97), file, model=tokenizer, chunk_latents=4, progress=lambda frames: sizes.append(file.tell()))
    assert len(set(sizes)) >= 4
    part = io.BytesIO(file.getvalue()[: sizes[-1]])  # as a killed process leaves it
    with pytest.warns(UserWarning, match="unfinished or cut off after chunk 4"):
        assert vidtok.decompress(part, model=tokenizer, salvage=True).shape[2] == 77
    with pytest.raises(CodecError, match="no chunk is good"):
        begun = file.getvalue()[: ContainerReader(file).entries[0].offset + 9]
        vidtok.decompress(io.BytesIO(begun), model=tokenizer, salvage=True)


@pytest.mark.parametrize(("suffix", "options"), [(".ts", {}), (".mkv", {"live": "1"}), (".h264", {})])
def test_a_source_that_states_no_length_is_read_once(tokenizer, tmp_path, monkeypatch, suffix, options):
    """The header is written before the number of frames is known, and chunks while the source is read."""
    path, target = tmp_path / f"in{suffix}", tmp_path / "out.mp4"
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height = 24, 16
        for picture_HWC in video_to_frames(clip(97)[0]):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture_HWC)))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert not container.streams.video[0].frames and (suffix == ".ts" or not container.duration)
    decode_once, decoded = PyAVReader._decode, []

    def count(self, *streams):
        for frame in decode_once(self, *streams):
            decoded.append(frame.time)
            yield frame

    monkeypatch.setattr(PyAVReader, "_decode", count)
    file, sizes = io.BytesIO(), []
    vidtok.compress(path, file, model=tokenizer, chunk_latents=4, progress=lambda frames: sizes.append(file.tell()))
    assert len(decoded) == 97 and len(set(sizes)) >= 4 and sizes[2] > sizes[0]
    assert vidtok.decompress(file, target, model=tokenizer) == 97
    with iter_video(target, size=None, multiple=1) as stream:
        assert sum(video.shape[2] for video in stream) == 97
        np.testing.assert_allclose(stream.timestamps, np.arange(97) / 25, atol=1e-3)

    def grow(frames):
        with path.open("ab") as opened:
            opened.write(bytes(188))

    with pytest.raises(VideoError, match="the file changed while it was read"):
        vidtok.compress(path, tmp_path / "x.vtk", model=tokenizer, progress=grow)
    assert not (tmp_path / "x.vtk").exists()


def test_another_model(tokenizer, tmp_path):
    data = packed(clip(5), tokenizer)
    with pytest.raises(UserError, match=r"made by 'tiny' with weights .* doesn't ship: give that model"):
        vidtok.decompress(io.BytesIO(data))
    with pytest.raises(ValueError, match="the model given has weights"):
        vidtok.decompress(io.BytesIO(data), model="vidtok-t")


def test_arguments(tokenizer, tmp_path):
    for options, message in [
        ({"entropy": "priors"}, "unknown entropy model"), ({"chunk_latents": 0}, "chunk_latents"),
        ({"size": 8}, "resizes files"), ({"fps": -1}, "above 0"), ({"fps": 1e-9}, "in 1e-06 .. 1e\\+09"),
        ({"max_frames": 0}, "max_frames=0"), ({"max_frames": -1}, "max_frames=-1"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            packed(clip(5), tokenizer, **options)
    with pytest.raises(ValueError, match="one clip"):
        packed(torch.zeros(2, 3, 1, 8, 8), tokenizer)
    path = tmp_path / "x.vtk"
    path.write_bytes(b"x")
    with pytest.raises(UserError, match="--force"):
        vidtok.compress(clip(1), path, model=tokenizer)
    with pytest.raises(CodecError, match=r"x.vtk: not a video that vidtok compressed"):
        vidtok.decompress(path)


def test_an_output_that_is_the_input_stays_as_it_is(tokenizer, tmp_path):
    path = tmp_path / "in.mp4"
    vidtok.write_video(path, clip(5), 10)
    (tmp_path / "link.mp4").symlink_to(path)
    data = path.read_bytes()
    for video in (path, tmp_path / "link.mp4"):
        with pytest.raises(ValueError, match="is the input"):
            vidtok.compress(video, path, model=tokenizer, force=True)
    with pytest.raises(VideoError, match="no such file"):
        vidtok.compress(tmp_path / "gone.mp4", path, model=tokenizer, force=True)
    assert path.read_bytes() == data


def test_an_output_that_is_no_file_stays_as_it_is(tokenizer, tmp_path):
    path = tmp_path / "x.vtk"
    path.symlink_to("/dev/full")  # a device of Linux, on which every write fails as on a full disk
    with pytest.raises(OSError, match="No space left on device") as error:
        vidtok.compress(clip(5), path, model=tokenizer, force=True)
    assert one_line(error.value) == f"{path}: No space left on device" and path.is_symlink()


def test_a_video_that_fails_leaves_no_file(tokenizer, tmp_path, monkeypatch):
    pad_chunks = encode.pad_chunks

    def fail(chunks, stride):
        yield from islice(pad_chunks(chunks, stride), 2)
        raise VideoError("in.mp4", "damaged")

    monkeypatch.setattr(encode, "pad_chunks", fail)
    with pytest.raises(VideoError):
        vidtok.compress(clip(99), tmp_path / "x.vtk", model=tokenizer, chunk_latents=2)
    assert not [*tmp_path.iterdir()]
    (tmp_path / "x.vtk").write_bytes(b"before")
    with pytest.raises(VideoError):
        vidtok.compress(clip(99), tmp_path / "x.vtk", model=tokenizer, chunk_latents=2, force=True)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def test_a_run_that_is_interrupted_leaves_its_chunks(tokenizer, tmp_path):
    path = tmp_path / "x.vtk"

    def stop(frames):
        if path.stat().st_size > 700:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vidtok.compress(clip(97, 32, 32), path, model=tokenizer, chunk_latents=2, progress=stop)
    with pytest.raises(CodecError, match="chunks are good: --salvage"):
        vidtok.decompress(path, model=tokenizer)
    with pytest.warns(UserWarning, match="unfinished or cut off"):
        assert 5 < vidtok.decompress(path, tmp_path / "x.mkv", model=tokenizer, salvage=True) < 97
    with pytest.raises(UserError, match="--force"):
        vidtok.compress(clip(5), path, model=tokenizer)
    vidtok.compress(clip(5), path, model=tokenizer, force=True)
    assert vidtok.decompress(path, model=tokenizer).shape[2] == 5


def test_damage_that_is_kept_is_warned_of(tokenizer, monkeypatch):
    monkeypatch.setattr(encode.TensorSource, "error", VideoError("in.mp4", "3 frames are damaged"))
    with pytest.warns(UserWarning, match=r"in.mp4: 3 frames are damaged"):
        packed(clip(5), tokenizer)


def test_a_resampled_video_has_the_ticks_of_its_new_rate(tokenizer, tmp_path):
    vidtok.write_video(tmp_path / "in.mp4", clip(10), 10)
    header = ContainerReader(io.BytesIO(packed(tmp_path / "in.mp4", tokenizer, fps=5))).header
    assert (header.fps, header.time_base, header.source["fps"]) == (5, (1, 5), 10)


@pytest.mark.parametrize("fps", [float("inf"), float("nan"), 1e-9, 1e10])
def test_rates_that_no_file_holds(tokenizer, tmp_path, fps):
    vidtok.write_video(tmp_path / "in.mp4", clip(2), 10)
    with pytest.raises(ValueError, match="above 0"):
        packed(tmp_path / "in.mp4", tokenizer, fps=fps)


def retimed(data: bytes, ticks: list[int], **header) -> bytes:
    """Replace the times of a file with one chunk, and fields of its header."""
    reader, file = ContainerReader(io.BytesIO(data)), io.BytesIO()
    writer = ContainerWriter(file, replace(reader.header, **header))
    writer.add(reader.read(0)._replace(ticks=np.array(ticks)))
    writer.finish()
    return file.getvalue()


def test_times_that_a_format_can_not_hold(tokenizer, tmp_path):
    data = packed(clip(5), tokenizer)
    late = io.BytesIO(retimed(data, [0, 1, 2, 3, 1 << 33]))
    with pytest.raises(ValueError, match=r"out.mp4: its times or size can't be written \("):
        vidtok.decompress(late, tmp_path / "out.mp4", model=tokenizer)
    assert vidtok.decompress(late, tmp_path / "out.mkv", model=tokenizer) == 5
    slow = io.BytesIO(retimed(data, [0, 1, 2, 3, 4], fps=1e-3))
    with pytest.raises(ValueError, match=r"a .gif shows a frame for at most 655 s: write a .mkv"):
        vidtok.decompress(slow, tmp_path / "out.gif", model=tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mkv"]


def test_ticks_ascend_where_times_do_not(tmp_path):
    vidtok.write_video(tmp_path / "in.mp4", clip(2), 10)
    source = encode.FileSource(tmp_path / "in.mp4", None, 10, None, "auto", "raise", lambda frames: None)
    source.close()
    source._source = SimpleNamespace(stream=SimpleNamespace(timestamps=np.array([0, 0.1, 0.1, 0.1, 0.6, 0.6])))
    assert source.ticks(0, 3).tolist() == [0, 1, 2] and source.ticks(3, 6).tolist() == [3, 6, 7]


def test_tiles_are_those_of_the_file(tokenizer):
    video = clip(5, 48, 48)
    file = io.BytesIO(packed(video, tokenizer, tile=32))
    ids = tokenizer.encode(video, tile=32)
    decoded = vidtok.decompress(file, model=tokenizer)
    torch.testing.assert_close(decoded, tokenizer.decode(ids, tile=32), atol=1e-5, rtol=0)
    assert (decoded - tokenizer.decode(ids)).abs().max() > 1e-4


def test_chunks_of_large_frames_have_fewer_latents(tokenizer, monkeypatch):
    monkeypatch.setattr(encode, "MAX_CHUNK_TOKENS", 12)
    file = io.BytesIO(packed(clip(29), tokenizer))  # 6 tokens per latent
    assert ContainerReader(file).header.chunk_latents == 2
    monkeypatch.undo()
    assert ContainerReader(io.BytesIO(packed(clip(5), tokenizer, chunk_latents=10**9))).header.chunk_latents == 1 << 14
    assert vidtok.decompress(file, model=tokenizer).shape[2] == 29


def test_variable_frame_rate_comes_back_exactly(tokenizer, tmp_path):
    ticks = np.cumsum([0, 1001, 3003, 500, 501, 40, 9000, 1001, 1001, 1001])
    source, target, file = tmp_path / "in.mp4", tmp_path / "out.mp4", tmp_path / "x.vtk"
    with VideoWriter(source, 15, Fraction(1, 30000)) as writer:
        writer.write(clip(10)[0], ticks)
    vidtok.compress(source, file, model=tokenizer)
    assert vidtok.decompress(file, target, model=tokenizer) == 10
    for path in (source, target):
        with iter_video(path, size=None, multiple=1) as stream:
            assert sum(video.shape[2] for video in stream) == 10
            np.testing.assert_allclose(stream.timestamps, ticks / 30000, atol=1e-9)


def test_info_escapes_what_a_file_says(tmp_path, capsys):
    header = Header(
        model="a\nb", weight_hash="\x1b[2J", precision="fp32", bits=1, levels=1, stride=(1, 1, 1), entropy="\x1b[31m",
        chunk_latents=1, size=(1, 1), fps=1.0, time_base=(1, 1), tile=None, source={"name": "\x07"},
    )  # fmt: skip
    with (tmp_path / "x.vtk").open("wb") as file:
        writer = ContainerWriter(file, header)
        writer.add(Chunk(0, 1, np.arange(1), b""))
        writer.finish()
    assert main(["info", str(tmp_path / "x.vtk")]) == 0
    shown = capsys.readouterr().out
    assert "a%x0Ab, weights %x1B[2J" in shown and "%x1B[31m" in shown and "%x07" in shown and "\x1b" not in shown


def test_commands(tokenizer_path, tmp_path, capsys):
    source, file, target = tmp_path / "in.mp4", tmp_path / "a/x.vtk", tmp_path / "b/c/out.mp4"
    vidtok.write_video(source, demo_clip()[:, :, :22, :37, :51], 25)
    model = ["--model", tokenizer_path]
    assert main(["compress", str(source), "-o", str(file), "--chunk-latents", "2", *model]) == 0
    assert "compressed 22 frames to" in capsys.readouterr().out
    assert main(["info", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "22 of 37 x 51 at 25 frames/s" in shown and "0.880 s" in shown and "in.mp4" in shown
    assert describe(file)["entropy model"] == "adaptive"
    assert main(["decompress", str(file), "-o", str(target), *model]) == 0
    assert "decompressed 22 frames" in capsys.readouterr().out
    with iter_video(target, size=None, multiple=1) as stream:
        assert sum(video.shape[2] for video in stream) == 22 and stream.size == (37, 51) and stream.fps == 25
    file.write_bytes(file.read_bytes()[:-300])
    assert main(["decompress", str(file), "-o", str(tmp_path / "cut.mp4"), *model]) == 1
    error = capsys.readouterr().err
    assert "cut off or damaged at chunk" in error and error.count("\n") == 1
    assert not (tmp_path / "cut.mp4").exists()
