"""Branch a run: go on from its checkpoint in another folder, with a learning rate that decays.

A run at a constant rate needs no end. A branch gives it one, from any of its checkpoints, and the run itself can go on.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import PartialState

from vidtok.files import replacing
from vidtok.hub import load_config
from vidtok.tokenizer import SCHEMA, TokenizerConfig
from vidtok.train.run_folder import RunFolder

FILE = "branch.json"
DECAY_SHARE = 0.15  # of all steps, those of the run before the branch included


@dataclass(frozen=True)
class Branch:
    """Where a branch began, as branch.json in its folder stores it.

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
    if not (Path(folder) / "checkpoint.pt").exists() or not (Path(folder) / FILE).exists():
        return None
    return Branch(**json.loads((Path(folder) / FILE).read_text()))


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
    with replacing(folder / FILE, locked=True) as new:
        new.write_text(json.dumps(asdict(branch), indent=2) + "\n")
    RunFolder(folder).save_checkpoint(checkpoint | {"branched": True})
