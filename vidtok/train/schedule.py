"""How far a run is, and the learning rate there."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """A run ends at max_steps or max_minutes, whichever comes first; its learning rate follows the same clock.

    Attributes:
        max_steps: optimiser steps, or None.
        max_minutes: of training time over all resumed parts, or None. The rate then depends on the machine's speed, so
            that only a run bounded by steps alone is exactly repeatable.
        warmup_steps: linear warm-up.
        final_rate: share of the peak learning rate left at the end of the cosine.
    """

    max_steps: int | None = None
    max_minutes: float | None = None
    warmup_steps: int = 100
    final_rate: float = 0.02

    def __post_init__(self):
        ends = [end for end in (self.max_steps, self.max_minutes) if end is not None]
        if not ends or any(not isinstance(end, int | float) or end <= 0 for end in ends):
            raise ValueError("a run needs an end: set trainer.max_steps or trainer.max_minutes to a number above 0")

    def progress(self, step: int, seconds: float) -> float:
        """Share of the run done, 0 to 1."""
        by_steps = step / self.max_steps if self.max_steps is not None else 0.0
        by_time = seconds / (60 * self.max_minutes) if self.max_minutes is not None else 0.0
        return min(1.0, max(by_steps, by_time))

    def rate(self, step: int, seconds: float) -> float:
        """Multiple of the peak learning rate."""
        warmup = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        cosine = (1 + math.cos(math.pi * self.progress(step, seconds))) / 2
        return warmup * (self.final_rate + (1 - self.final_rate) * cosine)
