"""trainer.strategy=fsdp: a model divided among processes trains as one process does, and its files are whole."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vidtok.cli.main import main
from vidtok.configs.compose import compose_config, to_dict
from vidtok.extraction import Record, RecordMeta, open_writer
from vidtok.tokenizer import TokenizerConfig, VideoTokenizer
from vidtok.train.curves import read_scalars
from vidtok.train.loop import TrainerOptions

COMMON = ["trainer.workers=0", "trainer.log_seconds=0", "trainer.shape=constant", "trainer.warmup_steps=2"]
GENERATOR = ["train", "generator", "data.source=digits", "data.frames=9", "data.size=32", "data.batch_size=4"]
GENERATOR += ["size.width=32", "size.depth=2", "size.heads=2", "samples=2", "sampling.steps=1", *COMMON]
TOKENIZER = ["train", "tokenizer", "data=digits", "data.crop=32", "data.batch_size=4", "data.image_batch_size=4"]
TOKENIZER += ["model.net.width=16", "model.net.blocks=1", "model.net.decoder_blocks=1", "quantizer=vq"]
TOKENIZER += ["loss=starter", "validation.root=digits", *COMMON]


def train_sharded(command, run, steps):
    """Train with two processes; return the output of the launcher."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "vidtok"]
    settings = ["trainer.strategy=fsdp", f"trainer.max_steps={steps}", f"run={run}"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *command, *settings], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", [GENERATOR, TOKENIZER], ids=["generator", "tokenizer"])
def test_a_divided_model_trains_like_a_whole_one(command, tmp_path):
    """Same weights, averages and shapes of the optimizer's state after three steps, the last one of a resumed run."""
    command = [*command, "optimizer=sgd"]
    assert main([*command, "trainer.max_steps=3", f"run={tmp_path / 'one'}"]) == 0
    assert "done at step 2" in train_sharded(command, tmp_path / "two", 2)
    assert "resumed from step 2" in (out := train_sharded(command, tmp_path / "two", 3)) and "done at step 3" in out
    one, two = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("one", "two"))
    assert one["step"] == two["step"] == 3
    for part in ("model", "ema"):
        assert one[part].keys() == two[part].keys()
        for name, value in one[part].items():
            torch.testing.assert_close(two[part][name], value, atol=1e-5, rtol=0, msg=name)
    for number, state in one["optimizer"]["state"].items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                assert two["optimizer"]["state"][number][name].shape == value.shape, name
    exported = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two")]
    for name, value in exported[0].items():
        torch.testing.assert_close(exported[1][name], value, atol=1e-5, rtol=0, msg=name)
    # One process goes on with what two have left.
    assert main([*command, "trainer.max_steps=4", f"run={tmp_path / 'two'}"]) == 0


@pytest.mark.slow
def test_muon_has_the_losses_of_one_process(tmp_path, capsys):
    """Not the same weights: Newton-Schulz iterations in bf16 magnify the rounding of gradients."""
    assert main([*GENERATOR, "optimizer=muon-tokens", "trainer.max_steps=4", f"run={tmp_path / 'one'}"]) == 0
    out = train_sharded([*GENERATOR, "optimizer=muon-tokens"], tmp_path / "two", 4)
    one, two = ([float(loss) for loss in re.findall(r" loss (\S+)", text)] for text in (capsys.readouterr().out, out))
    assert len(one) == 4 and two == pytest.approx(one, rel=2e-3)


# Recipe -> tokenizer, grid of tokens: 4 x 4 in space for the paper's 16 x 16.
RECIPES = {
    "k600": ("magvit2", (5, 4, 4)), "ucf101": ("magvit2", (5, 4, 4)), "imagenet-256": ("magvit2-image-16", (1, 4, 4)),
    "imagenet-512": ("magvit2-image-32", (1, 4, 4)),
}  # fmt: skip
# What else is smaller than in the recipe: the trunk, as narrow as its 16 heads allow, and no processes read tokens.
REDUCED = ["size.width=96", "size.depth=2", "trainer.workers=0"]


def write_tokens(folder, tokenizer, grid):
    """Write token files of 24 clips of random tokens in two classes, and an untrained tokenizer that they are of."""
    model = to_dict(compose_config("train_tokenizer", [f"model={tokenizer}", "data.root=x"]).model)
    model["net"] |= {"base": 4, "blocks": 1}
    tokenizer = VideoTokenizer(TokenizerConfig(**model))
    tokenizer.save_pretrained(folder / "tokenizer")
    (t, h, w), (s_t, s_h, s_w) = grid, tokenizer.stride
    frames, size = 1 + s_t * (t - 1), (s_h * h, s_w * w)
    (folder / "tokens").mkdir()
    writer = open_writer(folder / "tokens", "npz")
    for i in range(24):
        ids = np.random.default_rng(i).integers(2**18, size=grid, dtype=np.uint32)
        meta = RecordMeta(
            feature="ids", model="test", weight_hash=tokenizer.weight_hash, precision="fp32", bits=18,
            stride=tokenizer.stride, dtype="uint32", fps=25, frames=frames, size=size, coded_size=size,
            native_size=size, native_fps=25, source=f"{i}.mp4", source_bytes=99, reader="pyav", bytes_per_token=4.0,
        )  # fmt: skip
        writer.write([Record(f"{i}.mp4", "ab"[i % 2], None, ids, np.arange(frames) / 25, meta)])
    writer.close()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_published_recipes_divided_have_the_losses_of_one_process(recipe, tmp_path):
    """Two steps from token files with the batch, precision, dropout, optimizer and schedule of the recipe."""
    write_tokens(tmp_path, *RECIPES[recipe])
    command = ["train", "generator", f"experiment=generator/{recipe}", f"tokenizer={tmp_path / 'tokenizer'}"]
    command += [f"data.features={tmp_path / 'tokens'}", *REDUCED, "trainer.log_seconds=0"]
    # One process takes a batch in the same four parts as two do in two each, so that dropout draws the same.
    assert main([*command, "trainer.max_steps=2", "trainer.accumulate=4", f"run={tmp_path / 'one'}"]) == 0
    assert "done at step 2" in train_sharded(command, tmp_path / "two", 2)
    one, two = (read_scalars(tmp_path / name) for name in ("one", "two"))
    for name in ("loss", "bits", "accuracy", "gradient_norm"):
        assert len(one[name][1]) == 2 and two[name][1] == pytest.approx(one[name][1], rel=1e-5), name


def test_unknown_strategy():
    with pytest.raises(ValueError, match=r"unknown trainer.strategy 'fsdp2': did you mean 'fsdp'"):
        TrainerOptions(strategy="fsdp2")
