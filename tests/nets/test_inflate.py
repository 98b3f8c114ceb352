"""Inflation: an image tokenizer's weights in a causal video tokenizer."""

import pytest
import torch

from vidtok.nets.inflate import inflate
from vidtok.tokenizer import TokenizerConfig, VideoTokenizer

LFQ = {"kind": "lfq", "bits": 18}
NET = {"kind": "magvit2", "base": 8, "channel_multipliers": [1, 2, 2, 4], "blocks": 1}
IMAGE = NET | {"temporal_downsample": [False] * 3, "depth": 1}


def build(net, quantizer=LFQ, seed=0) -> VideoTokenizer:
    torch.manual_seed(seed)
    tokenizer = VideoTokenizer(TokenizerConfig("test", net, quantizer)).eval()
    for parameter in tokenizer.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return tokenizer


def inflated(**net) -> tuple[VideoTokenizer, VideoTokenizer]:
    image, video = build(IMAGE), build(NET | net, seed=1)
    inflate(image, video)
    return image, video


def picture(seed=0):
    return torch.rand(1, 3, 1, 32, 48, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_kernels_go_into_the_last_slice():
    image, video = inflated()
    weight = video.encoder.stem.weight
    assert weight.shape[2] == 3 and not weight[:, :, :2].any()
    assert torch.equal(weight[:, :, 2:], image.encoder.stem.weight)
    assert torch.equal(video.encoder.layers[0].norm1.weight, image.encoder.layers[0].norm1.weight)


@pytest.mark.parametrize("temporal_downsample", [[False, True, True], [True, True, False], [False, False, False]])
def test_an_image_comes_out_as_from_the_image_model(temporal_downsample):
    image, video = inflated(temporal_downsample=temporal_downsample)
    x = picture()
    assert torch.allclose(video.encode_latents(x), image.encode_latents(x), atol=1e-5)
    assert torch.allclose(video.forward_features(x), image.forward_features(x), atol=1e-5)
    ids = image.encode(x)
    assert torch.allclose(video.decode(ids), image.decode(ids), atol=1e-5)
    assert torch.allclose(video(x)[0], image(x)[0], atol=1e-5)


def test_every_frame_of_a_still_clip_does():
    image, video = inflated()
    x = picture()
    still = x.expand(-1, -1, 9, -1, -1)
    z = image.encode_latents(x)
    assert torch.allclose(video.encode_latents(still), z.expand(-1, -1, 3, -1, -1), atol=1e-5)
    ids = image.encode(x)
    shown = video.decode(ids.expand(-1, 3, -1, -1))
    assert torch.allclose(shown, image.decode(ids).expand(-1, -1, 9, -1, -1), atol=1e-5)


def test_a_latent_of_a_moving_clip_is_its_last_frames():
    image, video = inflated()
    moving = torch.cat([picture(seed) for seed in range(9)], 2)
    assert torch.allclose(video.encode_latents(moving), image.encode_latents(moving[:, :, ::4]), atol=1e-5)


def test_the_inflated_model_is_free_to_learn_motion():
    """The zero slices have gradients, and the image model is not touched."""
    image, video = inflated()
    before = {name: value.clone() for name, value in image.state_dict().items()}
    moving = torch.cat([picture(seed) for seed in range(5)], 2)
    decoded, _, _ = video.train()(moving)
    (decoded - moving).square().mean().backward()
    assert video.encoder.stem.weight.grad[:, :, :2].abs().sum() > 0
    assert video.decoder.head.weight.grad[:, :, :2].abs().sum() > 0
    torch.optim.SGD(video.parameters(), 0.1).step()
    assert all(torch.equal(value, before[name]) for name, value in image.state_dict().items())


@pytest.mark.parametrize(
    ("image", "video", "words"),
    [
        (NET, NET, "depth 1 is inflated"),
        (IMAGE, {"kind": "patch"}, "not .*'magvit2'.* into .*'patch'"),
        (IMAGE | {"base": 4}, NET, r"agree in all but temporal_downsample and depth: \S+ is \[16, 16, .* not \[32, 32"),
        (IMAGE | {"blocks": 2}, NET, "agree in all but temporal_downsample and depth"),
    ],
)
def test_other_pairs_are_refused_and_left_alone(image, video, words):
    model = build(video)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        inflate(build(image), model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
