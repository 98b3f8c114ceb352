"""Training: the schedules, a run that learns, exact resume, clean stops, and the command's errors."""

import json
import math
import os
import signal
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import vidtok
from vidtok.cli.main import main
from vidtok.configs.compose import compose_config
from vidtok.datasets import demo_clip, write_video
from vidtok.tokenizer import build_tokenizer
from vidtok.train.loop import Schedule
from vidtok.train.losses import LossWeights, block_edge_loss, perceptual_loss, reconstruction_loss
from vidtok.train.run_folder import check_fingerprint
from vidtok.train.tokenizer import training_fingerprint

TINY = ["model.net.width=16", "model.net.blocks=1", "model.net.decoder_blocks=1", "loss=starter", "optimizer=muon"]
TINY += ["data.crop=32", "data.batch_size=2", "data.image_batch_size=2", "trainer.workers=0", "trainer.log_seconds=0"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for seed in range(3):
        write_video(folder / f"{seed}.mp4", demo_clip(frames=25, size=64, seed=seed), fps=25)
    write_video(folder / "still.png", demo_clip(frames=1, size=64, seed=9), fps=25)
    return folder


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held_out")
    write_video(folder / "own.mp4", demo_clip(frames=17, size=64, seed=5), fps=25)
    return folder


def train(clips, run, *overrides):
    return main(["train", "tokenizer", f"data.root={clips}", f"run={run}", *TINY, *overrides])


def checkpoint(run):
    return torch.load(run / "checkpoint.pt", weights_only=True)


def test_rate_warms_up_and_follows_a_cosine():
    schedule = Schedule(max_steps=1000, warmup_steps=10, final_rate=0.1)
    assert schedule.rate(0, 0) == pytest.approx(0.1, rel=1e-3)
    assert schedule.rate(500, 0) == pytest.approx(0.55)
    assert schedule.rate(1000, 0) == pytest.approx(0.1)
    assert Schedule(max_minutes=2).progress(10**6, 60) == 0.5
    with pytest.raises(ValueError, match=r"trainer\.max_steps or trainer\.max_minutes"):
        Schedule()


def test_weights_are_the_papers_and_entropy_falls_from_three_times():
    weights = LossWeights()
    assert [weights.entropy_weight(step) for step in (0, 1000, 2000, 9000)] == pytest.approx([0.3, 0.2, 0.1, 0.1])
    terms = {name: torch.tensor(1.0) for name in ("reconstruction", "perceptual", "commitment", "entropy", "other")}
    assert weights.total(terms, 2000).item() == pytest.approx(5.0 + 0.1 + 0.25 + 0.1)
    gram = LossWeights(perceptual=0, gram=0.3)
    assert gram.total({"perceptual": torch.tensor(7.0), "gram": torch.tensor(2.0)}, 0).item() == pytest.approx(0.6)


def test_reconstruction_loss_is_the_mean_square():
    assert reconstruction_loss(torch.zeros(1, 3, 1, 2, 2), torch.full((1, 3, 1, 2, 2), 0.5)).item() == 0.25


def test_block_edge_loss_is_the_jump_of_the_error_across_borders():
    """Edges of the original cost nothing, a step of the error at a border its square, one inside a cell nothing."""
    video = torch.rand(1, 3, 5, 16, 24)
    step = torch.zeros_like(video)
    step[..., 8:] = 0.5
    assert block_edge_loss(video, video, (4, 8, 8)) == 0
    assert block_edge_loss(step, 0 * video, (4, 8, 8)) == 0.25 / 2 / 2  # one of two borders, no rows
    assert block_edge_loss(step.roll(3, -1), 0 * video, (4, 8, 24)) == 0
    assert block_edge_loss(video, -video, (4, 16, 24)) == 0  # one cell has no borders


def test_perceptual_loss_looks_at_the_asked_frames():
    seen = []

    def lpips(x, y):
        seen.append(x.shape)
        return (x - y).abs().mean((1, 2, 3))

    a, b = torch.zeros(2, 3, 5, 8, 8), torch.ones(2, 3, 5, 8, 8)
    assert perceptual_loss(lpips, a, b, frames=2).item() == 1
    assert perceptual_loss(lpips, a, b).item() == 1
    assert seen == [(4, 3, 8, 8), (10, 3, 8, 8)]


@pytest.mark.parametrize("quantizer", ["lfq", "lfq-residual", "fsq", "vq"])
def test_a_short_run_learns_and_leaves_everything(clips, held_out, tmp_path, capsys, quantizer):
    overrides = ["trainer.max_steps=60", f"quantizer={quantizer}", f"validation.root={held_out}"]
    overrides += ["trainer.warmup_steps=5"]
    assert train(clips, tmp_path / "run", *overrides) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "l2 " in line]
    losses = [float(line.split("l2 ")[1].split()[0]) for line in lines]
    assert len(losses) == 60 and all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names == {"config.yaml", "run.json", "fingerprint.json", "checkpoint.pt", "model", "scalars", "pictures"}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["torch"] == torch.__version__
    assert list((tmp_path / "run" / "pictures").glob("*.png"))
    events = EventAccumulator(str(tmp_path / "run" / "scalars")).Reload()
    assert [round(e.value, 4) for e in events.Scalars("reconstruction")] == pytest.approx(losses, abs=1e-4)
    assert "validation_psnr" in events.Tags()["scalars"] and "reconstruction" in events.Tags()["images"]
    state = checkpoint(tmp_path / "run")
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in state["ema"].items())
    assert any(not torch.equal(value, state["model"][name]) for name, value in state["ema"].items())
    tokenizer = vidtok.VideoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert tokenizer.encode(demo_clip(frames=5, size=64)).shape == (1, 2, 8, 8)


GAN = [
    "loss.adversarial=0.1",
    "discriminator.base=4",
    "discriminator.channel_multipliers=[2,2]",
    "loss.adversarial_start=2",
]


@pytest.mark.parametrize("extra", [[], GAN], ids=["plain", "adversarial"])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(clips, tmp_path, extra):
    # Each part in a process of its own: what else this one has done may change how it rounds.
    def process(code: list[str], run: str) -> str:
        command = [sys.executable, *code, "train", "tokenizer", f"data.root={clips}", f"run={tmp_path / run}"]
        out = subprocess.run([*command, *TINY, "trainer.max_steps=12", *extra], capture_output=True, text=True)
        assert out.returncode == 0, out.stdout + out.stderr
        return out.stdout

    process(["-m", "vidtok"], "whole")
    script = (
        "import vidtok.train.loop as loop, sys\n"
        "from vidtok.cli.main import main\n"
        "Line = loop.progress_line\n"
        "def line(scalars, state, schedule):\n"
        "    if state.step == 6:\n"
        "        import os, signal; os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return Line(scalars, state, schedule)\n"
        "loop.progress_line = line\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    assert "asked to stop at step 6" in process(["-c", script], "parts")
    assert checkpoint(tmp_path / "parts")["step"] == 6
    assert "resumed from step 6" in process(["-m", "vidtok"], "parts")
    whole, parts = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts")
    assert parts["step"] == whole["step"] == 12
    for part in ("model", "ema", *(["critic"] if extra else [])):
        for name, value in whole[part].items():
            assert torch.equal(value, parts[part][name]), name
    assert torch.equal(whole["logit_averages"], parts["logit_averages"])
    assert whole["logit_averages"].abs().sum() > 0 if extra else True


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_a_batch_and_change_nothing(clips, tmp_path, world):
    """Same weights after six steps as one process, adversarial stage included."""
    settings = ["data.batch_size=4", "data.image_batch_size=4", "trainer.max_steps=6", *GAN]
    train(clips, tmp_path / "one", *settings)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world), "--standalone"]
    command += ["-m", "vidtok", "train", "tokenizer", f"data.root={clips}", f"run={tmp_path / 'many'}"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    out = subprocess.run([*command, *TINY, *settings], capture_output=True, text=True, env=env)
    assert out.returncode == 0, out.stdout + out.stderr
    assert out.stdout.count("done at step 6") == 1
    one, many = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "many")
    for part in ("model", "critic"):
        for name, value in one[part].items():
            assert torch.allclose(value, many[part][name], atol=2e-4), name


def test_the_batch_must_divide(clips, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command += ["-m", "vidtok", "train", "tokenizer", f"data.root={clips}", f"run={tmp_path / 'run'}"]
    settings = [*TINY, "data.batch_size=3", "trainer.max_steps=1"]
    out = subprocess.run([*command, *settings], capture_output=True, text=True)
    assert out.returncode != 0 and "a batch of 3 doesn't divide into 2 equal parts" in out.stderr


def test_a_checkpoint_of_another_model_is_refused(clips, tmp_path, capsys):
    train(clips, tmp_path / "run", "trainer.max_steps=1")
    assert train(clips, tmp_path / "run", "trainer.max_steps=2", "model.net.width=24") == 1
    assert "was filled with another model.net.width (16): give another run=" in capsys.readouterr().err
    assert train(clips, tmp_path / "run", "trainer.max_steps=2", *GAN) == 1
    assert "holds no critic" in capsys.readouterr().err
    (tmp_path / "run" / "fingerprint.json").unlink()  # a folder from before fingerprints
    assert train(clips, tmp_path / "run", "trainer.max_steps=2", "model.net.width=24") == 1
    assert "is of another model" in capsys.readouterr().err


@pytest.mark.parametrize(
    "other",
    ["data.crop=64", "seed=1", "quantizer=fsq", "optimizer=adam", "optimizer.weight_decay=0", "trainer.precision=bf16"],
)
def test_a_run_resumed_with_other_settings_is_refused(tmp_path, other):
    """config.yaml would state settings that the checkpoint doesn't use."""
    before = build_fingerprint(tmp_path)
    check_fingerprint(tmp_path / "run", before)
    with pytest.raises(ValueError, match=rf"another \S*{other.split('=')[0].split('.')[0]}\S* \("):
        check_fingerprint(tmp_path / "run", build_fingerprint(tmp_path, other))


def test_a_run_may_be_retuned(tmp_path):
    check_fingerprint(tmp_path / "run", build_fingerprint(tmp_path))
    changes = ["loss.entropy=0.3", "optimizer.lr=1", "trainer.max_steps=9", "trainer.max_minutes=3"]
    changes += ["trainer.workers=2", "trainer.save_seconds=5", "trainer.log_seconds=5", "validation.clips=3"]
    check_fingerprint(tmp_path / "run", build_fingerprint(tmp_path, *changes))


def build_fingerprint(folder, *overrides):
    settings = ["data=digits", "trainer.max_steps=1", f"run={folder / 'run'}", *TINY, *overrides]
    cfg = compose_config("train_tokenizer", settings)
    plain = OmegaConf.to_container(cfg, resolve=True)
    return training_fingerprint(plain, build_tokenizer(cfg).config)


def test_a_resumed_run_keeps_its_earlier_settings(clips, tmp_path):
    folder = tmp_path / "run"
    train(clips, folder, "trainer.max_steps=1")
    first = (folder / "config.yaml").read_text()
    train(clips, folder, "trainer.max_steps=2", "loss.entropy=0.03")
    assert (folder / "config-until-1.yaml").read_text() == first
    assert "entropy: 0.03" in (folder / "config.yaml").read_text() and checkpoint(folder)["step"] == 2
    (folder / "fingerprint.json").unlink()  # as in folders from before fingerprints
    assert train(clips, folder, "trainer.max_steps=3") == 0 and (folder / "fingerprint.json").exists()
    (folder / "checkpoint.pt").unlink()  # nothing is left of what the other settings made
    assert train(clips, folder, "trainer.max_steps=1", "seed=2") == 0


def test_a_damaged_checkpoint_is_one_line(clips, tmp_path, capsys):
    train(clips, tmp_path / "run", "trainer.max_steps=1")
    file = tmp_path / "run" / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:5000])
    assert train(clips, tmp_path / "run", "trainer.max_steps=2") == 1
    error = capsys.readouterr().err
    assert "checkpoint.pt is damaged" in error and error.startswith("vidtok: ") and error.count("\n") == 1


def test_a_run_goes_on_from_a_trained_model(clips, tmp_path, capsys):
    train(clips, tmp_path / "first", "trainer.max_steps=2")
    overrides = [f"init={tmp_path / 'first' / 'model'}", "trainer.max_steps=1", "optimizer.lr=0", "loss=magvit2"]
    base = [f"data.root={clips}", f"run={tmp_path / 'second'}", "data.crop=32", "data.batch_size=2"]
    assert main(["train", "tokenizer", *base, "data.image_batch_size=2", "trainer.workers=0", *overrides]) == 0
    first = vidtok.VideoTokenizer.from_pretrained(tmp_path / "first" / "model")
    second = checkpoint(tmp_path / "second")["model"]
    assert all(torch.equal(value, second[name]) for name, value in first.state_dict().items())
    assert main(["train", "tokenizer", *base, *overrides, "model=magvit2"]) == 1
    assert "init brings its own model" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_stops_cleanly(clips, tmp_path, number):
    """As Ctrl-C in a terminal and a scheduler's SIGTERM do: the process that decodes batches gets it too."""
    command = [sys.executable, "-m", "vidtok", "train", "tokenizer", f"data.root={clips}", f"run={tmp_path / 'run'}"]
    settings = [*TINY, "trainer.workers=1", "trainer.max_minutes=5"]
    process = subprocess.Popen([*command, *settings], stdout=subprocess.PIPE, text=True, start_new_session=True)
    for line in process.stdout:
        if line.startswith("step 3"):
            break
    os.killpg(process.pid, number)
    rest = process.stdout.read()
    assert process.wait() == 0 and "asked to stop" in rest
    assert checkpoint(tmp_path / "run")["step"] >= 3


def test_bf16_training_is_close_to_fp32(clips, tmp_path):
    losses = {}
    for precision in ("fp32", "bf16"):
        train(clips, tmp_path / precision, "trainer.max_steps=3", f"trainer.precision={precision}")
        events = EventAccumulator(str(tmp_path / precision / "scalars")).Reload()
        losses[precision] = [e.value for e in events.Scalars("reconstruction")]
        assert all(value.dtype == torch.float32 for value in checkpoint(tmp_path / precision)["model"].values())
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02) and losses["bf16"] != losses["fp32"]


def test_emulated_bf16_is_said(clips, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("vidtok.train.loop.has_fast_bf16", lambda: False)
    train(clips, tmp_path / "run", "trainer.max_steps=1", "trainer.precision=bf16")
    assert "trainer.precision=fp32 is quicker here" in capsys.readouterr().out


@pytest.mark.parametrize("checked", ["trainer.log_seconds=0", "trainer.save_steps=1", "trainer.max_steps=3"])
def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(clips, tmp_path, capsys, checked):
    """Looked at when a line, a checkpoint or the end is due, and not in every step."""
    train(clips, tmp_path / "run", "trainer.max_steps=2")
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    bad = ["trainer.log_seconds=1000", "trainer.max_steps=50", "loss.reconstruction=1e39", checked]
    assert train(clips, tmp_path / "run", *bad) == 1
    error = capsys.readouterr().err
    assert "not finite at step 2: " in error and "lower the learning rate" in error
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.max_minuts=3"], "unknown key 'trainer.max_minuts': did you mean 'trainer.max_minutes'?"),
        (["data.rot=x"], "did you mean 'data.root'?"),
        (["model=vidtokt"], "did you mean 'vidtok-t"),
        (["optimizer=moun"], "did you mean 'muon'?"),
        (["trainer.max_steps=1"], "data.root is needed"),
        (["data.root=/nowhere", "trainer.max_steps=1"], "/nowhere"),
        (["data.root={clips}"], "trainer.max_steps or trainer.max_minutes"),
        (["data.root={clips}", "trainer.max_steps=1", "init=vidtok-q"], "no shipped tokenizer"),
        (["nonsense"], "nonsense"),
        (["+trainer.foo=3"], "neither added nor removed"),
        (["data.root={clips}", "trainer.max_steps=0"], "trainer.max_steps is a whole number above 0, and not 0"),
        (
            ["data.root={clips}", "trainer.max_steps=many"],
            "trainer.max_steps is a whole number above 0, and not 'many'",
        ),
        (["data.root={clips}", "trainer.max_steps=1", "trainer.precision=fp8"], "unknown precision 'fp8'"),
        (["data.root={clips}", "init=vidtok-t", "model.net.width=8"], "init brings its own model"),
        (["data.root={clips}", "trainer.max_steps=1", "trainer.accumulate=0"], "in 1 or more parts"),
        (["data.root={clips}", "trainer.max_steps=1", "validation=null"], "validation.root=null watches none"),
        (["data.root={clips}", "trainer.max_steps=1", "validation.root={clips}"], "are in training and validation"),
        (
            ["data.root={clips}", "trainer.max_steps=1", "trainer.save_steps=0"],
            "trainer.save_steps is a whole number above 0, and not 0",
        ),
        (["data.root={clips}", "trainer.max_steps=1", "data.batch_size=0"], "batch_size=0 is no"),
        (["data=digits", "trainer.max_steps=1", "data.batch_size=0"], "batch_size=0 is not a whole number"),
        (["data=digits", "trainer.max_steps=1", "data.batch_size=x"], "data.batch_size is a number, such as 8"),
        (["data=digits", "trainer.max_steps=1", "data.frames=6"], "frames=6 is not 1+4k"),
        (["data=digits", "trainer.max_steps=1", "data.crop=30"], "crop=30 is not a multiple of 8"),
        (["data=digits", "trainer.max_steps=1", "validation.root=digits", "validation.clips=0"], "must be at least 1"),
        (["data=digits", "trainer.max_steps=1", "validation.root=digits", "validation.frames=16"], "not 16: cut it"),
    ],
)
def test_wrong_overrides_are_one_line(overrides, words, clips, tmp_path, capsys):
    overrides = [o.replace("{clips}", str(clips)) for o in overrides]
    assert main(["train", "tokenizer", f"run={tmp_path / 'run'}", *overrides]) == 1
    error = capsys.readouterr().err
    assert words in error and error.startswith("vidtok: ") and error.count("\n") == 1


@pytest.mark.parametrize("experiment", ["vidtok-t", "vidtok-t-r", "vidtok-s"])
def test_experiments_build(experiment, clips, capsys):
    assert main(["train", "tokenizer", f"experiment={experiment}", f"data.root={clips}", "--config"]) == 0
    assert "opt: muon" in capsys.readouterr().out
