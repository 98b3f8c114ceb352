"""The processes of one run, as torchrun or a cluster starts them."""

import os

import torch
from accelerate import PartialState


def join_processes() -> PartialState:
    """Joins the process group that the environment describes; alone where it describes none."""
    # Without an accelerator, accelerate joins ranks only where it is told to use the CPU, and trains one model each
    # otherwise.
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    return PartialState(cpu=several and not torch.accelerator.is_available())
