"""Read and write the folder of a training run.

config.yaml      the resolved config; config-until-STEP.yaml, an earlier one of a run that was resumed with others
run.json         command, git hash, versions, machine
checkpoint.pt    state to resume from (tensors and plain values only)
branch.json      of a branch: the run, step and seconds at which it began, see `Branch`
model/           the averaged weights, as the model's `from_pretrained` reads them
scalars/         TensorBoard
pictures/        what the validation draws, by name and step
"""

import json
import math
import os
import platform
import shutil
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import save_image

from vidtok.files import replacing
from vidtok.hub import load_config, rename_keys
from vidtok.provenance import git_hash
from vidtok.tokenizer import SCHEMA, TokenizerConfig


class RunFolder:
    def __init__(self, path: str | Path):
        self.path = Path(path)

    def open(self, config_yaml: str | None, step: int = 0) -> None:
        """Make the folder and begin to write; only the main process of a run does.

        Args:
            config_yaml: the settings; None where nothing is left to train: the folder goes on saying what its model was
                trained with.
            step: that the run goes on from. Other settings than these, that it had until then, are kept.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self.writer = SummaryWriter(str(self.path / "scalars"))
        if config_yaml is None:
            return
        config = self.path / "config.yaml"
        if step and config.exists() and config.read_text() != config_yaml:
            config.replace(self.path / f"config-until-{step}.yaml")
        config.write_text(config_yaml)
        facts = {
            "command": " ".join(sys.argv),
            "git": git_hash(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores",
        }
        (self.path / "run.json").write_text(json.dumps(facts, indent=2) + "\n")

    def load_checkpoint(self) -> dict | None:
        """Return the state saved last, or None at the beginning of a run. Raises ValueError for a damaged file."""
        file = self.path / "checkpoint.pt"
        if not file.exists():
            return None
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{file} is damaged or no checkpoint: delete it to begin anew")
        return torch.load(file, map_location="cpu", weights_only=True)

    def save_checkpoint(self, state: dict) -> None:
        """Write the state to resume from, atomically: a kill at any moment leaves the old or the new one."""
        with replacing(self.path / "checkpoint.pt", locked=True) as new:
            torch.save(state, new)

    def save_model(self, model) -> Path:
        """Write the weights beside the old model/, then swap them (a kill in between leaves model.new/ whole)."""
        new, old, final = self.path / "model.new", self.path / "model.old", self.path / "model"
        shutil.rmtree(new, ignore_errors=True)
        model.save_pretrained(new)
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            final.rename(old)
        new.rename(final)
        shutil.rmtree(old, ignore_errors=True)
        return final

    def save_scalars(self, scalars: dict[str, float], step: int) -> None:
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def save_picture(self, name: str, image_CHW: Tensor, step: int) -> Path:
        """Write an image, float [C, H, W] in [0, 1], to a file and to TensorBoard; return the file."""
        path = self.path / "pictures" / f"{name}-{step:07d}.png"
        path.parent.mkdir(exist_ok=True)
        save_image(image_CHW, path)
        self.writer.add_image(name, image_CHW, step)
        self.writer.flush()
        return path


FINGERPRINT, OLD_FINGERPRINT = "fingerprint.json", "depends_on.json"


def check_fingerprint(folder: Path, facts: Mapping) -> None:
    """Write the fingerprint of a run to its folder, after a comparison with the one that is there.

    Raises:
        ValueError: the folder was filled with other settings, or can't be written.
    """
    files = [folder / name for name in (FINGERPRINT, OLD_FINGERPRINT)]
    if file := next(filter(Path.exists, files), None):
        old, new = rename_keys(json.loads(file.read_text())), json.loads(json.dumps(facts))
        if others := [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]:
            raise ValueError(f"{folder} was filled with another {others[0]} ({old.get(others[0])}): give another run=")
    write_fingerprint(folder, facts)


def write_fingerprint(folder: Path, facts: Mapping) -> None:
    """Write the fingerprint of a run to its folder, which is made if missing. Raises ValueError if it can't be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder} can't be made ({error.strerror}): give another run=") from error
    file = folder / FINGERPRINT
    with replacing(file) as part:
        part.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")


def lasting(trainer: dict) -> dict:
    """Select the trainer's settings that its result depends on: all but those of logging, saving and workers."""
    settings = {key: value for key, value in trainer.items() if not key.startswith(("log", "save", "work"))}
    # Folders from before there were other shapes name none, and go on.
    return {key: value for key, value in settings.items() if (key, value) != ("shape", "cosine")}


BRANCH = "branch.json"
DECAY_SHARE = 0.15  # of all steps of a branch, those of the run before it included


@dataclass(frozen=True)
class Branch:
    """Where a branch began, as branch.json in its folder stores it.

    A branch goes on from the checkpoint of a run in another folder, with a learning rate that decays. A run at a
    constant rate needs no end; a branch gives it one, from any of its checkpoints, and the run itself can go on.

    Attributes:
        run: absolute path of the run that the branch goes on from.
        step, seconds: of the run's checkpoint; the branch counts on from them.
        model: config of the tokenizer, so that the branch resumes without the run.
    """

    run: str
    step: int
    seconds: float
    model: dict

    @property
    def decay_steps(self) -> int:
        """Length of the decay where no other is given."""
        return max(1, math.ceil(self.step * DECAY_SHARE / (1 - DECAY_SHARE)))


def read_branch(folder: str | Path) -> Branch | None:
    """Return where the branch in a folder began; None for no folder, no run, or a run that is no branch."""
    # The checkpoint is copied last. Without it the branch hasn't begun, whatever branch.json says.
    if not (Path(folder) / "checkpoint.pt").exists() or not (Path(folder) / BRANCH).exists():
        return None
    return Branch(**json.loads((Path(folder) / BRANCH).read_text()))


def validate_branch(run: str | Path, folder: str | Path) -> dict:
    """Check that `folder` can be, or already is, a branch of `run`; return the config of its model. Writes nothing.

    Raises:
        ValueError: `run` is no folder of a tokenizer's run or has no checkpoint, or `folder` is that of `run` or holds
            another run.
    """
    source, target = Path(run).resolve(), Path(folder).resolve()
    if source == target:
        raise ValueError(f"branch={run} and run={folder} are the same folder: give a new folder in run=")
    if (target / "checkpoint.pt").exists():
        branch = read_branch(target)
        if branch is None or branch.run != str(source):
            kind = "a run of its own" if branch is None else f"a branch of {branch.run}"
            raise ValueError(f"run={folder} holds {kind}, not a branch of {run}: give a new folder in run=")
        return branch.model
    if not (source / "checkpoint.pt").exists():
        raise ValueError(f"branch={run} holds no checkpoint.pt: give the folder of a run that has saved one")
    config = source / "model" / "config.json"
    if not config.exists():
        raise ValueError(f"branch={run} holds no model/config.json: give the folder of a run that has saved its model")
    return asdict(load_config(config, SCHEMA, TokenizerConfig, "tokenizer"))


def start_branch(run: str | Path, folder: str | Path, processes: PartialState) -> Branch:
    """Copy the checkpoint of `run` to `folder`, unless the branch is there already; return where it began.

    The main process copies. All of them must call this, and all get the same branch point, even while `run` trains on.

    Raises:
        ValueError: see `validate_branch`; also for a damaged checkpoint.
    """
    if processes.is_main_process:
        model = validate_branch(run, folder)
        if read_branch(folder) is None:
            _copy(Path(run).resolve(), Path(folder), model)
    processes.wait_for_everyone()
    branch = read_branch(folder)
    assert branch is not None  # just copied, or there already
    return branch


def _copy(run: Path, folder: Path, model: dict) -> None:
    """Copy the checkpoint. A kill at any moment leaves a whole branch, or one that hasn't begun (see `read_branch`)."""
    checkpoint = RunFolder(run).load_checkpoint()
    assert checkpoint is not None  # `validate_branch` has seen it
    branch = Branch(str(run), checkpoint["step"], checkpoint["seconds"], model)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / BRANCH, locked=True) as new:
        new.write_text(json.dumps(asdict(branch), indent=2) + "\n")
    RunFolder(folder).save_checkpoint(checkpoint | {"branched": True})
