"""The benchmark counts right and its results are of the right kind; how fast anything is is not tested here."""

import json
import math
import sys
from functools import partial

import pytest
import torch
from torch import nn

from vidtok.bench.generation import bench_generation, describe
from vidtok.bench.loader import bench_loader, bench_readers
from vidtok.bench.peers import bench_loss
from vidtok.bench.suite import QUICK
from vidtok.bench.table import print_part
from vidtok.bench.timing import convolutions_of, count_flops, peak_mb, ratio, summary, time_together
from vidtok.bench.tokenizer import NAIVE, Clip, Variant, bench_tokenizer, open_tokenizer
from vidtok.bench.training import bench_training
from vidtok.cli.main import main
from vidtok.tokenizer import TokenizerConfig, VideoTokenizer

CPU = torch.device("cpu")
CLIP = Clip(2, 5, 16)
WIDTH, BLOCKS = 8, 2


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    net = {"kind": "patch", "width": WIDTH, "blocks": BLOCKS, "decoder_blocks": 1}
    folder = tmp_path_factory.mktemp("model")
    VideoTokenizer(TokenizerConfig("tiny", net, {"kind": "lfq", "bits": 4})).save_pretrained(folder)
    return str(folder)


def test_works_are_called_in_turns():
    calls = []
    works = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = time_together(works, CPU, runs=3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert [len(values) for values in seconds.values()] == [3, 3]


def test_summary_and_ratio():
    assert summary([3.0, 1.0, 2.0]) == {"median_s": 2, "best_s": 1, "worst_s": 3, "runs": 3}
    # Round by round: the second round was slow for both.
    assert ratio([2.0, 20.0, 6.0], [1.0, 10.0, 2.0]) == {"median": 2, "lowest": 2, "highest": 3, "runs": 3}


def test_flops_of_a_tokenizer_are_those_counted_by_hand(model):
    rows, _ = bench_tokenizer(model, CPU, CLIP, (Variant("fp32"),), runs=1, memory=False)
    tokens = 2 * 2 * 2 * 2  # clips, latents, rows, columns
    embed, head = 3 * 4 * 8 * 8 * WIDTH, WIDTH * 4
    block = 9 * WIDTH * WIDTH + WIDTH * WIDTH  # 3x3 convolution and linear layer
    encode = next(row for row in rows if row["what"] == "encode")
    assert encode["gflop"] * 1e9 == pytest.approx(2 * tokens * (embed + BLOCKS * block + head))
    assert encode["share_of_conv"] == pytest.approx(encode["gflop_per_s"] / encode["conv_gflop_per_s"])
    assert encode["frames_per_s"] == pytest.approx(10 / encode["median_s"])


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_replay_makes_the_same_convolutions(layout):
    net = nn.Sequential(nn.Conv3d(3, 4, 3, stride=(1, 2, 2), bias=False), nn.Conv3d(4, 4, 1), nn.Conv3d(4, 4, 1))
    video = torch.zeros(1, 3, 5, 9, 9)
    flops = count_flops(lambda: net(video))
    positions = 3 * 4 * 4
    assert flops == 2 * positions * (27 * 3 * 4 + 2 * 4 * 4)
    assert count_flops(convolutions_of(lambda: net(video), CPU, layout)) == flops


def test_layouts(model):
    naive, tuned = (open_tokenizer(model, CPU, variant) for variant in (NAIVE, Variant("bf16")))
    weight = naive.encoder.blocks[0].conv.weight
    assert weight.is_contiguous() and weight.dtype == torch.float32
    weight = tuned.encoder.blocks[0].conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and weight.dtype == torch.bfloat16


def _fill(values: int):
    return lambda: torch.ones(values).sum()


def test_peak_is_that_of_a_fresh_process():
    peak = peak_mb(_fill, 10_000_000, device=CPU)
    assert peak is None or 40 <= peak < 80
    assert peak is not None or sys.platform != "linux"


def test_loss_and_its_memory_are_those_of_the_half_code_product():
    result = bench_loss(CPU, bits=18, tokens=1280, peer_tokens=4, runs=1, peer_runs=1)
    own = result["rows"][0]
    if own["peak_mb"] is not None:
        # Two [1280, 512] tables are 5 MB; all codes of all tokens would be 1342 MB.
        assert 5 < own["peak_mb"] < 100
    assert 0 < own["per_sample_nats"] < own["codebook_nats"] <= 18 * math.log(2)
    assert (result["ratio"] is None) == (result["peer"] is None)


def test_peer_has_the_same_entropies():
    pytest.importorskip("vector_quantize_pytorch")
    # Few codes: the peer takes the logarithm of no probability below 1e-5.
    own, ours, theirs = bench_loss(CPU, bits=4, tokens=64, peer_tokens=64, runs=1, peer_runs=1, memory=False)["rows"]
    for term in ("per_sample_nats", "codebook_nats"):
        assert ours[term] == pytest.approx(own[term]) and theirs[term] == pytest.approx(own[term], abs=2e-3)


def test_training_step(model, monkeypatch):
    monkeypatch.setattr("vidtok.bench.training.DISCRIMINATOR_BASE", 2)
    rows = bench_training(model, CPU, CLIP, ("fp32",), runs=2, memory=False)
    assert [(row["what"], row["critic_base"], row["runs"]) for row in rows] == [
        ("step", None, 2),
        ("step with GAN", 2, 2),
    ]


def test_loader_is_measured_against_this_process(monkeypatch):
    monkeypatch.setattr("vidtok.bench.loader.RENDERED", 2)
    monkeypatch.setattr("vidtok.bench.loader.SIDE", 16)
    rows = list(bench_loader(batches=3, runs=1, workers=(1,)))
    kinds = ("labeled", "training", "training, cached")
    assert [(row["of"], row["workers"]) for row in rows] == [(of, n) for of in kinds for n in (0, 1)]
    assert all(row["clips_per_s"] > 0 and row["cpu_ms"] > 0 for row in rows)
    for alone, ours in (rows[:2], rows[2:4], rows[4:]):
        assert alone["share"] == 1 and ours["share"] == ours["clips_per_s"] / alone["clips_per_s"]


def test_readers_are_measured_beside_their_peers(monkeypatch, capsys):
    pytest.importorskip("decord")
    monkeypatch.setattr("vidtok.bench.loader.GOP", 25)
    rows = list(bench_readers(runs=1, heights={128: 4, 256: 3}, long=100))
    *rates, memory = rows
    assert {row["of"] for row in rates} >= {"128p at 128", "256p at 224", "4 clips of 17 frames of 0 minutes at 128"}
    assert {row["reader"] for row in rates} >= {"vidtok", "decord", "pyav"}
    for row in rates:
        assert row["frames_per_s"] > 0 and (row["ratio"] == 1 or row["reader"] != "decord")
        assert row["psnr"] is None or row["psnr"] > 25
    assert memory["of"] == "256p memory" and memory["mb"] > 0
    for row in rows:
        print_part({"loader": row})
    assert "x decord (lowest" in capsys.readouterr().out


def test_loader_needs_files(capsys):
    assert main(["bench", "loader", "digits"]) == 1
    assert "digits is rendered, not decoded" in capsys.readouterr().err
    assert main(["bench", "loss", "videos"]) == 1
    assert "bench loss takes no dataset, videos: loader does" in capsys.readouterr().err


def test_command(model, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("vidtok.bench.suite.peer_versions", lambda: {"magvit2-pytorch": None})
    monkeypatch.setattr("vidtok.bench.suite.QUICK", QUICK.__class__((CLIP,), slow_runs=1, memory=False))
    command = ["bench", "tokenizer", "--quick", "--model", model, "--device", "cpu", "--runs", "1"]
    out = ["--json", str(tmp_path / "bench.json"), "--chart", str(tmp_path / "bench.png")]
    threads = torch.get_num_threads()
    try:
        assert main([*command, "--threads", "1", *out]) == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "frames/s" in printed and "magvit2-pytorch is not installed" in printed
    result = json.loads((tmp_path / "bench.json").read_text())
    rows = {(row["what"], row["precision"], row["layout"]): row["frames_per_s"] for row in result["tokenizer"]}
    assert len(rows) == 6 and min(rows.values()) > 0
    assert result["schema"] == "vidtok.bench/1" and result["provenance"]["threads"] == 1
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert main([*command, *out]) == 1  # they exist
    with pytest.raises(SystemExit):
        main(["bench", "probe"])


def test_streams(model, capsys):
    assert main(["bench", "streaming", "--quick", "--model", model, "--device", "cpu", "--runs", "1"]) == 0
    assert "4 frames of 128 x 128" in capsys.readouterr().out


def test_sampling_is_timed_of_one_trunk_and_without_a_cache_once():
    trunk = {"width": 16, "depth": 1, "heads": 2}
    first, second = bench_generation(CPU, (1, 2), runs=2, grid=(2, 2, 2), trunk=trunk)
    assert (first["batch"], second["batch"], first["tokens"], first["steps"]) == (1, 2, 8, 12)
    assert first["masked"]["runs"] == first["over_cached"]["runs"] == 2 and first["over_uncached"]["runs"] == 1
    assert "uncached" not in second and second["over_unbuffered"]["runs"] == 2
    assert "1 layers x 16" in describe(second) and " x)" in describe(first) and "ms a token" in describe(first)
    (quick,) = bench_generation(CPU, (1,), runs=1, grid=(2, 2, 2), trunk=trunk, uncached=False)
    assert "uncached" not in quick and "compiled" not in quick


def test_compiled_sampling_is_timed_beside_the_cached(monkeypatch):
    monkeypatch.setattr("torch.compile", partial(torch.compile, backend="eager"))
    trunk = {"width": 16, "depth": 1, "heads": 2}
    settings = {"runs": 2, "grid": (2, 2, 2), "trunk": trunk, "uncached": False, "compiled": True}
    (row,) = bench_generation(CPU, (1,), **settings)
    assert row["compiled"]["runs"] == row["over_compiled"]["runs"] == 2 and "; compiled " in describe(row)


def test_a_sampling_benchmark_that_ends_early_leaves_its_rows(tmp_path, monkeypatch):
    row = {"batch": 1, "tokens": 8, "steps": 2, "trunk": {"depth": 1, "width": 8}, "over_cached": {"median": 1.0}}
    row |= {kind: {"median_s": 1.0} for kind in ("masked", "cached")}

    def bench(*_, **__):
        yield row
        raise KeyboardInterrupt

    monkeypatch.setattr("vidtok.bench.generation.bench_generation", bench)
    assert main(["bench", "generate", "--device", "cpu", "--json", str(tmp_path / "r.json")]) == 130
    assert json.loads((tmp_path / "r.json").read_text())["rows"] == [row]
