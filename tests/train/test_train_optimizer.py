"""Optimisers: Muon's arithmetic where a CPU has no bf16."""

import pytest
import torch

from vidtok.train import state
from vidtok.train.state import _timms as timms
from vidtok.train.state import create_optimizer


@pytest.mark.parametrize("fast", [True, False])
def test_muon_steps_in_fp32_where_bf16_is_emulated(monkeypatch, fast):
    """Either way a step has singular values near 1."""
    used = []
    monkeypatch.setattr(state, "_timms", lambda *args, **kwargs: used.append(timms(*args, **kwargs)) or used[-1])
    monkeypatch.setattr(state, "has_fast_bf16", lambda: fast)
    torch.manual_seed(0)
    layer = torch.nn.Linear(24, 16, bias=False)
    before = layer.weight.detach().clone()
    muon = create_optimizer(layer, opt="muon", lr=1.0, weight_decay=0.0)
    layer(torch.randn(40, 24)).square().sum().backward()
    muon.step()
    step = before - layer.weight.detach()
    values = torch.linalg.svdvals(step)
    assert values.max() < 2 * values.min()
    assert [found.dtype for found in used] == [torch.bfloat16 if fast else torch.float32]


def test_a_weight_on_another_device_is_timms_own_matter(monkeypatch):
    monkeypatch.setattr(state, "has_fast_bf16", lambda: False)
    called = {}
    monkeypatch.setattr(state, "_timms", lambda G, *args, **kwargs: called.update(kwargs))
    state._orthogonalize(torch.empty(2, 2, device="meta"), 5, [])
    assert called == {}
