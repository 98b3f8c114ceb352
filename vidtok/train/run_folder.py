"""Folder of a training run.

config.yaml      the resolved config; config-until-STEP.yaml, the config until a run was resumed with another one
run.json         command, git hash, versions, machine
checkpoint.pt    state to resume from (tensors and plain values only)
branch.json      only in a branch: the run, step and seconds at which it began, see `Branch`
model/           the averaged weights, which the model's `from_pretrained` reads
scalars/         TensorBoard
pictures/        pictures of the validation, by name and step
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
    """Files of a training run: config, checkpoint, model, scalars and pictures."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def open(self, config_yaml: str | None, step: int = 0) -> None:
        """Create the folder and start writing; called only in the main process of a run.

        Args:
            config_yaml: the settings; None if the run is already complete, which keeps the settings in the folder.
            step: step from which the run resumes. If the settings until then were different, they are kept in a file.
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
        """Return the last saved state, or None for a new run. Raises ValueError for a damaged file."""
        file = self.path / "checkpoint.pt"
        if not file.exists():
            return None
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{file} is damaged or no checkpoint: delete it to begin anew")
        return torch.load(file, map_location="cpu", weights_only=True)

    def save_checkpoint(self, state: dict) -> None:
        """Write the state to resume from, atomically: a kill at any moment leaves the old or the new file."""
        with replacing(self.path / "checkpoint.pt", locked=True) as new:
            torch.save(state, new)

    def save_model(self, model) -> Path:
        """Write the weights beside the old model/, then swap the two; a kill in between leaves a whole model.new/."""
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
        """Write scalars to TensorBoard."""
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
    """Compare the fingerprint of a run with the one in its folder, then write it.

    Raises:
        ValueError: the folder was created with other settings, or can't be created.
    """
    files = [folder / name for name in (FINGERPRINT, OLD_FINGERPRINT)]
    if file := next(filter(Path.exists, files), None):
        old, new = rename_keys(json.loads(file.read_text())), json.loads(json.dumps(facts))
        if others := [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]:
            raise ValueError(f"{folder} was filled with another {others[0]} ({old.get(others[0])}): give another run=")
    write_fingerprint(folder, facts)


def write_fingerprint(folder: Path, facts: Mapping) -> None:
    """Write the fingerprint of a run to its folder. Raises ValueError if the folder can't be created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder} can't be made ({error.strerror}): give another run=") from error
    file = folder / FINGERPRINT
    with replacing(file) as part:
        part.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")


def lasting(trainer: dict) -> dict:
    """Select the trainer's settings that affect the result: all but those of logging, saving, workers and processes."""
    settings = {key: value for key, value in trainer.items() if not key.startswith(("log", "save", "strategy", "work"))}
    # Folders of versions without other shapes have no "shape", and must still resume.
    return {key: value for key, value in settings.items() if (key, value) != ("shape", "cosine")}


BRANCH = "branch.json"
DECAY_SHARE = 0.15  # default length of the decay as a fraction of all steps, including those before the branch


@dataclass(frozen=True)
class Branch:
    """Branch point of a run, stored as branch.json in the folder of the branch.

    A branch continues from the checkpoint of a run in another folder, with a decaying learning rate. It gives a
    run with a constant learning rate an end, at any of its checkpoints, while the run itself can continue.

    Attributes:
        run: absolute path of the original run.
        step, seconds: step and training time of the checkpoint, from which the branch continues to count.
        model: config of the tokenizer, so that the branch can resume without the original run.
    """

    run: str
    step: int
    seconds: float
    model: dict

    @property
    def decay_steps(self) -> int:
        """Default number of steps of the decay."""
        return max(1, math.ceil(self.step * DECAY_SHARE / (1 - DECAY_SHARE)))


def read_branch(folder: str | Path) -> Branch | None:
    """Return the branch point of the run in a folder; None if there is no run or it is not a branch."""
    # The checkpoint is copied last. Without it the branch has not begun, even if there is a branch.json.
    if not (Path(folder) / "checkpoint.pt").exists() or not (Path(folder) / BRANCH).exists():
        return None
    return Branch(**json.loads((Path(folder) / BRANCH).read_text()))


def validate_branch(run: str | Path, folder: str | Path) -> dict:
    """Check that `folder` can be, or already is, a branch of `run`, without writing; return the config of its model.

    Raises:
        ValueError: `run` is not the folder of a tokenizer's run or has no checkpoint, or `folder` is the same folder or
            holds another run.
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
    """Copy the checkpoint of `run` to `folder`, unless the branch already exists; return the branch point.

    Only the main process copies, but all processes must call this function. All of them get the same branch point, even
    if `run` continues to train.

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
    """Copy the checkpoint; after a kill at any moment the branch is complete or has not begun (see `read_branch`)."""
    checkpoint = RunFolder(run).load_checkpoint()
    assert checkpoint is not None  # `validate_branch` has seen it
    branch = Branch(str(run), checkpoint["step"], checkpoint["seconds"], model)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / BRANCH, locked=True) as new:
        new.write_text(json.dumps(asdict(branch), indent=2) + "\n")
    RunFolder(folder).save_checkpoint(checkpoint | {"branched": True})
