"""Learning rates of each shape, runs without an end, and branches: what they take over, exact resume, and errors."""

import json
import os
import shutil
import signal
import time
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import yaml

from vidtok.cli.main import main
from vidtok.train import loop
from vidtok.train.loop import Clock, Schedule, SharedClock
from vidtok.train.run_folder import Branch, lasting, read_branch

TINY = ["data=digits", "data.crop=16", "data.frames=5", "data.batch_size=2", "data.image_batch_size=2", "loss=starter"]
TINY += ["model.net.width=16", "model.net.blocks=1", "model.net.decoder_blocks=1"]
OPTIONS = ["trainer.workers=0", "trainer.log_seconds=0", "trainer.warmup_steps=1"]
GAN = ["loss.adversarial=0.1", "discriminator.base=4", "discriminator.channel_multipliers=[2,2]"]
DATA, MODEL = TINY[:6], TINY[6:]


def train(run, *overrides):
    model = [] if any(o.startswith("branch=") for o in overrides) else MODEL
    return main(["train", "tokenizer", f"run={run}", *DATA, *model, *OPTIONS, *overrides])


def checkpoint(run):
    return torch.load(run / "checkpoint.pt", weights_only=True)


def differing(a, b):
    """Names of the tensors that are not bitwise the same in two checkpoints."""
    parts = [part for part in ("model", "ema", "critic") if part in a or part in b]
    return [(part, name) for part in parts for name, value in a[part].items() if not torch.equal(value, b[part][name])]


@pytest.fixture
def at_step(monkeypatch):
    """Set what happens when a run reaches a step: `at_step[7] = do`."""
    actions, line = {}, loop.progress_line

    def progress_line(scalars, state, schedule):
        actions.get(state.step, lambda: None)()
        return line(scalars, state, schedule)

    monkeypatch.setattr(loop, "progress_line", progress_line)
    return actions


class Killed(BaseException):
    """No handler of the command catches it, and the loop saves nothing."""


def kill():
    raise Killed


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run of four steps at a constant rate."""
    run = tmp_path_factory.mktemp("source") / "run"
    assert train(run, "trainer.shape=constant", "trainer.max_steps=4") == 0
    return run


def test_constant_warms_up_and_stays():
    schedule = Schedule(shape="constant", warmup_steps=10)
    assert [schedule.rate(step, 1e6) for step in (0, 4, 9, 10**6)] == pytest.approx([0.1, 0.5, 1, 1])
    assert schedule.progress(10**6, 1e6) == 0 and not schedule.has_end and schedule.seconds_left(10, 1e6) is None
    ending = Schedule(shape="constant", max_steps=100, warmup_steps=10)
    assert ending.rate(99, 0) == 1 and ending.progress(50, 0) == 0.5 and ending.has_end


def test_decay_falls_in_a_line_from_the_branch_point():
    schedule = Schedule(
        shape="decay", max_steps=100, final_rate=0.1, warmup_steps=10, start_step=1000, start_seconds=60.0
    )
    assert [schedule.rate(step, 0) for step in (1000, 1050, 1100)] == pytest.approx([1, 0.55, 0.1])
    by_time = Schedule(shape="decay", max_minutes=2, final_rate=0.0, start_step=1000, start_seconds=600.0)
    assert [by_time.rate(0, seconds) for seconds in (600, 660, 720)] == pytest.approx([1, 0.5, 0])
    assert by_time.seconds_left(1001, 630) == pytest.approx(90)


@pytest.mark.parametrize("shape", ["cosine", "decay"])
def test_what_falls_needs_an_end(shape):
    with pytest.raises(ValueError, match=r"trainer\.max_steps or trainer\.max_minutes"):
        Schedule(shape=shape)


def test_an_unknown_shape_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'constant'"):
        Schedule(shape="constnt")
    with pytest.raises(ValueError, match="above 0"):
        Schedule(shape="constant", max_steps=0)


def test_a_decay_is_15_percent_of_the_whole_by_default():
    assert [Branch("", step, 0.0, {}).decay_steps for step in (8500, 17, 1, 0)] == [1500, 3, 1, 1]


def test_folders_from_before_there_were_shapes_go_on():
    assert lasting({"shape": "cosine", "max_steps": 3}) == {"max_steps": 3}
    assert lasting({"shape": "constant", "max_steps": 3}) == {"shape": "constant", "max_steps": 3}


def test_a_constant_run_goes_on_until_it_is_stopped(tmp_path, at_step, capsys):
    at_step[3] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert train(tmp_path / "run", "trainer.shape=constant") == 0
    out = capsys.readouterr().out
    assert "asked to stop at step 3" in out and " left" not in out
    assert checkpoint(tmp_path / "run")["step"] == 3


def test_a_branch_goes_on_exactly(source, tmp_path):
    """At an undiminished rate it ends like the run itself: batches, random numbers, optimizer and averages go on."""
    longer = tmp_path / "longer"
    shutil.copytree(source, longer)
    assert train(longer, "trainer.shape=constant", "trainer.max_steps=8") == 0
    assert train(tmp_path / "new", f"branch={source}", "trainer.max_steps=4", "trainer.final_rate=1") == 0
    ends = checkpoint(longer), checkpoint(tmp_path / "new")
    assert [end["step"] for end in ends] == [8, 8] and not differing(*ends)
    assert ends[1]["seconds"] > checkpoint(source)["seconds"]


def test_a_branch_says_where_it_began_and_decays_by_default(source, tmp_path, capsys):
    before = (source / "checkpoint.pt").read_bytes()
    assert train(tmp_path / "new", f"branch={source}", "optimizer.lr=0.5", "trainer.final_rate=0.2") == 0
    assert "from step 4: the learning rate decays over 1 steps" in capsys.readouterr().out
    saved = json.loads((tmp_path / "new" / "branch.json").read_text())
    assert (saved["run"], saved["step"]) == (str(source), 4) and saved["seconds"] == checkpoint(source)["seconds"]
    config = yaml.safe_load((tmp_path / "new" / "config.yaml").read_text())
    assert (config["trainer"]["shape"], config["trainer"]["max_steps"]) == ("decay", 1)
    assert config["model"]["net"]["width"] == 16
    assert checkpoint(tmp_path / "new")["optimizer"]["param_groups"][0]["lr"] == 0.5
    assert (source / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("killed", "extra"),
    [(5, GAN), (7, []), (7, [*GAN, "loss.adversarial_frames=1"])],
    ids=["before its first checkpoint, with a new discriminator", "after it", "with a discriminator of images"],
)
def test_a_killed_branch_ends_like_an_undisturbed_one(source, tmp_path, at_step, killed, extra):
    run = tmp_path / "source"
    shutil.copytree(source, run)
    settings = [f"branch={run}", "trainer.max_steps=4", "trainer.save_steps=2", *extra]
    assert train(tmp_path / "whole", *settings) == 0
    at_step[killed] = kill
    with pytest.raises(Killed):
        train(tmp_path / "parts", *settings)
    at_step.clear()
    assert checkpoint(tmp_path / "parts")["step"] == (4 if killed == 5 else 6)
    shutil.rmtree(run)  # the branch needs it no more
    assert train(tmp_path / "parts", *settings) == 0
    whole, parts = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts")
    assert whole["step"] == parts["step"] == 8 and not differing(whole, parts)
    assert ("critic" in whole) == bool(extra) and "branched" not in whole


def test_a_branch_killed_while_it_copies_starts_anew(source, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("vidtok.train.run_folder.RunFolder.save_checkpoint", lambda *_: kill())
        with pytest.raises(Killed):
            train(tmp_path / "new", f"branch={source}")
    assert (tmp_path / "new" / "branch.json").exists() and read_branch(tmp_path / "new") is None
    assert train(tmp_path / "new", f"branch={source}") == 0
    assert checkpoint(tmp_path / "new")["step"] == 5


def test_a_branch_without_the_discriminator_drops_it(source, tmp_path):
    assert train(tmp_path / "gan", f"branch={source}", *GAN) == 0
    assert train(tmp_path / "plain", f"branch={tmp_path / 'gan'}") == 0
    assert "critic" in checkpoint(tmp_path / "gan") and "critic" not in checkpoint(tmp_path / "plain")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["branch={tmp}/none"], "holds no checkpoint.pt"),
        (["branch={tmp}/new/../new"], "are the same folder"),
        (["branch={source}", "init=vidtok-t"], "give one of branch= and init="),
        (["branch={source}", "inflate=vidtok-t"], "give one of branch= and inflate="),
        (["branch={source}", "model.net.width=24"], "branch brings its own model"),
        (["branch={source}", "trainer.shape=constant"], "leave out trainer.shape="),
        (["branch={source}", "trainer.precision=fp8"], "unknown precision"),
        (["trainer.shape=decay", "trainer.max_steps=1"], "is for a branch"),
        (["trainer.shape=cosin", "trainer.max_steps=1"], "did you mean 'cosine'"),
    ],
)
def test_wrong_branches_are_one_line(overrides, words, source, tmp_path, capsys):
    overrides = [o.replace("{source}", str(source)).replace("{tmp}", str(tmp_path)) for o in overrides]
    assert train(tmp_path / "new", *overrides) == 1
    error = capsys.readouterr().err
    assert words in error and error.startswith("vidtok: ") and error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_branch_keeps_to_its_folder(source, tmp_path, capsys):
    other, new = tmp_path / "other", tmp_path / "new"
    shutil.copytree(source, other)
    assert main(["train", "tokenizer", *DATA, f"branch={source}"]) == 1
    assert "give run=DIR" in capsys.readouterr().err
    assert train(other, f"branch={source}") == 1
    assert "holds a run of its own" in capsys.readouterr().err
    assert train(new, f"branch={source}") == 0
    assert train(new, f"branch={other}") == 1
    assert f"holds a branch of {source}" in capsys.readouterr().err
    assert train(new, "trainer.max_steps=9") == 1
    assert f"give branch={source} to go on" in capsys.readouterr().err
    shutil.rmtree(other / "model")
    assert train(tmp_path / "third", f"branch={other}") == 1
    assert "holds no model/config.json" in capsys.readouterr().err


def test_a_head_that_is_tested_needs_an_end(tmp_path, capsys):
    data = ["data.source=digits", "data.size=16", "data.protocol=5x1x1x1", "data.train_clips=2", "data.val_clips=1"]
    command = ["eval", "finetune", *data, f"run={tmp_path / 'run'}", "trainer.shape=constant", "data.select=0"]
    assert main(command) == 1
    assert "set trainer.max_steps or trainer.max_minutes" in capsys.readouterr().err


class FakeAccelerator:
    """One of two processes that run alike; counts what they exchange."""

    num_processes, is_main_process, device, exchanges = 2, True, "cpu", 0

    def reduce(self, values, how):
        self.exchanges += 1
        return values


def test_processes_exchange_their_clocks_at_the_log_interval(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stop, accelerator = SimpleNamespace(requested=False), FakeAccelerator()
    shared = SharedClock(accelerator, clock := Clock(log_seconds=4, save_seconds=8), stop)
    seconds, logs, saves = 0.0, [], []
    for step in range(1, 41):
        now += 0.5 if step <= 24 else 1.0
        passed, log, save = shared.tick(clips=2)
        seconds += passed
        if log:
            logs.append(now)
            assert seconds == pytest.approx(now)
            clock.clips_per_second()
        if save:
            saves.append(now)
    assert len(logs) >= 5 and all(4 <= b - a <= 8 for a, b in pairwise(logs))
    assert len(saves) >= 2 and accelerator.exchanges <= 12
    stop.requested = True
    assert not shared.stopping
    for _ in range(10):
        now += 1
        shared.tick(clips=2)
    assert shared.stopping


def test_a_process_alone_asks_nobody(monkeypatch):
    stop, accelerator = SimpleNamespace(requested=False), FakeAccelerator()
    accelerator.num_processes = 1
    shared = SharedClock(accelerator, Clock(log_seconds=0, save_seconds=100), stop)
    passed, log, save = shared.tick(clips=2)
    assert passed >= 0 and log and not save and not shared.stopping and accelerator.exchanges == 0
    stop.requested = True
    assert shared.stopping
