import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vidtok.train.perceptual import LPIPS

WEIGHTS = Path(os.environ.get("VIDTOK_WEIGHTS", "weights"))
FILES = {"vgg": "vgg16.safetensors", "alex": "alexnet.safetensors"}


def images(seed: int, size: int = 64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(2, 3, size, size, generator=generator) * 2 - 1
    return x, (x + 0.3 * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


@pytest.fixture(scope="module")
def random_alex(tmp_path_factory):
    """AlexNet with random convolutions: everything but the absolute scale can be tested without real weights."""
    path = tmp_path_factory.mktemp("weights") / "alexnet.safetensors"
    generator = torch.Generator().manual_seed(0)
    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    state = {}
    for layer, (out, into, kernel) in shapes.items():
        scale = (2 / (into * kernel**2)) ** 0.5
        state[f"features.{layer}.weight"] = scale * torch.randn(out, into, kernel, kernel, generator=generator)
        state[f"features.{layer}.bias"] = torch.zeros(out)
    save_file(state, path)
    return path


@pytest.mark.parametrize("net", FILES)
def test_equals_the_lpips_package(net):
    package = pytest.importorskip("lpips")
    if not (WEIGHTS / FILES[net]).exists():
        pytest.skip(f"no {FILES[net]} in $VIDTOK_WEIGHTS")
    theirs = package.LPIPS(net=net, pnet_rand=True, verbose=False)
    convolutions = load_file(WEIGHTS / FILES[net])
    for name, parameter in theirs.net.named_parameters():  # sliceS.N.weight
        parameter.data.copy_(convolutions["features." + name.split(".", 1)[1]])
    x, y = images(1)
    ours = LPIPS(net, WEIGHTS / FILES[net])
    torch.testing.assert_close(ours(x, y), theirs(x, y).flatten(), rtol=1e-4, atol=1e-6)


def test_equal_images_are_at_distance_zero_and_others_are_not(random_alex):
    metric = LPIPS("alex", random_alex)
    x, y = images(2)
    assert metric(x, x).tolist() == [0.0, 0.0]
    assert (metric(x, y) > 0).all()


def test_gradient_reaches_the_images_only(random_alex):
    metric = LPIPS("alex", random_alex)
    x, y = images(3)
    y.requires_grad_()
    metric(x, y).sum().backward()
    assert y.grad.isfinite().all() and y.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in metric.parameters())


def test_gradient_is_finite_on_black_images(random_alex):
    y = torch.full((1, 3, 64, 64), -1.0, requires_grad=True)
    LPIPS("alex", random_alex)(y.detach() + 0.1, y).sum().backward()
    assert y.grad.isfinite().all()


def test_gram_distance_is_gatys_formula_and_leaves_lpips_alone(random_alex):
    metric = LPIPS("alex", random_alex)
    x, y = images(7)
    distance, gram = metric.with_gram(x, y)
    torch.testing.assert_close(distance, metric(x, y))
    expected = torch.zeros(2)
    activations = [(image - metric.shift) / metric.scale for image in (x, y)]
    for index, layer in enumerate(metric.features):
        activations = [layer(a) for a in activations]
        if index in metric.taps:
            C, places = activations[0].shape[1], activations[0][0, 0].numel()
            a, b = (torch.einsum("bihw,bjhw->bij", v, v) for v in activations)
            expected += ((a - b) ** 2).sum((1, 2)) / (4 * C**2 * places**2) / 5
    torch.testing.assert_close(gram, expected, rtol=1e-4, atol=0)
    assert (gram > 0).all() and metric.with_gram(x, x)[1].tolist() == [0.0, 0.0]


def test_gram_distance_has_a_gradient_and_ignores_places(random_alex):
    metric = LPIPS("alex", random_alex)
    x, y = images(8)
    y.requires_grad_()
    metric.with_gram(x, y)[1].sum().backward()
    assert y.grad.isfinite().all() and y.grad.abs().sum() > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert metric.with_gram(x, y)[1].dtype == torch.float32
    distance, gram = metric.with_gram(x, x.flip(3))
    other, changed = metric.with_gram(x, y)
    assert (gram / distance < changed / other).all()


def test_video_is_the_mean_over_frames(random_alex):
    metric = LPIPS("alex", random_alex)
    x, y = (torch.stack(v, dim=2) for v in zip(images(4), images(5), strict=True))
    expected = (metric(x[:, :, 0], y[:, :, 0]) + metric(x[:, :, 1], y[:, :, 1])) / 2
    torch.testing.assert_close(metric.for_video(x, y), expected)


def test_wrong_input_is_refused(random_alex):
    metric = LPIPS("alex", random_alex)
    x, _ = images(6)
    with pytest.raises(ValueError, match=r"one shape \[B,3,H,W\]"):
        metric(x, x[:1])
    with pytest.raises(ValueError, match="floats"):
        metric(x.to(torch.uint8), x)
    with pytest.raises(ValueError, match=r"\[B,3,T,H,W\]"):
        metric.for_video(x, x)


def test_wrong_weights_are_refused(random_alex, tmp_path):
    with pytest.raises(ValueError, match="legal: vgg, alex"):
        LPIPS("squeeze", random_alex)
    with pytest.raises(FileNotFoundError, match=r"download\.pytorch\.org"):
        LPIPS("vgg", tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="does not hold the convolutions of 'vgg'"):
        LPIPS("vgg", random_alex)


def test_failed_download_says_what_to_do(monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"weights=PATH"):
        LPIPS("vgg")
