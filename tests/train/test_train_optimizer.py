"""Optimisers: Muon's arithmetic where a CPU has no bf16."""

import pytest
import torch
from timm.optim import muon as timm_muon

from vidtok.train import state
from vidtok.train.state import create_optimizer


@pytest.mark.parametrize("fast", [True, False])
def test_muon_steps_in_fp32_where_bf16_is_emulated(monkeypatch, fast):
    """Either way a step has singular values near 1."""
    used, timms = [], timm_muon.zeropower_via_newtonschulz
    seen = lambda *args, **kwargs: used.append(timms(*args, **kwargs)) or used[-1]  # noqa: E731
    monkeypatch.setattr(timm_muon, "zeropower_via_newtonschulz", seen)
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
    # Others who use timm in this process get its own.
    assert timm_muon.zeropower_via_newtonschulz is seen


def test_a_weight_on_another_device_is_timms_own_matter(monkeypatch):
    monkeypatch.setattr(state, "has_fast_bf16", lambda: False)
    called = {}
    state._orthogonalize(lambda G, *args, **kwargs: called.update(kwargs), torch.empty(2, 2, device="meta"), 5, [])
    assert called == {}


def test_an_optimizer_with_its_own_steps_can_be_scheduled_and_loaded():
    optimizer = create_optimizer(torch.nn.Linear(4, 4), opt="muon", lr=1.0)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.load_state_dict(optimizer.state_dict())
