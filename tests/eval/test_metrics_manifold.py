"""Precision, recall, density and coverage of samples with known answers."""

import pytest
import torch

from vidtok.eval.metrics import frechet
from vidtok.eval.metrics.frechet import manifold_metrics


def normal(count, seed, dim=4):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_samples_of_one_distribution(monkeypatch):
    found = manifold_metrics(normal(1000, 0), normal(1000, 1))
    assert found["precision"] > 0.85 and found["recall"] > 0.85 and found["coverage"] > 0.85
    assert found["density"] == pytest.approx(1, abs=0.1)
    monkeypatch.setattr(frechet, "ROWS", 300)
    assert manifold_metrics(normal(1000, 0), normal(1000, 1)) == pytest.approx(found)


def test_equal_samples():
    same = normal(50, 0)
    found = manifold_metrics(same, same)
    assert found["precision"] == found["recall"] == found["coverage"] == 1 and found["density"] >= 1


def test_a_collapsed_generator_covers_nothing():
    real = normal(500, 0)
    found = manifold_metrics(real, real[7].expand(500, -1))
    assert found["precision"] == 1 and found["recall"] <= 1 / 500 and found["coverage"] < 0.02
    half = manifold_metrics(real, real[real[:, 0] > 0][:200])
    assert half["precision"] == 1 and 0.3 < half["recall"] < 0.75


def test_disjoint_samples():
    found = manifold_metrics(normal(100, 0), normal(90, 1) + 100)
    assert found == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_too_few_samples():
    with pytest.raises(ValueError, match="more than 3 samples"):
        manifold_metrics(normal(3, 0), normal(9, 1))
    with pytest.raises(ValueError, match="one dimension"):
        manifold_metrics(normal(5, 0), normal(5, 1, 3))
