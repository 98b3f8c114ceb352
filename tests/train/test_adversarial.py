"""The adversarial terms against their formulas, the discriminator, and the game between it and the tokenizer."""

import math

import pytest
import torch

from vidtok.nets.discriminator import BlurPool, Conv, Discriminator
from vidtok.train.losses import accuracy, discriminator_loss, generator_loss, lecam_penalty, r1_penalty

REAL, FAKE = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_terms_are_their_formulas():
    generator = sum(-math.log(sigmoid(x)) for x in (0.5, 3.0)) / 2
    assert generator_loss(FAKE).item() == pytest.approx(generator, rel=1e-5)
    discriminator = sum(-math.log(sigmoid(x)) for x in (1.0, -2.0)) / 2
    discriminator += sum(-math.log(1 - sigmoid(x)) for x in (0.5, 3.0)) / 2
    assert discriminator_loss(REAL, FAKE).item() == pytest.approx(discriminator, rel=1e-5)
    # anchors: real 0.7, fake -0.4
    lecam = ((1.0 + 0.4) ** 2 + 0) / 2 + ((0.7 - 0.5) ** 2 + 0) / 2
    assert lecam_penalty(REAL, FAKE, torch.tensor([0.7, -0.4])).item() == pytest.approx(lecam, rel=1e-5)
    assert accuracy(REAL, FAKE).item() == 0.25


def test_r1_is_the_squared_gradient_norm_at_the_real_clips():
    real = torch.randn(3, 3, 2, 4, 4, requires_grad=True)
    slope = torch.tensor(2.0, requires_grad=True)
    penalty = r1_penalty((slope * real).flatten(1).sum(1), real)
    assert penalty.item() == pytest.approx(4 * 3 * 2 * 16)
    (grad,) = torch.autograd.grad(penalty, slope)
    assert grad.item() == pytest.approx(2 * 2 * 3 * 2 * 16)


def test_blur_pool_averages_then_halves():
    pool = BlurPool(2)
    x = torch.randn(1, 2, 5, 8, 6)
    assert pool(x).shape == (1, 2, 3, 4, 3)
    assert torch.allclose(pool(torch.ones(1, 2, 5, 8, 6)), torch.ones(1, 2, 3, 4, 3))
    taps = torch.tensor([0.25, 0.5, 0.25])
    inner = torch.einsum("thw,t,h,w->", x[0, 1, 1:4, 1:4, 3:6], taps, taps, taps)
    assert pool(x)[0, 1, 1, 1, 2].item() == pytest.approx(inner.item(), abs=1e-6)


def test_the_papers_discriminator_has_68_million_parameters():
    with torch.device("meta"):
        discriminator = Discriminator()
    assert sum(p.numel() for p in discriminator.parameters()) == pytest.approx(68e6, rel=0.01)
    assert discriminator.grid == (1, 4, 4)


def test_an_image_tokenizers_discriminator_is_two_dimensional():
    """The same net on the middle slice of each kernel: what a 3-D one does to a clip of one frame."""
    torch.manual_seed(0)
    flat, solid = (Discriminator((frames, 32, 32), base=4, channel_multipliers=(2, 2)) for frames in (1, 17))
    assert {m.kernel_size[0] for m in flat.modules() if isinstance(m, torch.nn.Conv3d)} == {1}
    state = {name: w if w.ndim < 5 else w[:, :, w.shape[2] // 2, None] for name, w in solid.state_dict().items()}
    state["hidden.weight"] = (
        solid.hidden.weight.unflatten(1, (8, 5, 64)).sum(2).flatten(1)  # its 5 frames are one
    )  # 5 frames of one's pooling
    flat.load_state_dict(state)
    x = torch.randn(2, 3, 1, 32, 32)
    assert torch.allclose(flat(x), solid(x), atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_bf16_gradients_are_those_of_fp32(frames):
    """Of two frames, oneDNN's own padding gave a weight gradient of whatever lay in memory, which this fills."""
    torch.manual_seed(0)
    conv, x = Conv(16, 16, 3), torch.randn(2, 16, frames, 8, 8)
    (expected,) = torch.autograd.grad(conv(x).square().sum(), conv.weight)
    for _ in range(5):
        waste = [torch.full((size,), 1e30) for size in (10**3, 10**4, 10**5)]
        del waste
        with torch.autocast("cpu", torch.bfloat16):
            y = conv(x)
        (grad,) = torch.autograd.grad(y.float().square().sum(), conv.weight)
        assert (grad - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("shape", [(17, 32, 32), (1, 32, 32), (33, 64, 48)])
def test_it_takes_other_sizes_than_it_was_made_for(shape):
    discriminator = Discriminator((17, 32, 32), base=4, channel_multipliers=(2, 2))
    x = torch.randn(2, 3, *shape)
    logits = discriminator(x)
    assert logits.shape == (2,) and logits.dtype == torch.float32
    assert torch.allclose(discriminator(x[1:]), logits[1:], atol=1e-5)


def test_the_generators_loss_reaches_the_clip_through_the_discriminator():
    """magvit2-pytorch's multiscale generator loss never called its discriminator."""
    torch.manual_seed(0)
    discriminator = Discriminator((5, 16, 16), base=4, channel_multipliers=(2, 2))
    clip = torch.randn(1, 3, 5, 16, 16, requires_grad=True)
    (before,) = torch.autograd.grad(generator_loss(discriminator(clip)), clip)
    assert before.abs().sum() > 0
    for parameter in discriminator.parameters():
        parameter.data.mul_(1.5)
    (after,) = torch.autograd.grad(generator_loss(discriminator(clip)), clip)
    assert not torch.allclose(before, after)
