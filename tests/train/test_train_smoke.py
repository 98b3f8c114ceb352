"""The smoke recipe: the whole machinery on the CPU, adversarial stage included, without a file."""

import math

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vidtok.cli.main import main
from vidtok.datasets import DigitClips
from vidtok.nets.discriminator import Discriminator
from vidtok.tokenizer import VideoTokenizer
from vidtok.train.losses import generator_loss


def test_the_smoke_recipe(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", "tokenizer", "experiment=smoke", f"run={run}", "trainer.log_seconds=0"]) == 0
    assert "COLLAPSE" not in capsys.readouterr().out
    events = EventAccumulator(str(run / "scalars")).Reload()
    scalars = {name: [e.value for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert all(math.isfinite(value) for values in scalars.values() for value in values)
    wanted = {"entropy_per_sample", "entropy_codebook", "usage_bits", "gradient_norm", "critic_norm"}
    assert wanted | {"discriminator_accuracy", "real_logit", "fake_logit"} <= set(scalars)
    assert {"validation_psnr", "validation_block_ratio"} <= set(scalars)
    assert "reconstruction" in events.Tags()["images"]
    assert sum(scalars["reconstruction"][-10:]) < 0.3 * sum(scalars["reconstruction"][:10])
    assert sum(scalars["explained"][-10:]) > 0.5 * 10  # a picture of one colour explains nothing
    assert min(scalars["usage_bits"]) > 3
    # The generator's term has a gradient through this run's discriminator, for every weight of the decoder.
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    discriminator = Discriminator((5, 32, 32), base=8, channel_multipliers=(2, 4))
    discriminator.load_state_dict(state["critic"])
    tokenizer = VideoTokenizer.from_pretrained(run / "model")
    generator_loss(discriminator(tokenizer(DigitClips(5, 32, 2)[0])[0])).backward()
    assert all(p.grad.abs().sum() > 0 for p in tokenizer.decoder.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in tokenizer.encoder.parameters())
