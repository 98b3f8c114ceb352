"""Training as a function."""

import pytest
import torch

from vidtok.cli.main import main
from vidtok.errors import UserError
from vidtok.train.run import train_generator, train_tokenizer

TINY = ["model.net.width=16", "model.net.blocks=1", "model.net.decoder_blocks=1", "loss=starter", "data=digits"]
TINY += ["data.crop=32", "data.batch_size=2", "data.image_batch_size=2", "trainer.workers=0", "data.frames=5"]


def test_a_function_trains_like_the_command(tmp_path):
    """It takes hydra overrides and nested settings, mixed."""
    assert main(["train", "tokenizer", *TINY, "trainer.max_steps=2", f"run={tmp_path / 'command'}"]) == 0
    lines = []
    tokenizer = train_tokenizer(*TINY, trainer={"max_steps": 2}, run=tmp_path / "function", log=lines.append)
    assert not tokenizer.training and lines[-1] == f"model: {tmp_path / 'function' / 'model'}"
    one, other = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["model"] for name in ("command", "function")
    )
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"trainer": {"max_step": 2}}, "unknown key 'trainer.max_step': did you mean 'trainer.max_steps'"),
        ({"init": "vidtok-t", "quantizer": "fsq"}, "init brings its own model"),
        ({"init": "vidtok-t", "inflate": "x"}, "give one of init= and inflate=: each says"),
        ({"branch": "runs/a"}, "a branch needs a folder of its own: give run=DIR"),
        ({"branch": "runs/a", "run": "runs/b", "trainer": {"shape": "constant"}}, "leave out trainer.shape="),
    ],
)
def test_wrong_settings_are_found_before_the_work(settings, message):
    with pytest.raises(UserError, match=message):
        train_tokenizer(data="digits", **settings)


def test_a_generator_trains_by_a_function(tmp_path):
    size = {"width": 32, "depth": 1, "heads": 2}
    generator = train_generator(
        data={"source": "digits", "frames": 9, "size": 32, "batch_size": 2},
        size=size,
        trainer={"max_steps": 1, "workers": 0},
        samples=0,
        run=tmp_path,
        log=lambda line: None,
    )
    assert generator.config.kind == "masked" and not generator.training
