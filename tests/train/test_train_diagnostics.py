"""What a person watches of a run, and the other perceptual distance, against their formulas."""

import math

import pytest
import timm
import torch
from safetensors.torch import save_file

from vidtok.configs.compose import compose_config
from vidtok.nets.discriminator import Discriminator
from vidtok.tokenizer import TokenizerConfig, VideoTokenizer
from vidtok.train.losses import LossWeights
from vidtok.train.perceptual import LogitDistance, build_perceptual, logit_distance
from vidtok.train.tokenizer import TokenizerTask, read_fixed_clips, usage_bits


def test_usage_is_the_entropy_of_the_ids():
    assert usage_bits(torch.zeros(2, 3, 4, 4, dtype=torch.long)).item() == 0
    assert usage_bits(torch.arange(64).view(1, 4, 4, 4)).item() == pytest.approx(6)
    assert usage_bits(torch.tensor([7, 7, 7, 1])).item() == pytest.approx(-0.75 * math.log2(0.75) + 0.25 * 2)


def test_a_collapsed_codebook_is_named():
    task, scalars = TokenizerTask(LossWeights()), {"reconstruction": 0.1, "usage_bits": 0.2}
    assert "used 0.20  COLLAPSE" in task.progress(scalars)
    assert "COLLAPSE" not in task.progress(scalars | {"usage_bits": 9.0})


def test_validation_at_several_sizes(tmp_path):
    clips = read_fixed_clips("digits", clips=2, frames=5, size=[32, 64], stride=(4, 8, 8))
    assert [clip.shape[-1] for clip in clips] == [32, 32, 64, 64]

    class Copy:
        stride = (4, 8, 8)

        def encode(self, video):
            return video

        def decode(self, ids):
            return ids + 0.02 * (ids.shape[-1] == 64)

    class Run:
        scalars, pictures = {}, []

        def save_scalars(self, scalars, step):
            self.scalars |= scalars

        def save_picture(self, name, image, step):
            self.pictures.append(name)
            return name

    line = TokenizerTask(LossWeights(), fixed_clips=clips).validate(Copy(), run := Run(), 1)
    assert run.scalars == pytest.approx({
        "validation_psnr_32": 10 * math.log10(4e12), "validation_block_ratio_32": 1,
        "validation_psnr_64": 40, "validation_block_ratio_64": 1,
    }, rel=1e-4)  # fmt: skip
    assert run.pictures == ["reconstruction_32", "reconstruction_64"] and "validation_64 40.00 dB" in line
    assert TokenizerTask(LossWeights()).validate(Copy(), run, 1) is None
    for sizes in (64, [32, 64]):
        assert compose_config("train_tokenizer", ["data=digits", f"validation.size={sizes}"]).validation.size == sizes
    with pytest.raises(ValueError, match="different sizes"):
        read_fixed_clips("digits", 2, 5, [32, 32], (4, 8, 8))


class FakeLPIPS(torch.nn.Module):
    """Mean differences of images in place of a network's; counts the images."""

    seen = 0

    def with_gram(self, x, y):
        self.seen += len(x)
        return (x - y).abs().mean((1, 2, 3)), (x.mean((1, 2, 3)) - y.mean((1, 2, 3))).square()


def test_the_gram_term_needs_no_perceptual_weight():
    weights = LossWeights(reconstruction=0, perceptual=0, gram=2, commitment=0, entropy=0, perceptual_frames=2)
    task = TokenizerTask(weights, perceptual=(lpips := FakeLPIPS()))
    net = {"kind": "patch", "width": 32, "blocks": 1, "decoder_blocks": 1}
    model = VideoTokenizer(TokenizerConfig("tiny", net, {"kind": "lfq", "bits": 18})).train()
    loss, terms, _ = task.terms(model, torch.rand(1, 3, 5, 16, 16), step=0)
    loss.backward()
    assert lpips.seen == 2 and loss.item() == pytest.approx(2 * terms["gram"].item())
    assert all(p.grad.abs().sum() > 0 for p in model.decoder.parameters())
    line = task.progress({name: term.item() for name, term in terms.items()})
    assert f"gram {terms['gram'].item():.4f}" in line


def test_a_task_holds_nothing_that_trains():
    """All that training changes is in the state: the discriminator comes with each call, and learns nothing from it."""
    task = TokenizerTask(LossWeights(perceptual=0, adversarial=0.1))
    assert not any(isinstance(value, torch.nn.Module) for value in vars(task).values())
    discriminator = Discriminator((5, 16, 16), base=4, channel_multipliers=(2, 2))
    net = {"kind": "patch", "width": 32, "blocks": 1, "decoder_blocks": 1}
    model = VideoTokenizer(TokenizerConfig("tiny", net, {"kind": "lfq", "bits": 18})).train()
    _, terms, _ = task.terms(model, torch.rand(1, 3, 5, 16, 16), step=0, discriminator=discriminator)
    terms["adversarial"].backward()
    assert all(p.grad is None and p.requires_grad for p in discriminator.parameters())
    assert any(p.grad is not None for p in model.decoder.parameters())


def test_a_discriminator_of_images_sees_random_frames():
    task = TokenizerTask(LossWeights(perceptual=0, adversarial=0.1, adversarial_frames=2))
    seen = []

    def discriminator(x):
        seen.append(x)
        return x.mean((1, 2, 3, 4))

    clips = torch.rand(3, 3, 5, 16, 16)
    task.discriminator_terms(discriminator, clips, -clips, torch.zeros(2), step=7)
    (images,) = seen
    assert images.shape == (2 * 3 * 2, 3, 1, 16, 16)
    real, fake = images.detach().chunk(2)
    assert torch.equal(real, -fake)  # the same frames of clips and reconstructions
    frames = [[t for t in range(5) if torch.equal(clips[n // 2, :, t], image[:, 0])] for n, image in enumerate(real)]
    assert frames == [frames[0], frames[1]] * 3 and len({*map(tuple, frames)}) == 2
    drawn = set()
    for step in range(20):
        task.discriminator_terms(discriminator, clips[:1], clips[:1], torch.zeros(2), step)
        drawn |= {t for t in range(5) for image in seen[-1][:2] if torch.equal(clips[0, :, t], image.detach()[:, 0])}
    assert drawn == {*range(5)}


def test_the_gram_term_is_of_lpips_network():
    with pytest.raises(ValueError, match=r"loss.gram=0.1 .* set perceptual=lpips"):
        build_perceptual(compose_config("train_tokenizer", ["data=digits", "loss.gram=0.1", "perceptual=logits"]))
    cfg = compose_config("train_tokenizer", ["data=digits", "loss.gram=0.1", "loss.perceptual=0"])
    with pytest.warns(UserWarning, match="without the perceptual term and the Gram term"):
        assert build_perceptual(cfg) is None


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
    with pytest.raises(ValueError, match=r"does not hold the weights of 'resnet18': bn1.bias is \[32\], not \[64\]$"):
        LogitDistance("resnet18", tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="timm has no classifier 'resnet5'"):
        LogitDistance("resnet5", tmp_path / "net.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no weights at"):
        LogitDistance("test_resnet", tmp_path / "none.safetensors")
