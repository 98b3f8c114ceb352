"""State of a training run: model, optimizers, moving average, and the processes that share it.

It also holds activation checkpointing, and timm's Muon at full speed on CPUs without bf16.
"""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial, wraps
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from timm.optim import create_optimizer_v2, muon
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

PATIENCE = timedelta(hours=6)  # timeout of processes that wait while one validates; the default is minutes


def make_ema(model: nn.Module, decay: float = 0.9999) -> ModelEmaV3:
    """Make an exponential moving average of a model's parameters; its buffers are copied."""
    # By parameters, not by names: a tensor that two modules share has two names, and would be averaged twice.
    return ModelEmaV3(model, decay=decay, use_warmup=True, exclude_buffers=True)


@dataclass
class TrainState:
    """State of a run, from which it resumes exactly: batches and random numbers follow from `step`.

    Attributes:
        model: the model in training.
        optimizer: its optimizer, at the peak learning rate.
        ema: moving average of the model, which is evaluated and saved.
        discriminator, discriminator_optimizer: discriminator of adversarial training and its optimizer, or None.
        lecam_ema: [2], moving averages of the discriminator's mean real and fake logit (LeCAM).
        step: optimizer steps done.
        seconds: training time over all resumed parts of the run.

    With `shard`, model, gradients and optimizer state are divided among the processes. The moving average stays whole
    in each of them, since it is validated and exported, and so does the discriminator.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: ModelEmaV3
    discriminator: nn.Module | None = None
    discriminator_optimizer: torch.optim.Optimizer | None = None
    lecam_ema: torch.Tensor = field(default_factory=lambda: torch.zeros(2))
    step: int = 0
    seconds: float = 0.0

    def _parts(self) -> dict:
        parts = {"model": self.model, "optimizer": self.optimizer, "ema": self.ema.module}
        if self.discriminator is not None:
            parts |= {"critic": self.discriminator, "critic_optimizer": self.discriminator_optimizer}
        return parts

    def to(self, device: torch.device) -> None:
        """Move the models to a device. Call it before the optimizers step or load their state."""
        for part in (self.model, self.ema, self.discriminator):
            if part is not None:
                part.to(device)
        self.lecam_ema = self.lecam_ema.to(device)

    @property
    def is_sharded(self) -> bool:
        return isinstance(self.model, FSDPModule)

    def shard(self, device: torch.device, processes: int) -> None:
        """Divide parameters, gradients and optimizer state of the model among the processes (FSDP2).

        The shards are those of the whole state, which all processes hold before; call it after `load_state_dict`.
        """
        mesh = init_device_mesh(device.type, (processes,))
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        # Innermost modules first: what a block doesn't take is sharded with the model.
        for module in (*blocks_of(self.model), self.model):
            sharded_module = fully_shard(module, mesh=mesh)
            if device.type == "cpu":  # gloo has no averages
                sharded_module.set_force_sum_reduction_for_comms(True)
        # The parameters are new objects, which replace the old ones in the optimizer.
        new: dict[str, Any] = dict(self.model.named_parameters())
        for group in self.optimizer.param_groups:
            group["params"] = [new[names[parameter]] for parameter in group["params"]]
        for parameter in list(self.optimizer.state):
            values, sharded = self.optimizer.state.pop(parameter), new[names[parameter]]
            self.optimizer.state[sharded] = {
                key: _shard_like(value, sharded) if isinstance(value, Tensor) else value
                for key, value in values.items()
            }

    def update_sharded_average(self) -> None:
        """Update the moving average, which is whole, with the sharded model."""
        weight = 1 - self.ema.get_decay(self.step)
        with torch.no_grad():
            for average, parameter in zip(self.ema.module.parameters(), self.model.parameters(), strict=True):
                average.lerp_(_whole(parameter), weight)
            for copied, buffer in zip(self.ema.module.buffers(), self.model.buffers(), strict=True):
                copied.copy_(buffer)

    def state_dict(self) -> dict:
        """Return the state as tensors and plain values, which `torch.load(weights_only=True)` accepts.

        A sharded state is gathered: all processes call this together.
        """
        scalars = {"logit_averages": self.lecam_ema, "step": self.step, "seconds": self.seconds}
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return (_gathered(parts) if self.is_sharded else parts) | scalars

    def load_state_dict(self, state: dict) -> None:
        """Load a checkpoint.

        A checkpoint copied by `start_branch` may lack the discriminator, which is then trained from scratch.

        Raises:
            ValueError: the checkpoint is that of another model, or lacks a part.
        """
        for name, part in self._parts().items():
            if name not in state:
                if state.get("branched") and name in ("critic", "critic_optimizer"):
                    continue
                raise ValueError(f"the checkpoint holds no {name}, it is of other settings: give another run=")
            try:
                part.load_state_dict(state[name])
            except (RuntimeError, ValueError) as error:
                # Only the last line: there may be hundreds of mismatches.
                reason = str(error).strip().splitlines()[-1].strip()
                raise ValueError(
                    f"the checkpoint's {name} is of another model ({reason}): restore its settings or give another run="
                ) from error
        self.lecam_ema.copy_(state["logit_averages"])
        self.step, self.seconds = state["step"], state["seconds"]


def create_optimizer(model: nn.Module, **arguments) -> Optimizer:
    """Create an optimizer with `timm.optim.create_optimizer_v2`.

    timm's Muon always runs its Newton-Schulz iterations in bf16. On CPUs that only emulate bf16 they would take most of
    a training step. There this optimizer runs them in fp32.

    Args:
        model: the model whose parameters are optimized.
        arguments: arguments of timm's function (opt, lr, ...).

    Raises:
        ValueError: an optimizer or argument that timm doesn't have.
    """
    optimizer = create_optimizer_v2(model, **arguments)
    if type(optimizer) is muon.Muon:
        optimizer.__class__ = _Muon
    return optimizer


class _Muon(muon.Muon):
    def step(self, closure: Callable | None = None):
        # timm has no argument for the dtype. Replace its function for this step only, so that other code keeps timm's.
        timms = muon.zeropower_via_newtonschulz
        muon.zeropower_via_newtonschulz = partial(_orthogonalize, timms)
        try:
            return super().step(closure)
        finally:
            muon.zeropower_via_newtonschulz = timms


def peak_rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """Return the peak learning rate of each group, including the `lr_scale` that timm leaves to the schedule."""
    return [group["lr"] * group.get("lr_scale", 1.0) for group in optimizer.param_groups]


def has_fast_bf16() -> bool:
    """Return whether this CPU multiplies bf16 matrices in hardware; on x86 that needs AVX-512."""
    # No public function of torch answers this for every kind of CPU; torch's own compiler calls this one.
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _orthogonalize(timms: Callable, G: Tensor, *args, **kwargs) -> Tensor:
    if isinstance(G, DTensor):
        # timm's products of shards, in bf16, give other weights than those of the whole matrix.
        update = _orthogonalize(timms, G.full_tensor(), *args, **kwargs)
        return distribute_tensor(update, G.device_mesh, G.placements, src_data_rank=None)
    if G.device.type == "cpu" and not has_fast_bf16():
        kwargs.setdefault("dtype", torch.float32)
    return timms(G, *args, **kwargs)


def _whole(tensor: Tensor) -> Tensor:
    """Return a sharded tensor as a whole in every process, which all call together; others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _gathered(state):
    """Make all sharded tensors of a nested state whole."""
    if isinstance(state, dict):
        return {key: _gathered(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_gathered(value) for value in state]
    return _whole(state) if isinstance(state, Tensor) else state


def _shard_like(value: Tensor, parameter: DTensor) -> Tensor:
    """Shard a value of an optimizer like its parameter if it has the same shape."""
    if value.shape != parameter.shape:
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of a model: the members of module lists; with nested lists, those of the innermost lists."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return [block for blocks in lists for block in blocks if not _has_list(block)]


def checkpoint_blocks(model: nn.Module) -> None:
    """Enable activation checkpointing: recompute the activations inside blocks in the backward pass.

    Weights, parameter names and results stay the same.

    Raises:
        ValueError: a model without blocks, see `blocks_of`.
    """
    blocks = blocks_of(model)
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no blocks: trainer.checkpoint_activations does nothing for it")
    for block in blocks:
        block.forward = _checkpointed(block.forward)


def _has_list(block: nn.Module) -> bool:
    return any(isinstance(module, nn.ModuleList) for module in block.modules())


def _checkpointed(forward):
    @wraps(forward)
    def again(*inputs, **options):
        if not torch.is_grad_enabled():
            return forward(*inputs, **options)
        return checkpoint(forward, *inputs, use_reentrant=False, **options)

    return again


def build_state(model: nn.Module, plain: dict) -> "TrainState":
    """Build the state of a new run from the groups `optimizer` and `trainer`, with the model in training mode."""

    model.train()
    ema = make_ema(model, plain["trainer"]["ema_decay"])
    return TrainState(model, create_optimizer(model, **plain["optimizer"]), ema)


def join_processes() -> PartialState:
    """Join the process group that the environment describes; without one, return the state of a single process."""
    # On machines without a GPU, accelerate joins the ranks only if it is told to use the CPU. Otherwise every process
    # would train a model of its own.
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    return PartialState(cpu=several and not torch.accelerator.is_available(), timeout=PATIENCE)


def only_process(command: str) -> torch.device:
    """Return the device of a command that runs as a single process, since it trains several models in one folder.

    Args:
        command: name of the command, for the error.

    Raises:
        ValueError: the command was started as several processes.
    """
    state = join_processes()
    if state.num_processes > 1:
        raise ValueError(f"vidtok {command} is one process, not {state.num_processes}: start it without torchrun")
    return state.device


class StopSignal:
    """Turn SIGTERM and Ctrl-C into a request to stop after the current step.

    Within this context the two signals only set `requested`. The previous handlers are restored at its end.
    """

    def __init__(self):
        self.requested = False

    def _request(self, *_) -> None:
        self.requested = True

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.signal(number, self._request) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def is_lost_peer(error: RuntimeError) -> bool:
    """Return whether an exchange failed because another process has ended or can't be reached."""
    # Gloo raises plain RuntimeErrors, which are recognized by their text.
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the model without the wrapper for distributed training."""
    return getattr(model, "module", model)


def all_reduce_mean(accelerator: Accelerator, *values: float) -> list[float]:
    """Average values over processes, so that decisions based on their clocks and signals are the same in all."""
    if accelerator.num_processes == 1:
        return list(values)
    return accelerator.reduce(torch.tensor([float(v) for v in values], device=accelerator.device), "mean").tolist()
