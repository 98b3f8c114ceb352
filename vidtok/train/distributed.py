"""The processes of one run, as torchrun or a cluster starts them."""

import math
import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from torch import nn

PATIENCE = timedelta(hours=6)  # of the others, while one validates or tests: libraries give up after minutes

MAX_SILENCE = 10.0  # seconds until a signal to stop that one process got reaches the others


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
