"""The semantic term: gradients at the codes in the ratio asked for, exact resumption, and no trace where it is off."""

import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from vidtok.tokenizer import TokenizerConfig, VideoTokenizer
from vidtok.train.losses import LossWeights
from vidtok.train.run import train_tokenizer
from vidtok.train.semantic import SemanticLoss, SemanticTokenizer, build_semantic, gradient_weight, resample
from vidtok.train.tokenizer import TokenizerTask

NET = {"kind": "patch", "width": 32, "blocks": 1, "decoder_blocks": 1}


class Means:
    """A teacher: colors of halves of the frames."""

    kind = "frames"
    network = nn.Identity()

    def __call__(self, video):
        return nn.functional.adaptive_avg_pool3d(video, (video.shape[2], 2, 1))


def make_task(ratio, **weights):
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(TokenizerConfig("tiny", NET, {"kind": "lfq", "bits": 18})).train()
    loss = LossWeights(perceptual=0, adversarial=0, semantic_ratio=ratio)
    return TokenizerTask(loss, semantic=SemanticLoss(Means(), **weights)), SemanticTokenizer(tokenizer, 3, 16)


def clip():
    return torch.rand(2, 3, 9, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("weights", [{}, {"cells": 0.0}, {"pooled": 0.0}])
def test_the_gradient_at_the_codes_is_in_ratio_to_that_of_the_reconstruction(weights):
    task, model = make_task(3.0, **weights)
    total, terms, _ = task.terms(model, clip(), step=0)
    wanted = {"semantic_pooled", "semantic_cells"} - {f"semantic_{name}" for name in weights}
    assert {name for name in terms if name.startswith("semantic_")} == wanted | {"semantic_weight"}
    parts = sum(terms[name] for name in wanted)
    without = task.weights.total({name: terms[name] for name in terms if name not in wanted}, 0)
    torch.testing.assert_close(total, without + terms["semantic_weight"] * parts)
    assert not terms["semantic_weight"].requires_grad and 0 < parts < 2 * len(wanted)
    total.backward()
    assert all(p.grad.abs().sum() > 0 for p in model.trunk.parameters())
    decoded, _, codes, cells, pooled = model(clip())
    reconstruction = 5 * (decoded - clip()).square().mean()
    weighted, _ = task.semantic(clip(), (cells, pooled), reconstruction, codes, 3.0)
    norms = [torch.autograd.grad(x, codes, retain_graph=True)[0].norm() for x in (weighted, reconstruction)]
    torch.testing.assert_close(norms[0], 3 * norms[1])


def test_a_term_without_gradient_has_no_weight():
    x = torch.ones(3, requires_grad=True)
    assert gradient_weight(x.sum(), (0 * x).sum(), x, 2.0) == 0


def test_features_are_averaged_where_finer_and_interpolated_where_coarser():
    x = torch.arange(8.0).view(1, 1, 8, 1, 1)
    y = resample(x, (4, 2, 1))
    assert y.shape == (1, 1, 4, 2, 1) and y[0, 0, :, 0, 0].tolist() == y[0, 0, :, 1, 0].tolist() == [0.5, 2.5, 4.5, 6.5]


def test_i3d_sees_images_as_still_clips():
    teacher = Means()
    teacher.kind = "i3d"
    image = clip()[:, :, :1]
    assert torch.equal(SemanticLoss(teacher).features(image), teacher(image.expand(-1, -1, 9, -1, -1)))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "net.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=1000).state_dict(), path)
    return str(path)


TINY = ["data=digits", "data.crop=16", "data.frames=5", "data.batch_size=2", "data.image_batch_size=2"]
TINY += ["model.net.width=16", "model.net.blocks=1", "model.net.decoder_blocks=1", "trainer.workers=0"]
TINY += ["loss.perceptual=0", "trainer.shape=constant", "trainer.log_seconds=0"]


def train(folder, steps=4, **settings):
    """Return (checkpoint, lines of the log)."""
    lines = []
    train_tokenizer(*TINY, run=folder, trainer={"max_steps": steps}, log=lines.append, **settings)
    return torch.load(folder / "checkpoint.pt", weights_only=True), lines


def on(weights, **semantic):
    settings = {"teacher": "test_resnet", "weights": weights, "width": 8}
    return {"loss": {"semantic_ratio": 2.0}, "semantic": settings | semantic}


def test_a_run_resumes_exactly_and_saves_the_tokenizer_alone(weights, tmp_path):
    whole, lines = train(tmp_path / "whole", **on(weights))
    assert any("semantic_pooled" in line and "semantic_cells" in line for line in lines)
    train(tmp_path / "parts", 2, **on(weights))
    parts, _ = train(tmp_path / "parts", **on(weights))
    for part in ("model", "ema"):
        assert whole[part].keys() == parts[part].keys()
        assert all(torch.equal(x, parts[part][name]) for name, x in whole[part].items())
    assert any(name.startswith("trunk.") for name in whole["model"])
    model = VideoTokenizer.from_pretrained(tmp_path / "whole" / "model")
    kept = {name.removeprefix("tokenizer."): x for name, x in whole["ema"].items() if name.startswith("tokenizer.")}
    assert all(torch.equal(x, kept[name]) for name, x in model.state_dict().items())
    with pytest.raises(ValueError, match=r"semantic\.teacher|checkpoint's model"):
        train(tmp_path / "parts", 6)


@pytest.mark.parametrize("zero", ["pooled", "cells"])
def test_every_trained_parameter_has_a_gradient(weights, zero):
    """As DistributedDataParallel expects."""
    settings = {"teacher": "test_resnet", "weights": weights, "pooled": 1.0, "cells": 1.0, "width": 8} | {zero: 0.0}
    task, model = make_task(1.0)
    model, task.semantic = build_semantic(settings, model.tokenizer, clip()[:1])
    task.terms(model, clip(), step=0)[0].backward()
    assert {name for name, p in model.named_parameters() if p.grad is None} == {f"{zero}.weight", f"{zero}.bias"}
    assert all(p.requires_grad == (p.grad is not None) for p in model.parameters())


def test_settings_that_make_no_sense_fail(weights, tmp_path):
    with pytest.raises(ValueError, match=r"give semantic.teacher=NAME .* and semantic.weights=FILE"):
        train(tmp_path, loss={"semantic_ratio": 1.0})
    with pytest.raises(ValueError, match=r"semantic.pooled=0.0 and semantic.cells=0.0: want one above 0"):
        train(tmp_path, **on(weights, pooled=0.0, cells=0.0))
    with pytest.raises(FileNotFoundError, match="no weights at absent"):
        train(tmp_path, **on("absent"))


def test_no_teacher_is_imported_where_the_term_is_off(tmp_path):
    code = (
        "import sys; from vidtok.train.run import train_tokenizer; "
        f"train_tokenizer(*{TINY}, 'trainer.max_steps=1', run={str(tmp_path)!r}); "
        "print([name for name in sys.modules if 'semantic' in name or 'references' in name])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"
