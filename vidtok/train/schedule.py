"""How far a run is, and the learning rate there."""

import math
from dataclasses import dataclass

from vidtok.hints import nearest

SHAPES = ("cosine", "constant", "decay")


@dataclass(frozen=True)
class Schedule:
    """The end of a run, and its learning rate.

    A run ends at max_steps or max_minutes, whichever comes first. The learning rate follows the same clock.

    Attributes:
        max_steps: optimizer steps from start_step on, or None.
        max_minutes: of training time from start_seconds on, over all resumed parts, or None. The rate then depends on
            the machine's speed, so that only a run bounded by steps alone is exactly repeatable.
        warmup_steps: linear warm-up; a decay has none.
        final_rate: share of the peak learning rate left at the end of the cosine or the decay.
        shape: "cosine" or "decay" (linear) fall from the peak to final_rate. "constant" stays at the peak, and may have
            no end: the run then goes on until it is stopped.
        start_step, start_seconds: where a branch began; 0 for other runs.
    """

    max_steps: int | None = None
    max_minutes: float | None = None
    warmup_steps: int = 100
    final_rate: float = 0.02
    shape: str = "cosine"
    start_step: int = 0
    start_seconds: float = 0.0

    def __post_init__(self):
        if self.shape not in SHAPES:
            raise ValueError(f"unknown trainer.shape {self.shape!r}: {nearest(self.shape, SHAPES)}")
        ends = [end for end in (self.max_steps, self.max_minutes) if end is not None]
        endless = self.shape == "constant" and not ends
        if not (ends or endless) or any(not isinstance(end, int | float) or end <= 0 for end in ends):
            raise ValueError("a run needs an end: set trainer.max_steps or trainer.max_minutes to a number above 0")

    @property
    def has_end(self) -> bool:
        return self.max_steps is not None or self.max_minutes is not None

    def progress(self, step: int, seconds: float) -> float:
        """Return the share of the run done, 0 to 1; 0 throughout a run without an end."""
        by_steps = (step - self.start_step) / self.max_steps if self.max_steps is not None else 0.0
        by_time = (seconds - self.start_seconds) / (60 * self.max_minutes) if self.max_minutes is not None else 0.0
        return min(1.0, max(by_steps, by_time))

    def seconds_left(self, step: int, seconds: float) -> float | None:
        """Estimate the time to the end from the time that the run has taken; None where nothing is known of it."""
        progress = self.progress(step, seconds)
        return (seconds - self.start_seconds) * (1 / progress - 1) if progress > 0 else None

    def rate(self, step: int, seconds: float) -> float:
        """Return the learning rate as a multiple of the peak."""
        progress = self.progress(step, seconds)
        if self.shape == "decay":
            return 1 + (self.final_rate - 1) * progress
        warmup = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        if self.shape == "constant":
            return warmup
        return warmup * (self.final_rate + (1 - self.final_rate) * (1 + math.cos(math.pi * progress)) / 2)
