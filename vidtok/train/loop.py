"""The training loop, in full: schedules, both optimizers, logs, checkpoints. A `Task` defines the objective.

Batch i is a pure function of (seed, i), and every step seeds its own random numbers. A run therefore resumes exactly
from `TrainState`. With data parallelism every process computes its shard of each batch, and the result is the same as
that of a single process with whole batches.

`Batches` and `Task` of `vidtok.train.task` are the interfaces of the data and of the objective.
"""

import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.utils import find_batch_size, recursively_apply, send_to_device
from torch import Tensor, nn

from vidtok.datasets.loading import WHOLE, Shard, shard_rows
from vidtok.errors import nearest
from vidtok.tokenizer import PRECISIONS
from vidtok.train.run_folder import Branch, RunFolder, check_fingerprint, write_fingerprint
from vidtok.train.state import StopSignal, TrainState, all_reduce_mean, checkpoint_blocks, has_fast_bf16, peak_rates
from vidtok.train.task import AdversarialTask, Batch, Batches, Task

MAX_SILENCE = 10.0  # maximum seconds until a stop signal of one process reaches the others
SHAPES = ("cosine", "constant", "decay")
STRATEGIES = ("ddp", "fsdp")


def samples(batch: Batch) -> int:
    """Count the samples of a batch."""
    return find_batch_size(batch)


def shard_of(batch: Batch, shard: Shard) -> Batch:
    """Return one of several equal parts of a batch. Raises ValueError if the batch can't be divided equally."""
    if shard == WHOLE:
        return batch
    rows = shard_rows(shard, samples(batch))
    return recursively_apply(lambda tensor: tensor[rows.start : rows.stop], batch)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy a batch to a device."""
    return send_to_device(batch, device, non_blocking=True)


@dataclass(frozen=True)
class TrainerOptions:
    """Settings of the loop.

    Attributes:
        precision: "fp32", or "bf16" by autocast; weights and optimizer states stay float32.
        accumulate: number of gradient accumulation steps: the parts into which a process splits its shard of a batch.
        checkpoint_activations: recompute the activations of blocks in the backward pass. This takes less memory and a
            third more compute; the results are the same.
        clip_norm: maximum norm of the gradients.
        workers: number of processes that prefetch batches.
        seed: seed of batches and random numbers.
        log_seconds, save_seconds: seconds between progress lines, and between checkpoints with validation.
        save_steps: steps between additional checkpoints, so that model selection does not depend on the speed of the
            machine; None, no additional checkpoints.
        strategy: how several processes hold the model: "ddp", each as a whole; "fsdp", each a share of parameters,
            gradients and optimizer state (FSDP2), for models that are too large otherwise. Losses differ by rounding.
    """

    precision: str = "fp32"
    accumulate: int = 1
    checkpoint_activations: bool = False
    clip_norm: float = 1.0
    workers: int = 1
    seed: int = 0
    log_seconds: float = 10
    save_seconds: float = 300
    save_steps: int | None = None
    strategy: str = "ddp"

    def __post_init__(self):
        if self.strategy not in STRATEGIES:
            raise ValueError(f"unknown trainer.strategy {self.strategy!r}: {nearest(self.strategy, STRATEGIES)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"unknown precision {self.precision!r}: {nearest(self.precision, PRECISIONS)}")
        if not isinstance(self.accumulate, int) or self.accumulate < 1:
            raise ValueError(f"a batch is taken in 1 or more parts, not trainer.accumulate={self.accumulate}")
        if self.save_steps is not None and self.save_steps < 1:
            raise ValueError(f"trainer.save_steps={self.save_steps} must be at least 1, or null for none")


@dataclass(frozen=True)
class Schedule:
    """Length of a run and its learning rate schedule.

    A run ends at max_steps or max_minutes, whichever comes first. The learning rate follows the same progress.

    Attributes:
        max_steps: maximum number of optimizer steps, counted from start_step; None, no limit.
        max_minutes: maximum training time in minutes over all resumed parts, counted from start_seconds; None, no
            limit. With a time limit the learning rate depends on the speed of the machine. Only runs bounded by steps
            alone are exactly repeatable.
        warmup_steps: steps of linear warm-up; the shape "decay" has none.
        final_rate: learning rate at the end of "cosine" and "decay", as a fraction of the peak.
        shape: "cosine" and "decay" (linear) fall from the peak to final_rate. "constant" stays at the peak. Without a
            limit a constant run continues until it is stopped.
        start_step, start_seconds: step and training time at which a branch began; 0 for other runs.
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
        """Return the fraction of the run that is done, 0 to 1; always 0 for a run without a limit."""
        by_steps = (step - self.start_step) / self.max_steps if self.max_steps is not None else 0.0
        by_time = (seconds - self.start_seconds) / (60 * self.max_minutes) if self.max_minutes is not None else 0.0
        return min(1.0, max(by_steps, by_time))

    def seconds_left(self, step: int, seconds: float) -> float | None:
        """Estimate the remaining seconds from the time taken so far; None before any progress or without a limit."""
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
        """Return whether a checkpoint is due; if so, restart the interval."""
        due = self.last - self.saved >= self.save_seconds
        if due:
            self.saved = self.last
        return due


class SharedClock:
    """Synchronize the training time of all processes, and their decisions on when to log, save and stop.

    Processes wait for each other when they synchronize. They therefore synchronize only at the log interval, or every
    `MAX_SILENCE` seconds if that is shorter. In between, each step counts as many seconds as the average step before
    the last synchronization. The next synchronization corrects the sum. A single process reads its own clock and stop
    signal in every step.

    Args:
        accelerator: the processes.
        clock: the clock of this process.
        stop: the stop signal of this process.
    """

    def __init__(self, accelerator: Accelerator, clock: Clock, stop: StopSignal):
        self.accelerator, self.clock, self.stop = accelerator, clock, stop
        self._alone = accelerator.num_processes == 1
        self._stopping = not self._alone and all_reduce_mean(accelerator, stop.requested)[0] > 0
        self._steps, self._interval = 0, 1  # since the last synchronization; between synchronizations
        self._seconds = self._counted = self._pace = 0.0  # measured and counted since the last one; per step

    @property
    def stopping(self) -> bool:
        return self.stop.requested if self._alone else self._stopping

    def tick(self, clips: int) -> tuple[float, bool, bool]:
        """Count a step of `clips` clips; return (seconds to add to the training time, log now, save now)."""
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


def train(
    task: Task,
    state: TrainState,
    batches: Batches,
    schedule: Schedule,
    options: TrainerOptions,
    run: RunFolder,
    stop: StopSignal,
    config_yaml: str = "",
    log=print,
    fingerprint: Mapping | None = None,
) -> nn.Module:
    """Train until the schedule ends or a stop is requested, then save.

    Args:
        task: the objective; an `AdversarialTask` if the state has a discriminator.
        state: the state of a new run, with optimizers at the peak learning rate. A checkpoint in `run` is loaded into
            it.
        batches: the training data. Every process loads its shard of each batch.
        schedule: end of the run and learning rate.
        options: settings of the loop.
        run: folder of the run.
        stop: stop signal, checked after every step.
        config_yaml: resolved config, written to the folder.
        log: called with each line of progress.
        fingerprint: settings that the checkpoint in `run` must have been made with; None, not checked.

    Returns:
        The model with averaged weights, in evaluation mode.

    Raises:
        FloatingPointError: the loss or a gradient is not finite; the last good checkpoint is kept.
        ValueError: a checkpoint of another model or other settings, or a batch that is not divisible by the number of
            processes times `accumulate`.
    """
    accelerator = Accelerator(mixed_precision="no")  # otherwise it would set the precision of the whole process
    device, accumulate = accelerator.device, options.accumulate
    rank, processes = accelerator.process_index, accelerator.num_processes

    def autocast():
        return torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16")

    if options.precision == "bf16" and device.type == "cpu" and not has_fast_bf16():
        log("this CPU only emulates bf16, at a fraction of its speed: trainer.precision=fp32 is quicker here")
    peaks = [(opt, peak_rates(opt)) for opt in (state.optimizer, state.discriminator_optimizer) if opt]
    state.to(device)
    checkpoint = run.load_checkpoint()
    if fingerprint is not None:
        # Settings may change until the first checkpoint. Folders of earlier versions resume without a fingerprint.
        (write_fingerprint if checkpoint is None else check_fingerprint)(run.path, fingerprint)
    ends = False
    if checkpoint is not None:
        state.load_state_dict(checkpoint)
        log(f"resumed from step {state.step} after {state.seconds / 60:.1f} minutes, as {run.path} holds a checkpoint")
        ends = schedule.progress(state.step, state.seconds) >= 1
    if accelerator.is_main_process:
        run.open(None if ends else config_yaml, state.step)
    if options.checkpoint_activations:
        checkpoint_blocks(state.model)
    is_sharded = options.strategy == "fsdp" and processes > 1
    if is_sharded:
        state.shard(device, processes)
    model = state.model if is_sharded else accelerator.prepare(state.model)
    discriminator = accelerator.prepare(state.discriminator) if state.discriminator is not None else None
    adversary = {"discriminator": state.discriminator} if state.discriminator is not None else {}
    # Used only where the state has a discriminator.
    gan = cast(AdversarialTask, task)
    discriminator_optimizer = cast(torch.optim.Optimizer, state.discriminator_optimizer)

    def exchange_gradients(net: nn.Module, now: bool):
        return nullcontext() if now else accelerator.no_sync(net)

    loader = batches.loader(start=state.step, workers=options.workers, shard=(rank, processes))
    gradients = FiniteCheck(device)
    clock = Clock(options.log_seconds, options.save_seconds)
    shared = SharedClock(accelerator, clock, stop)
    means: dict[str, Tensor] = {}
    while not (ends or shared.stopping):
        rate = schedule.rate(state.step, state.seconds)
        share = next(loader)
        parts = [to_device(shard_of(share, (i, accumulate)), device) for i in range(accumulate)]
        for optimizer, rates in peaks:
            for group, peak in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = peak * rate

        # Step of the model: gradients of the parts accumulate, and are reduced over processes with the last part.
        means, aux = {}, []
        for i, part in enumerate(parts):
            torch.manual_seed(options.seed * 1_000_003 + state.step + (rank * accumulate + i << 40))
            with exchange_gradients(model, now=i == accumulate - 1):
                with autocast():
                    loss, terms, rest = task.terms(model, part, state.step, **adversary)
                accelerator.backward(loss / accumulate)
            aux.append(rest)
            add_mean(means, {**terms, "loss": loss}, accumulate)
        norm = accelerator.clip_grad_norm_(model.parameters(), options.clip_norm)
        means["gradient_norm"] = norm.full_tensor() if is_sharded else norm
        gradients.add(means["gradient_norm"], state.step)
        state.optimizer.step()
        state.optimizer.zero_grad()

        # Step of the discriminator, on the same parts.
        if discriminator is not None and gan.is_adversarial_step(state.step):
            for i, part in enumerate(parts):
                with exchange_gradients(discriminator, now=i == accumulate - 1):
                    with autocast():
                        loss, terms = gan.discriminator_terms(discriminator, part, aux[i], state.lecam_ema, state.step)
                    accelerator.backward(loss / accumulate)
                add_mean(means, terms, accumulate)
            means["critic_norm"] = accelerator.clip_grad_norm_(discriminator.parameters(), options.clip_norm)
            gradients.add(means["critic_norm"], state.step)
            discriminator_optimizer.step()
            discriminator_optimizer.zero_grad()
            logits = accelerator.reduce(torch.stack([means["real_logit"], means["fake_logit"]]), "mean")
            state.lecam_ema.lerp_(logits, 1 - gan.logit_decay)

        state.step += 1
        state.update_sharded_average() if is_sharded else state.ema.update(state.model, state.step)
        seconds, log_due, save_due = shared.tick(clips=samples(share) * processes)
        state.seconds += seconds
        ends = schedule.progress(state.step, state.seconds) >= 1  # the final state is saved below
        step_due = options.save_steps is not None and state.step % options.save_steps == 0 and not ends
        if log_due or save_due or step_due:
            gradients.check(means)
        if log_due:
            scalars = {name: accelerator.reduce(value, "mean").item() for name, value in means.items()}
            scalars["learning_rate"] = max(group["lr"] for group in state.optimizer.param_groups)
            scalars["clips_per_second"] = clock.clips_per_second()
            if accelerator.is_main_process:
                run.save_scalars(scalars, state.step)
                log(f"{progress_line(scalars, state, schedule)}  {task.progress(scalars)}")
        if save_due or step_due:
            save_and_validate(task, state, run, log, accelerator.is_main_process)

    gradients.check(means)
    save_and_validate(task, state, run, log, accelerator.is_main_process)
    if accelerator.is_main_process:
        reason = "done" if ends else "asked to stop"
        notes = "; ".join(filter(None, [f"after {state.seconds / 60:.1f} minutes", batches.summary()]))
        log(f"{reason} at step {state.step} {notes}")
    accelerator.wait_for_everyone()
    return state.ema.module.eval()


def add_mean(means: dict[str, Tensor], terms: dict[str, Tensor], parts: int) -> None:
    """Add the terms of one of `parts` equal parts of a batch to `means`, in place."""
    for name, term in terms.items():
        share = term.detach().float() / parts
        means[name] = means[name] + share if name in means else share


class FiniteCheck:
    """Record the first step with a gradient that is not finite.

    The step is recorded on the device, since reading the norm in every step would stall a GPU. The norm is the same in
    all processes, and they check it at the same steps. They therefore stop together. Every checkpoint is preceded by a
    check.
    """

    def __init__(self, device: torch.device):
        self._step = torch.full((), -1, device=device)

    def add(self, norm: Tensor, step: int) -> None:
        self._step = torch.where((self._step < 0) & ~norm.isfinite(), step, self._step)

    def check(self, means: dict[str, Tensor]) -> None:
        """Raise FloatingPointError if a gradient was not finite. `means`: the last step's terms, for the message."""
        if (step := self._step.item()) >= 0:
            bad = ", ".join(f"{name} {value.item()}" for name, value in means.items() if not value.isfinite())
            raise FloatingPointError(f"not finite at step {step}: {bad}; lower the learning rate, or use fp32")


@torch.no_grad()
def save_and_validate(task: Task, state: TrainState, run: RunFolder, log, is_main: bool) -> None:
    """Save and validate the averaged model in the main process; the others take part in gathering a sharded state."""
    checkpoint = state.state_dict() if is_main or state.is_sharded else {}
    if not is_main:
        return
    run.save_checkpoint(checkpoint)
    model = state.ema.module.eval()
    run.save_model(model)
    if line := task.validate(model, run, state.step):
        log(f"step {state.step}  {line}")


def progress_line(scalars: dict[str, float], state: TrainState, schedule: Schedule) -> str:
    """Format step, training time, remaining time, throughput and loss as a progress line."""
    done = f"step {state.step}  {state.seconds / 60:.1f} min"
    if (left := schedule.seconds_left(state.step, state.seconds)) is not None:
        done += f", {left / 60:.1f} left"
    return f"{done}  {scalars['clips_per_second']:.1f} clips/s  loss {scalars['loss']:.4f}"


def build_schedule(plain: dict, branch: "Branch | None" = None) -> dict:
    """Build the arguments `schedule` and `options` of `train` from the group `trainer` and the seed.

    Args:
        plain: the config as plain dicts.
        branch: branch point of the run; None, the run is not a branch.
    """
    trainer = {key: value for key, value in plain["trainer"].items() if key != "ema_decay"}
    keys = ("max_steps", "max_minutes", "warmup_steps", "final_rate", "shape")
    schedule = {key: trainer.pop(key) for key in keys}
    if branch is not None:
        schedule |= {"shape": "decay", "start_step": branch.step, "start_seconds": branch.seconds}
        if schedule["max_steps"] is None and schedule["max_minutes"] is None:
            schedule["max_steps"] = branch.decay_steps
    elif schedule["shape"] == "decay":
        raise ValueError(
            "trainer.shape=decay is for a branch (vidtok train tokenizer branch=RUN): give cosine or constant"
        )
    return {"options": TrainerOptions(seed=plain["seed"], **trainer), "schedule": Schedule(**schedule)}
