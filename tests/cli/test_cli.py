"""The commands, run as `vidtok.cli.main.main([...])` on small files and a tiny tokenizer."""

import io
import json
import subprocess
import sys

import av
import numpy as np
import pytest
import torch

from vidtok.cli.main import VERBS, main
from vidtok.datasets import demo_clip, iter_video, probe_video, read_video, write_video
from vidtok.eval.reconstruction import evaluate
from vidtok.eval.reconstruction.run import spread
from vidtok.extraction import read_npz
from vidtok.extraction.stats import RunLog, RunStats
from vidtok.files import write_json
from vidtok.streaming import pad_chunks
from vidtok.tokenizer import TokenizerConfig, VideoTokenizer

SIZES = {"odd.mp4": (6, 37, 51), "sub/even.mp4": (17, 32, 48), "sub/one.mp4": (1, 24, 24)}  # T, H, W


def save_model(folder, seed):
    torch.manual_seed(seed)
    net = {"kind": "patch", "width": 32, "blocks": 2, "decoder_blocks": 2}
    VideoTokenizer(TokenizerConfig("tiny", net, {"kind": "lfq", "bits": 18})).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), 0)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name, (T, H, W) in SIZES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_video(folder / name, demo_clip(T, 64)[..., :H, :W], 24)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_record(path):
    (record,) = read_npz(path)
    return record


def frames_of(path):
    return torch.cat(list(iter_video(path, size=None, multiple=1)), 2)


def vidtok(capsys, *args, status=0):
    """Runs a command; returns (stdout, stderr)."""
    capsys.readouterr()
    assert main([str(a) for a in args]) == status
    return capsys.readouterr()


def fails(capsys, *args):
    """Runs a command that must end in one line on stderr; returns the line."""
    _, err = vidtok(capsys, *args, status=1)
    assert err.startswith("vidtok: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


def test_encode_and_decode_a_tree(capsys, here, model, videos):
    out, err = vidtok(capsys, "encode", videos, "--model", model, "-o", "tokens")
    assert "encoded 3 of 3 videos, 24 frames" in out and err == ""
    vidtok(capsys, "decode", "tokens", "-o", "decoded", "--model", model)
    for container in ("parquet", "webdataset"):
        vidtok(capsys, "extract", videos, "-o", container, "--container", container, "--model", model)
        vidtok(capsys, "decode", container, "-o", f"from-{container}", "--model", model)
        for name in SIZES:
            ours, theirs = (frames_of(here / folder / name) for folder in (f"from-{container}", "decoded"))
            assert ours.shape == theirs.shape and (ours - theirs).abs().mean() < 0.02  # x264 doesn't repeat itself
        assert "3, 3 records" in vidtok(capsys, "info", container)[0]
    assert "3, 3 records" in vidtok(capsys, "info", "tokens")[0]
    tokenizer = VideoTokenizer.from_pretrained(model)
    for name, (T, H, W) in SIZES.items():
        tokens = read_record((here / "tokens" / name).with_suffix(".npz"))
        padded = torch.cat(list(pad_chunks([frames_of(videos / name)], (4, 8, 8))), 2)
        assert np.array_equal(tokens.features, tokenizer.encode(padded)[0].numpy())
        meta = tokens.meta
        assert (meta.frames, *meta.size) == (T, H, W) and meta.native_size == (H, W) and meta.fps == 24
        assert (meta.model, meta.precision, meta.source) == ("tiny", "fp32", name.rpartition("/")[2])
        assert meta.weight_hash == tokenizer.weight_hash
        assert np.allclose(tokens.timestamps, np.arange(T) / 24)
        decoded = frames_of(here / "decoded" / name)
        assert decoded.shape == (1, 3, T, H, W)
        expected = tokenizer.decode(torch.from_numpy(tokens.features.astype(np.int64))[None])[:, :, :T, :H, :W]
        write_video("expected.mp4", expected, 24)
        assert (decoded - frames_of("expected.mp4")).abs().mean() < 0.02
        assert probe_video(here / "decoded" / name).fps == 24


def test_resizing_resampling_and_stopping(capsys, here, model, videos):
    source = videos / "sub/even.mp4"
    vidtok(capsys, "encode", "--size", 20, "--fps", 12, source, "--max-frames", 6, "-o", "t.npz", "--model", model)
    tokens = read_record("t.npz")
    assert tokens.meta.size == (20, 30) and tokens.meta.coded_size == (24, 32) and tokens.meta.native_size == (32, 48)
    assert tokens.meta.fps == 12 and tokens.meta.native_fps == 24 and tokens.meta.frames == 6
    assert np.allclose(tokens.timestamps, np.arange(6) / 12) and tokens.features.shape == (3, 3, 4)
    vidtok(capsys, "decode", "t.npz", "-o", "t.gif", "--model", model)
    assert frames_of("t.gif").shape == (1, 3, 6, 20, 30)


def test_tiles(capsys, here, model, videos):
    for verb, target in (("encode", "t.npz"), ("reconstruct", "r.mp4")):
        vidtok(capsys, verb, videos / "odd.mp4", "-o", target, "--tile", 32, "--model", model)
    assert read_record("t.npz").meta.tile == 32
    vidtok(capsys, "decode", "t.npz", "-o", "d.mp4", "--tile", 32, "--model", model)
    assert (frames_of("d.mp4") - frames_of("r.mp4")).abs().mean() < 0.02
    assert "multiples of 8" in fails(capsys, "encode", videos, "-o", "x", "--tile", 30, "--model", model)


def test_reconstruct(capsys, here, model, videos):
    vidtok(capsys, "reconstruct", videos, "-o", "out", "--model", model)
    vidtok(capsys, "reconstruct", videos, "-o", "both", "--model", model, "--side-by-side")
    for name, (T, H, W) in SIZES.items():
        assert frames_of(here / "out" / name).shape == (1, 3, T, H, W)
        both = frames_of(here / "both" / name)
        assert both.shape == (1, 3, T, H, 2 * W)
        assert (both[..., :W] - frames_of(videos / name)).abs().mean() < 0.1


def test_bf16_is_recorded_and_compared(capsys, here, model, videos):
    out, _ = vidtok(capsys, "encode", videos, "-o", "t", "--precision", "bf16", "--model", model)
    assert read_record("t/odd.npz").meta.precision == "bf16"
    line = out.splitlines()[-1]
    assert line.startswith("bf16 against fp32: ") and "of 3 videos" in line
    assert float(line.split()[3].rstrip("%")) > 90


def test_one_bad_file_among_good_ones(capsys, here, model, videos):
    bad = here / "in"
    bad.mkdir()
    good = (videos / "odd.mp4").read_bytes()
    for name, data in {
        "a.mp4": good, "cut.mp4": good[: len(good) // 2], "page.mp4": b"<!doctype html><html></html>", "zero.mp4": b"",
    }.items():  # fmt: skip
        (bad / name).write_bytes(data)
    for verb, there in (("encode", ["a.npz", "failures.csv", "settings.json"]), ("reconstruct", ["a.mp4"])):
        out, err = vidtok(capsys, verb, "in", "-o", f"out-{verb}", "--model", model, status=1)
        lines = err.splitlines()
        assert len(lines) == 3 and all(line.startswith("vidtok: in/") for line in lines)
        assert "in/zero.mp4: the file is empty" in err and "1 of 4 " in out and "3 failed" in out
        found = sorted(p.name for p in (here / f"out-{verb}").iterdir() if p.name != ".claims")
        assert found == there  # and no partial file
    command = ["eval", "reconstruction", "in", "--frames", 5, "--size", 32, "--model", model]
    out, err = vidtok(capsys, *command, status=1)
    assert "1 of 4 clips used, 3 failed" in out


def test_progress_as_json_lines(capsys, here, model, videos):
    (here / "in").mkdir()
    (here / "in/a.mp4").write_bytes((videos / "odd.mp4").read_bytes())
    (here / "in/zero.mp4").write_bytes(b"")
    for verb in ("encode", "extract"):
        run = [verb, "in", "-o", verb, "--model", model, "--log-json"]
        out, err = vidtok(capsys, *run, status=1)
        lines = [json.loads(line) for line in err.splitlines()]
        (failure,) = [line for line in lines if line["event"] == "failed"]
        assert failure == {"event": "failed", "file": "in/zero.mp4", "reason": "the file is empty (0 bytes)"}
        last = [line for line in lines if line["event"] == "progress"][-1]
        known = {"total": 2, "done": 1, "skipped": 0, "failed": 1, "damaged": 0, "frames": 6}
        assert last.items() >= known.items() and last["seconds"] > 0 and last["seconds_left"] == 0
        assert last["per_second"] > 0 and last["frames_per_second"] > 0
        assert "1 of 2 videos" in out
        start, end = lines[0], lines[-1]
        assert start["event"] == "start" and start["command"] == verb and start["settings"]["model"] == str(model)
        assert end.items() >= {**known, "event": "end", "status": 1, "error": None, "frames": 6}.items()
        again = [json.loads(line) for line in vidtok(capsys, *run, status=1)[1].splitlines()]
        assert again[0]["settings_hash"] == start["settings_hash"] and again[-1]["skipped"] == 1
    err = vidtok(capsys, *run, "--pool", "max", status=1)[1]
    end = json.loads(err.splitlines()[1])
    assert end["event"] == "end" and end["status"] == 1 and end["error"].startswith("features are pooled")


def test_progress_is_logged_at_intervals(monkeypatch):
    stream, stats = io.StringIO(), RunStats(4)
    monkeypatch.setattr("vidtok.extraction.stats.EVERY", 1e9)
    with pytest.raises(KeyboardInterrupt), RunLog("extract", {}, stream) as log:
        for _ in range(4):
            stats.done += 1
            log.progress(stats)
        raise KeyboardInterrupt
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["event"], line.get("done")) for line in lines] == [
        ("start", None),
        ("progress", 1),
        ("progress", 4),
        ("end", 4),
    ]
    assert (lines[-1]["status"], lines[-1]["error"]) == (130, "KeyboardInterrupt")


def test_a_damaged_video_is_kept_if_asked(capsys, here, model, videos):
    data = bytearray((videos / "sub/even.mp4").read_bytes())
    with av.open(str(videos / "sub/even.mp4")) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][-1]
    data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    (here / "a.mp4").write_bytes(data)
    for verb, result in (("encode", "a.npz"), ("reconstruct", "b.mp4")):
        command = (verb, "a.mp4", "-o", result, "--model", model)
        assert "the stream breaks after" in vidtok(capsys, *command, status=1)[1]
        out, err = vidtok(capsys, *command, "--on-error", "keep")
        assert err.startswith("vidtok: a.mp4: 16 good frames, missing at ") and ", 1 damaged" in out
    record = read_record(here / "a.npz")
    assert record.meta.frames == len(record.timestamps) == frames_of(here / "b.mp4").shape[2] == 16
    assert len(record.meta.missing) == 1 and "missing at" in record.meta.damage


def test_nothing_is_overwritten_unasked(capsys, here, model, videos):
    for output, file in (("t", "t/odd.npz"), ("u.npz", "u.npz")):
        command = ["encode", videos / "odd.mp4", "-o", output, "--model", model]
        vidtok(capsys, *command)
        before = (here / file).stat().st_mtime_ns
        assert "0 of 1 videos" in (line := vidtok(capsys, *command)[0]) and "1 were complete" in line
        assert f"{output} " in (line := fails(capsys, *command, "--size", 24)) and "resize None, not 24" in line
        assert (here / file).stat().st_mtime_ns == before
        vidtok(capsys, *command, "--force")
        assert (here / file).stat().st_mtime_ns > before


def test_tokens_of_other_weights_are_refused(capsys, here, model, videos):
    other = save_model(here / "other", 1)
    vidtok(capsys, "encode", videos / "odd.mp4", "-o", "t.npz", "--model", model)
    line = fails(capsys, "decode", "t.npz", "-o", "d.mp4", "--model", other)
    assert read_record("t.npz").meta.weight_hash in line and "give the model that made them" in line
    assert not (here / "d.mp4").exists()


@pytest.mark.parametrize(
    "args, message",
    [
        (["encode", "nope.mp4"], "nope.mp4: no such file"),
        (["encode", "x*.mp4"], "x*.mp4: no file matches"),
        (["encode", "ok.mp4", "--model", "vidtok-q"], "vidtok-q"),
        (["encode", "ok.mp4", "--precision", "fp17"], "fp17"),
        (["encode", "ok.mp4", "--device", "tpu9"], "tpu9"),
        (["encode", "zero.mp4"], "zero.mp4: the file is empty"),
        (["encode", "page.mp4"], "page.mp4: not a video"),
        (["decode", "ok.mp4"], "ok.mp4: not a file of features"),
        (["reconstruct", "zero.mp4"], "zero.mp4: the file is empty"),
        (["demo", "zero.mp4"], "zero.mp4: the file is empty"),
        (["demo", "nope.mp4"], "nope.mp4: no such file"),
    ],
)
def test_errors_are_one_line(capsys, here, model, videos, args, message):
    (here / "zero.mp4").touch()
    (here / "page.mp4").write_text("<!doctype html><html></html>")
    (here / "ok.mp4").write_bytes((videos / "odd.mp4").read_bytes())
    model_args = [] if "--model" in args else ["--model", model]
    assert message in fails(capsys, *args, "-o", "out", *model_args)


def test_info(capsys, here, model, videos):
    vidtok(capsys, "encode", videos / "odd.mp4", "-o", "t.npz", "--model", model)
    out, _ = vidtok(capsys, "info", "t.npz")
    tokens = 3 * 5 * 7
    assert f"{18 * tokens / (6 * 37 * 51):.4f} bits per pixel" in out and "3 x 5 x 7 = 105" in out
    out, _ = vidtok(capsys, "info", "digits-tokens")
    assert "9: down, growing, left" in out and "vidtok-t, weights" in out and "stride 1" in out
    out, _ = vidtok(capsys, "info", "clips-tokens")
    assert "none: a backbone" in out
    assert "is a backbone, without classes" in fails(capsys, "recognize", videos / "odd.mp4", "--head", "clips-tokens")
    out, _ = vidtok(capsys, "info", model)
    assert VideoTokenizer.from_pretrained(model).weight_hash in out and "18 bits" in out
    out, _ = vidtok(capsys, "info", videos / "odd.mp4")
    assert "37 x 51" in out and "24 frames/s" in out
    assert "nope.mp4" in fails(capsys, "info", "nope.mp4")
    assert "did you mean 'clips-prediction'?" in fails(capsys, "info", "clips-predictoin")
    out, _ = vidtok(capsys, "info", "clips-prediction")
    assert "prefix-2" in out


def test_eval_reconstruction(capsys, here, model, videos):
    command = ["eval", "reconstruction", videos, "--frames", 5, "--size", 32, "--split", "val", "--json", "r/e.json"]
    out, _ = vidtok(capsys, *command, "--model", model, status=1)
    assert "one.mp4: fewer than 5 frames" in out
    assert "2 of 3 clips used, 1 failed" in out and "first 5 frames, short side 32, center crop" in out
    result = json.loads((here / "r/e.json").read_text())
    assert result["protocol"]["split"] == "val" and result["tokenizer"]["name"] == "tiny"
    assert result["n_used"] == 2 and "psnr" in result["metrics"] and result["protocol"]["precision"] == "fp32"
    assert "r/e.json exists" in fails(capsys, *command, "--model", model)
    good = [videos / name for name in sorted(p.name for p in videos.glob("*.mp4"))]
    vidtok(capsys, "eval", "reconstruction", *good, "--frames", 5, "--size", 32, "--model", model, status=0)
    assert [spread(list("abcde"), n) for n in (1, 2, 3, 9)] == [["a"], ["a", "e"], ["a", "c", "e"], list("abcde")]
    command = ["eval", "reconstruction", videos, "--frames", 5, "--size", 32, "--clips", 1, "--json", "r/one.json"]
    vidtok(capsys, *command, "--model", model, status=0)
    result = json.loads((here / "r/one.json").read_text())
    assert (result["n_total"], result["protocol"]["clips"]) == (1, "1 of 3 files, evenly spread")
    same = evaluate(str(videos), model=model, frames=5, size=32, clips=1)
    for key in result.keys() - {"provenance", "wall_time_s"}:
        assert same[key] == result[key], key
    (here / "zero.mp4").touch()
    assert "no clip could be evaluated" in fails(capsys, "eval", "reconstruction", "zero.mp4", "--model", model)


def test_demo(capsys, here, model, videos):
    for _ in range(2):  # over its own files
        out, _ = vidtok(capsys, "demo", "--model", model)
    for word in ("PSNR", "SSIM", "bits per pixel", "codebook", "frames/s", "vidtok-demo/picture.png"):
        assert word in out
    assert read_video("vidtok-demo/original.mp4").shape == read_video("vidtok-demo/reconstruction.mp4").shape
    assert read_record("vidtok-demo/tokens.npz").meta.frames == 33
    assert "generator clips-prediction makes tokens of vidtok-t, not of this model" in out
    assert not (here / "vidtok-demo/continuation.mp4").exists()
    assert probe_video("vidtok-demo/picture.png").width > 800
    vidtok(capsys, "demo", videos / "sub/one.mp4", "-o", "one", "--model", model)
    assert frames_of("one/reconstruction.mp4").shape == (1, 3, 1, 128, 128)
    # In another folder than its own it overwrites nothing unasked, and the clip itself never.
    assert "--force" in fails(capsys, "demo", videos / "sub/one.mp4", "-o", "one", "--model", model)
    vidtok(capsys, "demo", videos / "sub/one.mp4", "-o", "one", "--force", "--model", model)
    before = (here / "one/original.mp4").read_bytes()
    assert "would be overwritten" in fails(capsys, "demo", "one/original.mp4", "-o", "one", "--force", "--model", model)
    assert (here / "one/original.mp4").read_bytes() == before


def test_demo_with_the_shipped_models(capsys, here):
    out, _ = vidtok(capsys, "demo", "-o", "mine")
    assert "mine/actions.mp4" in out and "mine/continuation.mp4" in out and "9 right" in out
    assert read_video("mine/continuation.mp4", size=64).shape == (1, 3, 17, 64, 128)
    for file in ("original.mp4", "reconstruction.mp4", "tokens.npz", "picture.png", "actions.mp4"):
        (here / "mine" / file).unlink()
    assert "continuation.mp4 exists: --force" in fails(capsys, "demo", "-o", "mine")
    assert [file.name for file in (here / "mine").iterdir()] == ["continuation.mp4"]


def test_help_is_quick_and_has_examples(capsys):
    for verb in VERBS:
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        assert stop.value.code == 0 and f"vidtok {verb} " in capsys.readouterr().out
    # Quick, because nothing heavy is imported.
    code = (
        "import sys, vidtok.cli.main as m\n"
        "for verb in m.VERBS:\n"
        "    try: m.main([verb, '--help'])\n"
        "    except SystemExit: pass\n"
        "assert not {'torch', 'av', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_wrong_usage(capsys):
    for args in (["encod"], ["encode"], ["encode", "x.mp4"], ["encode", "x.mp4", "-o", "o", "--size", "0"]):
        with pytest.raises(SystemExit) as stop:
            main(args)
        assert stop.value.code == 2 and "Traceback" not in capsys.readouterr().err


def test_results_are_json_without_infinities(tmp_path):
    write_json(tmp_path / "r.json", {"a": float("inf"), "b": [float("nan"), 1.5], "c": (2,)})
    assert json.loads((tmp_path / "r.json").read_text()) == {"a": "inf", "b": ["nan", 1.5], "c": [2]}
