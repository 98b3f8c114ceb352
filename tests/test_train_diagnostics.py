"""What a person watches of a run, and the other perceptual distance, against their formulas."""

import math

import pytest
import timm
import torch
from safetensors.torch import save_file

from vidtok.logits import LogitDistance, logit_distance
from vidtok.train.loss import LossWeights
from vidtok.train.tokenizer import TokenizerTask, usage_bits


def test_usage_is_the_entropy_of_the_ids():
    assert usage_bits(torch.zeros(2, 3, 4, 4, dtype=torch.long)).item() == 0
    assert usage_bits(torch.arange(64).view(1, 4, 4, 4)).item() == pytest.approx(6)
    assert usage_bits(torch.tensor([7, 7, 7, 1])).item() == pytest.approx(-0.75 * math.log2(0.75) + 0.25 * 2)


def test_a_collapsed_codebook_is_named():
    task, scalars = TokenizerTask(LossWeights()), {"reconstruction": 0.1, "usage_bits": 0.2}
    assert "used 0.20  COLLAPSE" in task.progress(scalars)
    assert "COLLAPSE" not in task.progress(scalars | {"usage_bits": 9.0})


def test_logit_distance_is_the_mean_square():
    assert logit_distance(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])).tolist() == [2.5]


def test_logits_of_a_timm_classifier_from_a_file(tmp_path):
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=1000)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    distance = LogitDistance("test_resnet", tmp_path / "net.safetensors").train()
    x, y = torch.rand(2, 3, 224, 224) * 2 - 1, torch.rand(2, 3, 224, 224) * 2 - 1
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    logits = [net.eval()((v / 2 + 0.5 - mean) / std) for v in (x, y)]
    assert torch.allclose(distance(x, y), ((logits[0] - logits[1]) ** 2).mean(1), rtol=1e-4)
    small = (torch.rand(1, 3, 32, 32) * 2 - 1).requires_grad_()
    distance(small, torch.zeros_like(small)).sum().backward()
    assert small.grad.abs().sum() > 0 and all(p.grad is None for p in distance.parameters())
    with pytest.raises(ValueError, match="does not hold the weights of 'resnet18'"):
        LogitDistance("resnet18", tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="timm has no classifier 'resnet5'"):
        LogitDistance("resnet5", tmp_path / "net.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no weights at"):
        LogitDistance("test_resnet", tmp_path / "none.safetensors")
