"""Read and write the folder of a training run.

config.yaml      the resolved config; config-until-STEP.yaml, an earlier one of a run that was resumed with others
run.json         command, git hash, versions, machine
checkpoint.pt    state to resume from (tensors and plain values only)
branch.json      of a branch: the run, step and seconds at which it began, see `vidtok.train.branch`
model/           the averaged weights, as the model's `from_pretrained` reads them
scalars/         TensorBoard
pictures/        what the validation draws, by name and step
"""

import json
import os
import platform
import shutil
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import save_image

from vidtok.files import replacing
from vidtok.hub import rename_keys
from vidtok.provenance import git_hash


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
