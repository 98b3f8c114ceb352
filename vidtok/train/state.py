"""All that a run needs to go on: one object, one dict."""

from dataclasses import dataclass, field

import torch
from timm.utils import ModelEmaV3
from torch import nn


def average_of(model: nn.Module, decay: float = 0.9999) -> ModelEmaV3:
    """A moving average of the parameters; buffers are copied."""
    # By parameters, not by names: tensors that two modules share have two names, and would be averaged twice.
    return ModelEmaV3(model, decay=decay, use_warmup=True, exclude_buffers=True)


@dataclass
class TrainState:
    """What training changes. Batches and random numbers follow from `step`, so that nothing else is to be kept.

    Attributes:
        model, optimizer: what is trained, with the optimiser at its peak learning rate.
        ema: moving average of the model, what is evaluated and saved.
        critic, critic_optimizer: of an adversarial game, or None.
        logit_averages: [2], moving averages of the critic's mean real and fake logit.
        step: optimiser steps done; seconds: of training, over all parts of the run.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: ModelEmaV3
    critic: nn.Module | None = None
    critic_optimizer: torch.optim.Optimizer | None = None
    logit_averages: torch.Tensor = field(default_factory=lambda: torch.zeros(2))
    step: int = 0
    seconds: float = 0.0

    def _parts(self) -> dict:
        parts = {"model": self.model, "optimizer": self.optimizer, "ema": self.ema.module}
        if self.critic is not None:
            parts |= {"critic": self.critic, "critic_optimizer": self.critic_optimizer}
        return parts

    def to(self, device: torch.device) -> None:
        """Before the optimisers have made their first step or been loaded."""
        for part in (self.model, self.ema, self.critic):
            if part is not None:
                part.to(device)
        self.logit_averages = self.logit_averages.to(device)

    def state_dict(self) -> dict:
        """Tensors and plain values only, as `torch.load(weights_only=True)` wants it."""
        scalars = {"logit_averages": self.logit_averages, "step": self.step, "seconds": self.seconds}
        return {name: part.state_dict() for name, part in self._parts().items()} | scalars

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError where the checkpoint is of another model or lacks a part.

        A checkpoint that `vidtok.train.branch` has copied may lack the critic, which then starts fresh.
        """
        for name, part in self._parts().items():
            if name not in state:
                if state.get("branched") and name in ("critic", "critic_optimizer"):
                    continue
                raise ValueError(f"the checkpoint holds no {name}, it is of other settings: give another run=")
            try:
                part.load_state_dict(state[name])
            except (RuntimeError, ValueError) as error:
                # The first of what may be hundreds of mismatches.
                reason = str(error).strip().splitlines()[-1].strip()
                raise ValueError(
                    f"the checkpoint's {name} is of another model ({reason}): restore its settings or give another run="
                ) from error
        self.logit_averages.copy_(state["logit_averages"])
        self.step, self.seconds = state["step"], state["seconds"]
