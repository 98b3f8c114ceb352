"""vidtok eval compression: codecs give frames back, what ffmpeg lacks is named, runs resume, the report has all."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vidtok
from vidtok.cli.main import main
from vidtok.codec import prior
from vidtok.errors import UserError
from vidtok.eval import compression
from vidtok.eval.compression import codecs, make_codecs, read_clip
from vidtok.eval.compression.codecs import Coded, Ffmpeg, FfmpegCodec, FfmpegError, TokenizerCodec, parse_rate
from vidtok.eval.compression.report import (
    bd_table,
    comparison_table,
    format_result,
    format_tokens,
    summarize,
    table,
)
from vidtok.eval.metrics.reconstruction import ms_ssim
from vidtok.tokenizer import VideoTokenizer
from vidtok.train.prior import PriorNetwork

FFMPEG = os.environ.get("VIDTOK_FFMPEG") or shutil.which("ffmpeg")
needs_ffmpeg = pytest.mark.skipif(FFMPEG is None, reason="no ffmpeg")


def clip(frames: int = 9, height: int = 64, width: int = 96) -> torch.Tensor:
    """A smooth pattern that moves: float32 [1, 3, T, H, W]."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.sin(0.1 * x + 0.1 * t), torch.cos(0.1 * y - 0.1 * t), torch.sin(0.05 * (x + y))])[None]


def to_bytes(video: torch.Tensor) -> torch.Tensor:
    return ((video + 1) * 127.5).round().byte()


@pytest.fixture
def videos(tmp_path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, frames in [("a.mp4", 9), ("b.mp4", 7)]:
        vidtok.write_video(folder / name, clip(frames), 10)
    return folder


def fake(monkeypatch, calls: list) -> None:
    """Replace ffmpeg by codecs that lose `rate` bits of each value."""

    def code(self, video, fps, rate):
        calls.append((self.label, rate))
        if rate == "9":
            raise FfmpegError("no such quality")
        kept = video >> int(rate) << int(rate)
        return Coded(kept, 1000 // (int(rate) + 1), None, 0.5, 0.25)

    monkeypatch.setattr(codecs.FfmpegCodec, "code", code)
    monkeypatch.setattr(compression, "find_ffmpeg", lambda path: "ffmpeg")
    facts = Ffmpeg("ffmpeg", "7", frozenset(["libx264", "libx265"]), False)
    monkeypatch.setattr(compression, "describe_ffmpeg", lambda ffmpeg: facts)


RATES = {"x264": ["0", "2", "4"], "x265": ["1", "3", "5", "6"], "tiny": ["100", "30@0.5"]}


def run(tokenizer_path: str, videos: Path, output: Path, **options) -> dict:
    rates = {name: list(values) for name, values in RATES.items() if name != "tiny"} | {tokenizer_path: RATES["tiny"]}
    names = [tokenizer_path, "x264", "x265", "svt-av1"]
    return compression.evaluate(str(videos), output, **{"codecs": names, "rates": rates, "size": 64} | options)


@needs_ffmpeg
@pytest.mark.parametrize("name", codecs.ENCODERS)
@pytest.mark.parametrize("mode", codecs.MODES)
def test_encoders_give_the_frames_back(name, mode):
    facts = codecs.describe_ffmpeg(FFMPEG)
    if codecs.ENCODERS[name].library not in facts.encoders:
        pytest.skip(f"ffmpeg has no {name}")
    codec = FfmpegCodec(name, mode, facts)
    video = to_bytes(clip())
    best, worst = (codec.code(video, 10, codec.rates[place]) for place in (0, -1))
    assert best.video.shape == video.shape and best.video.dtype == torch.uint8
    assert (best.video.float() - video.float()).abs().mean() < 6
    assert 0 < worst.bytes < best.bytes
    assert codec.settings["encoder"] in codec.settings["encode"] and "WIDTHxHEIGHT" in codec.settings["encode"]
    with pytest.raises(FfmpegError):
        codec.code(video, 10, "no number")


@needs_ffmpeg
def test_streams_hold_no_settings_as_text():
    facts = codecs.describe_ffmpeg(FFMPEG)
    for name in ("x264", "x265"):
        codec = FfmpegCodec(name, "low-delay", facts)
        if codecs.ENCODERS[name].library in facts.encoders:
            assert codec.code(to_bytes(torch.zeros(1, 3, 1, 64, 64)), 10, "40").bytes < 300


@needs_ffmpeg
def test_vmaf_of_equal_clips_is_high():
    if not codecs.describe_ffmpeg(FFMPEG).vmaf:
        pytest.skip("ffmpeg has no libvmaf")
    video = to_bytes(clip(3))
    assert codecs.vmaf(FFMPEG, video, video, 10) > codecs.vmaf(FFMPEG, video, video.flip(4), 10)


def test_a_tokenizer_codes_at_its_rates(tokenizer_path):
    codec = TokenizerCodec(VideoTokenizer.from_pretrained(tokenizer_path))
    video = to_bytes(clip(13))
    best, held, small = (codec.code(video, 10, rate) for rate in ("100", "5", "100@0.5"))
    assert best.video.shape == small.video.shape == video.shape
    assert small.bytes < best.bytes < best.file_bytes and held.bytes < best.bytes
    decoded = codec.tokenizer.decode(codec.tokenizer.encode(video.float() / 127.5 - 1))
    assert (best.video.float() - (decoded + 1) * 127.5).abs().max() < 0.51
    assert codec.settings["weight_hash"] == codec.tokenizer.weight_hash


def test_rates_of_tokenizers():
    assert parse_rate("70") == (70, 1) and parse_rate("70@0.5") == (70, 0.5)
    for text in ("x", "0", "101", "70@2", "70@0"):
        with pytest.raises(ValueError, match=r"quality|QUALITY"):
            parse_rate(text)


def test_clips_of_every_size(videos, tmp_path):
    assert read_clip(videos / "a.mp4", 32, 5, None)[0].shape == (1, 3, 5, 32, 32)
    assert read_clip(videos / "a.mp4", (32, 64), None, None)[0].shape == (1, 3, 9, 32, 64)
    vidtok.write_video(tmp_path / "odd.mp4", clip(3, 33, 51), 10)
    video, fps = read_clip(tmp_path / "odd.mp4", None, None, None)
    assert video.shape == (1, 3, 3, 32, 50) and video.dtype == torch.uint8 and fps == 10


def test_ms_ssim():
    x = clip(2, 128, 128)
    assert ms_ssim(x, x).item() == pytest.approx(1)
    noisy = (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    assert 0.5 < ms_ssim(x, noisy).item() < 0.999
    for side in (11, 44, 88, 99, 176):
        assert ms_ssim(clip(1, side, side), clip(1, side, side)).item() == pytest.approx(1)
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ms_ssim(clip(1, 10, 20), clip(1, 10, 20))


def test_an_evaluation_and_its_files(tokenizer_path, videos, tmp_path, monkeypatch):
    calls: list = []
    fake(monkeypatch, calls)
    output = tmp_path / "out"
    result = run(tokenizer_path, videos, output)
    assert result["schema"] == "vidtok.compression/1" and result == json.loads((output / "result.json").read_text())
    assert (result["n_total"], result["n_used"], result["n_failed"]) == (2, 2, 0)
    labels = [codec["label"] for codec in result["codecs"]]
    modes = ("random-access", "low-delay")
    assert labels == ["tiny adaptive", *(f"{name} {mode}" for name in ("x264", "x265") for mode in modes)]
    assert [each["name"] for each in result["left_out"]][:2] == ["svt-av1", "vmaf"]
    assert len(result["clips"]) == 2 * (2 + 2 * 3 + 2 * 4)
    row = next(row for row in result["clips"] if row["codec"] == "x264 low-delay" and row["rate"] == "2")
    assert row["bytes"] == 333 and row["bpp"] == 8 * 333 / (row["frames"] * 64 * 64)
    assert row["psnr"] == pytest.approx(10 * np.log10(255**2 / 3.5), abs=1.5)
    point = next(p for p in result["points"] if (p["codec"], p["rate"]) == ("x264 low-delay", "2"))
    assert point["bpp"]["n"] == 2 and point["bpp"]["low"] <= point["bpp"]["mean"] <= point["bpp"]["high"]
    assert point["encode_fps"]["mean"] == 16 and point["decode_fps"]["mean"] == 32
    for name in ("charts/psnr.png", "charts/ms_ssim.png", "charts/overview.png", "crops/0.png", "crops/1.png"):
        assert Image.open(output / name).size[0] > 100
    page = (output / "page.html").read_text()
    assert "libx265" in page and "no libsvtav1" in page and "data:image/png" in page
    with (output / "points.csv").open() as file:
        assert len([*csv.DictReader(file)]) == 2 + 2 * 3 + 2 * 4
    shown = format_result(result)
    assert "left out: svt-av1: ffmpeg 7 has no libsvtav1" in shown and "tiny adaptive" in shown

    done = len(calls)
    again = run(tokenizer_path, videos, output)
    assert len(calls) == done and again["clips"] == result["clips"]
    vidtok.write_video(videos / "c.mp4", clip(5), 10)
    assert run(tokenizer_path, videos, output)["n_used"] == 3 and len(calls) == done + done // 2


def test_a_stopped_run_goes_on(tokenizer_path, videos, tmp_path, monkeypatch):
    calls: list = []
    fake(monkeypatch, calls)

    def stop(files, total):
        yield files[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tokenizer_path, videos, tmp_path / "out", crops=0, track=stop)
    done = len(calls)
    run(tokenizer_path, videos, tmp_path / "out", crops=0)
    assert len(calls) == 2 * done


def test_what_fails_is_named(tokenizer_path, videos, tmp_path, monkeypatch):
    fake(monkeypatch, [])
    (videos / "broken.mp4").write_bytes(b"no video")
    result = run(tokenizer_path, videos, tmp_path / "out", rates={"x264": ["2", "9", "3"]}, crops=0)
    assert result["n_failed"] == 1 and "broken.mp4" in result["failures"][0]["name"]
    failed = [each for each in result["left_out"] if "x264 low-delay" in each["name"]]
    assert len(failed) == 2 and failed[0]["reason"] == "at 9: no such quality"
    assert {row["rate"] for row in result["clips"] if row["codec"] == "x264 low-delay"} == {"2"}
    for file in videos.iterdir():
        file.write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"no clip could be measured: .*a.mp4"):
        run(tokenizer_path, videos, tmp_path / "out")


def test_arguments(tokenizer_path, videos, tmp_path, monkeypatch):
    def load(name):
        return VideoTokenizer.from_pretrained(tokenizer_path)

    with pytest.raises(UserError, match="no such program"):
        make_codecs(["x264"], {}, ["raw"], ["low-delay"], "no-such-ffmpeg", {}, load)
    with pytest.raises(ValueError, match="unknown mode 'low'"):
        make_codecs(["t"], {}, ["raw"], ["low"], None, {}, load)
    with pytest.raises(ValueError, match="rates of 'x265'"):
        make_codecs(["t"], {"x265": ["1"]}, ["raw"], ["low-delay"], None, {}, load)
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    with pytest.raises(UserError, match=r"pip install 'vidtok\[compression\]', or give --ffmpeg"):
        make_codecs(["x264"], {}, ["raw"], ["low-delay"], None, {}, load)
    found, left_out, _ = make_codecs(["t"], {}, ["raw", "adaptive"], ["low-delay"], None, {}, load)
    assert [codec.label for codec in found] == ["tiny raw", "tiny adaptive"] and not left_out


def rows_of(codec: str, curve: dict[float, float], clips: int = 3) -> list[dict]:
    return [
        {"name": f"{number}", "codec": codec, "rate": f"{bpp}", "bpp": bpp * (1 + number / 100), "psnr": psnr,
         "encode_fps": 1.0, "decode_fps": 1.0}
        for number in range(clips) for bpp, psnr in curve.items()
    ]  # fmt: skip


def test_comparisons_at_equal_rate_and_bd_rate():
    pytest.importorskip("bjontegaard")
    anchor = {0.01: 20.0, 0.02: 24.0, 0.04: 28.0, 0.08: 32.0}
    rows = rows_of("x265 random-access", anchor) + rows_of("t adaptive", {0.02: 25.0, 0.3: 40.0})
    rows += rows_of("x264 random-access", {2 * bpp: psnr for bpp, psnr in anchor.items()})
    modes = {"x265 random-access": "random-access", "x264 random-access": "random-access", "t adaptive": "causal"}
    found = summarize(rows, modes, [])
    pair = next(
        c for c in found["comparisons"] if (c["point"], c["codec"]) == ("t adaptive 0.02", "x265 random-access")
    )
    assert pair["metrics"]["psnr"]["mean"] == pytest.approx(1) and pair["metrics"]["psnr"]["n_outside"] == 0
    outside = next(c for c in found["comparisons"] if c["point"] == "t adaptive 0.3")
    assert outside["metrics"]["psnr"] is None
    rates = found["bd_rate"]["codecs"]
    assert rates["x264 random-access"]["psnr"] == pytest.approx(100, abs=1e-6) and rates["t adaptive"]["psnr"] is None
    assert "rate not reached" in str(comparison_table(found)) and "+100.0" in str(bd_table(found))
    assert table(found)[1][:3] == ["x265 random-access", "0.01", "0.0101"]


def test_the_command(tokenizer_path, videos, tmp_path, monkeypatch, capsys):
    fake(monkeypatch, [])
    output = tmp_path / "out"
    words = ["--codec", "x265", "--codec", tokenizer_path, "--rate", "x265=1,3", "--rate", f"{tokenizer_path}=100"]
    options = ["--size", "96x64", "--frames", "5", "--crops", "1", "--mode", "low-delay", "--clips", "1"]
    assert main(["eval", "compression", str(videos), "-o", str(output), *words, *options]) == 0
    shown = capsys.readouterr().out
    assert "x265 low-delay" in shown and "page.html" in shown
    result = json.loads((output / "result.json").read_text())
    assert result["clips"][0]["size"] == [64, 96] and result["n_total"] == 1
    for wrong in (["--size", "65"], ["--size", "1x2x3"], ["--rate", "x265"]):
        with pytest.raises(SystemExit):
            main(["eval", "compression", str(videos), "-o", str(output), *wrong])


class Means(torch.nn.Module):
    """In place of I3D: logits of two classes, clips of `clip` and darker ones."""

    def __init__(self, weights: str):
        super().__init__()
        assert weights == "i3d.safetensors"

    def forward(self, video_BCTHW: torch.Tensor) -> torch.Tensor:
        light = video_BCTHW.mean((1, 2, 3, 4)) + 0.3
        return torch.stack([light, -light], 1)


def test_agreement_on_clips(tokenizer_path, videos, tmp_path, monkeypatch, capsys):
    """Clips of fewer than 9 frames, which I3D doesn't take, are left out of this metric."""
    fake(monkeypatch, [])
    monkeypatch.setattr(compression, "I3D", Means)
    output = tmp_path / "out"
    options = ["--codec", "x265", "--rate", "x265=0,7", "--mode", "low-delay", "--size", "64", "--crops", "0"]
    command = ["eval", "compression", str(videos), "-o", str(output), *options, "--i3d", "i3d.safetensors"]
    assert main(command) == 0
    assert "i3d_agreement" in capsys.readouterr().out
    result = json.loads((output / "result.json").read_text())
    same, dark = ({row["frames"]: row for row in result["clips"] if row["rate"] == rate} for rate in ("0", "7"))
    assert (same[9]["i3d_agreement"], same[9]["i3d_confidence"]) == (1, 1) and "i3d_agreement" not in same[7]
    assert dark[9]["i3d_agreement"] == 0 and dark[9]["i3d_confidence"] < 1
    point = next(point for point in result["points"] if point["rate"] == "0")
    assert point["i3d_agreement"]["n"] == 1 and point["psnr"]["n"] == 2
    assert result["protocol"]["i3d_agreement"].startswith("1 where I3D")


def test_entropy_models_on_tokens(tokenizer_path, videos, tmp_path, monkeypatch, capsys):
    tokenizer = VideoTokenizer.from_pretrained(tokenizer_path)
    about = {"model": "tiny", "weight_hash": tokenizer.weight_hash}
    PriorNetwork(about, 18, channels=8, blocks=1, hidden=4).save_pretrained(tmp_path / "shipped" / "tiny")
    monkeypatch.setattr(prior, "PRETRAINED", tmp_path / "shipped")
    command = ["eval", "compression", str(videos), "-o", str(tmp_path / "out"), "--tokens", "--codec", tokenizer_path]
    assert main([*command, "--size", "64", "--frames", "7"]) == 0
    result = json.loads((tmp_path / "out" / "tokens.json").read_text())
    (values,) = result["models"].values()
    assert [*values["saved"]] == ["counter", "raw", "adaptive", "prior"] and values["saved"]["raw"]["total"] == 0
    assert [row["bytes"]["raw"] for row in result["clips"]] == [3 * 8 * 12 * 18 // 8] * 2
    assert all(speed > 0 for way in ("encode", "decode") for speed in values[f"{way}_kbs"].values())
    shown = capsys.readouterr().out
    assert format_tokens(result) in shown and f"| {tokenizer_path} | raw | 0.0% | 0.0% |" in shown


def test_a_plain_counter():
    """Against the same counter, token by token."""
    ids = np.random.default_rng(0).integers(0, 4, (3, 4, 5))
    bits = 0.0
    for bit in range(2):
        plane = np.pad(ids >> bit & 1, ((2, 0), (1, 1), (1, 1)))
        counts: dict[tuple, list[float]] = {}
        for t, y, x in np.ndindex(ids.shape):
            at = (t + 2, y + 1, x + 1)
            around = [(-1, 0, 0), (-1, 0, -1), (-1, 0, 1), (-1, -1, 0), (-1, 1, 0), (0, 0, -1), (0, -1, 0), (-2, 0, 0)]
            context = tuple(plane[tuple(np.add(at, step))] for step in around)
            seen = counts.setdefault(context, [0.5, 0.5])
            bits -= np.log2(seen[plane[at]] / sum(seen))
            seen[plane[at]] += 1
    assert codecs.counter_bytes(ids, 2) == pytest.approx(bits / 8)
    assert codecs.counter_bytes(np.zeros((8, 8, 8), np.int64), 18) < 0.02 * 8**3 * 18 / 8
