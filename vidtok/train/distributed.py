"""The processes of one run, as torchrun or a cluster starts them."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from torch import nn

PATIENCE = timedelta(hours=6)  # of the others, while one validates or tests: libraries give up after minutes


def join_processes() -> PartialState:
    """Joins the process group that the environment describes; alone where it describes none."""
    # Without an accelerator, accelerate joins ranks only where it is told to use the CPU, and trains one model each
    # otherwise.
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    return PartialState(cpu=several and not torch.accelerator.is_available(), timeout=PATIENCE)


def only_process(command: str) -> torch.device:
    """The device of a command that trains one model after another, in one process: several would fill its folder with
    each other's. Raises ValueError where torchrun started them."""
    state = join_processes()
    if state.num_processes > 1:
        raise ValueError(f"vidtok {command} is one process, not {state.num_processes}: start it without torchrun")
    return state.device


def is_lost_peer(error: RuntimeError) -> bool:
    """Return whether an exchange failed because another process has ended or can't be reached."""
    # Gloo raises plain RuntimeErrors.
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the model without the wrapper for several processes."""
    return getattr(model, "module", model)


def all_reduce_mean(accelerator: Accelerator, *values: float) -> list[float]:
    """Average values over processes: clocks and signals differ, but decisions that follow from them must not."""
    if accelerator.num_processes == 1:
        return list(values)
    return accelerator.reduce(torch.tensor([float(v) for v in values], device=accelerator.device), "mean").tolist()
