"""The benchmark runs and its numbers are of the right kind; how large they are is not tested on a shared machine."""

import json
import sys

import pytest
import torch

from vidtok.bench import bench_entropy
from vidtok.cli.main import main
from vidtok.config import TokenizerConfig
from vidtok.tokenizer import VideoTokenizer


def test_entropy_memory_is_that_of_the_half_code_product():
    result = bench_entropy(torch.device("cpu"), bits=18, tokens=1280, runs=2)
    assert 0 < result["best_s"] <= result["median_s"] <= result["worst_s"]
    if sys.platform == "linux":
        # Two [1280, 512] tables are 5 MB; all codes of all tokens would be 1342 MB.
        assert 5 < result["peak_mb"] < 100


def test_command(capsys, tmp_path):
    net = {"kind": "patch", "width": 8, "blocks": 1, "decoder_blocks": 1}
    VideoTokenizer(TokenizerConfig("tiny", net, {"kind": "lfq", "bits": 18})).save_pretrained(tmp_path / "model")
    command = ["bench", "tokenizer", "--model", str(tmp_path / "model"), "--device", "cpu", "--runs", "1"]
    threads = torch.get_num_threads()
    try:
        assert main([*command, "--threads", "1", "--json", str(tmp_path / "bench.json")]) == 0
    finally:
        torch.set_num_threads(threads)
    out = capsys.readouterr().out
    assert "frames/s" in out and "lfq_entropy" in out
    result = json.loads((tmp_path / "bench.json").read_text())
    rows = {(row["what"], row["precision"], row["batch"]): row["frames_per_s"] for row in result["tokenizer"]}
    assert len(rows) == 8 and min(rows.values()) > 0
    assert result["provenance"]["threads"] == 1
    with pytest.raises(SystemExit):
        main(["bench", "probe"])
