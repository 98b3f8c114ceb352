"""Time of a run: its end, its learning rate, and when it logs, saves and stops."""

import math
import time
from dataclasses import dataclass

from accelerate import Accelerator

from vidtok.errors import nearest
from vidtok.train.state import all_reduce_mean

MAX_SILENCE = 10.0  # seconds until a signal to stop that one process got reaches the others
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


class Clock:
    """Measure the step time and throughput of one process.

    Args:
        log_seconds: seconds between progress lines.
        save_seconds: seconds between checkpoints.
    """

    def __init__(self, log_seconds: float, save_seconds: float):
        self.log_seconds, self.save_seconds = log_seconds, save_seconds
        self.last = self.logged = self.saved = time.monotonic()
        self.clips = 0

    def tick(self, clips: int) -> float:
        """Count the clips of one step; return the seconds since the last step."""
        now = time.monotonic()
        passed, self.last = now - self.last, now
        self.clips += clips
        return passed

    def since_log(self) -> float:
        """Return the seconds from the last progress line to the last step."""
        return self.last - self.logged

    def clips_per_second(self) -> float:
        """Return the throughput since the last call."""
        rate = self.clips / max(self.last - self.logged, 1e-9)
        self.logged, self.clips = self.last, 0
        return rate

    def save_due(self) -> bool:
        """Return whether a checkpoint is due, and if so start the interval anew."""
        due = self.last - self.saved >= self.save_seconds
        if due:
            self.saved = self.last
        return due


class SharedClock:
    """Let all processes of a run agree on the seconds of training, and on when to log, save and stop.

    Processes that exchange something wait for each other, so that they do it at the log interval only, and at least
    every `MAX_SILENCE` seconds. In between, a step counts as many seconds as the steps before the last exchange took,
    which the next exchange corrects. A process alone looks at its own clock and signals in every step.

    Args:
        clock: this process's own.
        stop: a `vidtok.train.loop.StopSignal`, this process's own.
    """

    def __init__(self, accelerator: Accelerator, clock: Clock, stop):
        self.accelerator, self.clock, self.stop = accelerator, clock, stop
        self._alone = accelerator.num_processes == 1
        self._stopping = not self._alone and all_reduce_mean(accelerator, stop.requested)[0] > 0
        self._steps, self._interval = 0, 1  # since the last exchange; from it to the next one
        self._seconds = self._counted = self._pace = 0.0  # measured and counted since the last exchange; per step

    @property
    def stopping(self) -> bool:
        return self.stop.requested if self._alone else self._stopping

    def tick(self, clips: int) -> tuple[float, bool, bool]:
        """Count a step with so many clips; return (seconds to add to those of the run, log now, save now)."""
        seconds = self.clock.tick(clips)
        if self._alone:
            return seconds, self.clock.since_log() >= self.clock.log_seconds, self.clock.save_due()
        self._steps += 1
        self._seconds += seconds
        if self._steps < self._interval:
            self._counted += self._pace
            return self._pace, False, False
        save = self.accelerator.is_main_process and self.clock.save_due()
        signals = (self._seconds, self.clock.since_log(), save, self.stop.requested)
        seconds, since_log, save, stopping = all_reduce_mean(self.accelerator, *signals)
        log, self._stopping = since_log >= self.clock.log_seconds, stopping > 0
        correction, self._pace = seconds - self._counted, seconds / self._steps
        silence = min(self.clock.log_seconds - (0 if log else since_log), MAX_SILENCE)
        self._interval = max(1, math.ceil(silence / max(self._pace, 1e-9)))
        self._steps, self._seconds, self._counted = 0, 0.0, 0.0
        return correction, log, save > 0
