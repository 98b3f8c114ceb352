"""All that a run needs to go on: one object, one dict."""

from dataclasses import dataclass, field

import torch
from timm.utils import ModelEmaV3

from vidtok.tokenizer import VideoTokenizer
from vidtok.train.discriminator import Discriminator


@dataclass
class TrainState:
    """What training changes. Batches and random numbers follow from `step`, so that nothing else is to be kept.

    Attributes:
        tokenizer, optimizer: what is trained.
        ema: moving average of the tokenizer, what is evaluated and saved as the model.
        discriminator, discriminator_optimizer: of the adversarial stage, or None.
        logit_averages: [2], moving averages of the discriminator's mean real and fake logit, for LeCAM.
        step: optimiser steps done; seconds: of training, over all parts of the run.
    """

    tokenizer: VideoTokenizer
    optimizer: torch.optim.Optimizer
    ema: ModelEmaV3
    discriminator: Discriminator | None = None
    discriminator_optimizer: torch.optim.Optimizer | None = None
    logit_averages: torch.Tensor = field(default_factory=lambda: torch.zeros(2))
    step: int = 0
    seconds: float = 0.0

    def _parts(self) -> dict:
        parts = {"tokenizer": self.tokenizer, "optimizer": self.optimizer, "ema": self.ema.module}
        if self.discriminator is not None:
            parts["discriminator"] = self.discriminator
            parts["discriminator_optimizer"] = self.discriminator_optimizer
        return parts

    def state_dict(self) -> dict:
        """Tensors and plain values only, as `torch.load(weights_only=True)` wants it."""
        scalars = {"logit_averages": self.logit_averages, "step": self.step, "seconds": self.seconds}
        return {name: part.state_dict() for name, part in self._parts().items()} | scalars

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError where the checkpoint is of another model or lacks a part."""
        for name, part in self._parts().items():
            if name not in state:
                raise ValueError(f"the checkpoint holds no {name}, it is of other settings: give another run=")
            try:
                part.load_state_dict(state[name])
            except (RuntimeError, ValueError) as error:
                # The first of what may be hundreds of mismatches.
                reason = str(error).strip().splitlines()[-1].strip()
                raise ValueError(
                    f"the checkpoint's {name} is of another model ({reason}): give another run="
                ) from error
        self.logit_averages.copy_(state["logit_averages"])
        self.step, self.seconds = state["step"], state["seconds"]
