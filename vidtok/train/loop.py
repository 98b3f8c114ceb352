"""The training loop, in full: schedules, both optimizers, logs, checkpoints. A `Task` defines the objective.

Batch i is a pure function of (seed, i), and every step seeds its own random numbers. A run therefore resumes exactly
from `TrainState`, and k processes with a k-th of each batch give the result of one process with whole batches.

`Batches` and `Task` are the interfaces of the data and of the objective.
"""

import signal
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator
from accelerate.utils import find_batch_size, recursively_apply, send_to_device
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vidtok.datasets.loading import WHOLE, Shard, shard_rows
from vidtok.errors import nearest
from vidtok.tokenizer import PRECISIONS
from vidtok.train.clock import Clock, Schedule, SharedClock
from vidtok.train.run_folder import Branch, RunFolder, check_fingerprint, write_fingerprint
from vidtok.train.state import TrainState, has_fast_bf16

Batch = Any  # a tensor, or a nested dict, list or tuple of tensors, all with the samples along dimension 0


class Batches(Protocol):
    """Endless sequence of batches. Batch i is a pure function of (seed, i), and so is each shard of it."""

    def loader(self, start: int, workers: int, shard: Shard) -> Iterator[Batch]:
        """Yield one shard of batches start, start + 1, ..., prefetched by `workers` processes.

        Args:
            start: number of the first batch.
            workers: number of processes.
            shard: (index, count), one of `count` equal slices of each batch. Samples of other shards are not loaded.

        Raises:
            ValueError: a batch is not divisible into so many shards.
        """

    def summary(self) -> str:
        """Return a note on the batches so far, such as "3 files skipped"; "", none."""


class Task(Protocol):
    """Training objective and its validation. It holds settings and frozen networks; what is trained is in `TrainState`.

    A batch is on the model's device. It is this process's shard, or with gradient accumulation a part of it, and every
    part is seeded differently. A term that is a mean over samples is therefore the same for any number of processes and
    parts. Random numbers shared by all samples come from a generator seeded with `step`. Random numbers of single
    samples that must not depend on the number of processes come with the batch.
    """

    def terms(self, model: nn.Module, batch: Batch, step: int) -> tuple[dict[str, Tensor], Any]:
        """Compute scalar terms and diagnostics by name, and the detached inputs of `discriminator_terms`, or None.

        With several processes `model` is wrapped: call it as a whole; `unwrap_model` gives access to its attributes.
        """

    def total(self, terms: dict[str, Tensor], step: int) -> Tensor:
        """Return the weighted sum of the terms, which training minimizes."""

    def validate(self, model: Any, run: RunFolder, step: int) -> str | None:
        """Validate the averaged model, in evaluation mode, at a checkpoint; called in the main process only.

        Scalars and pictures go to `run`.

        Returns:
            A line for the log, or None.
        """

    def progress(self, scalars: dict[str, float]) -> str:
        """Format scalars for the progress line."""


class AdversarialTask(Task, Protocol):
    """Task with a discriminator, which takes a step on the same batch after each step of the model.

    Attributes:
        logit_decay: decay of the moving averages of the terms "real_logit" and "fake_logit".
    """

    logit_decay: float

    def terms(
        self, model: nn.Module, batch: Batch, step: int, discriminator: nn.Module | None = None
    ) -> tuple[dict[str, Tensor], Any]:
        """Compute the terms of `Task.terms`, given the discriminator, not wrapped. It is not trained by them."""

    def is_adversarial_step(self, step: int) -> bool:
        """Return whether the discriminator trains at this step."""

    def discriminator_terms(
        self, discriminator: nn.Module, batch: Batch, aux: Any, lecam_ema: Tensor, step: int
    ) -> dict[str, Tensor]:
        """Compute scalar terms and diagnostics by name, including "real_logit" and "fake_logit".

        Args:
            discriminator: the discriminator, wrapped with several processes.
            batch: the batch of `terms`.
            aux: the second value that `terms` returned for it.
            lecam_ema: [2], moving averages of the real and the fake logit.
            step: number of the step.
        """

    def discriminator_total(self, terms: dict[str, Tensor], step: int) -> Tensor:
        """Return the weighted sum that the discriminator minimizes."""


class StopSignal:
    """Turn SIGTERM and Ctrl-C into a request to stop after the current step.

    A context in which the two signals only set `requested`; the handlers from before come back after it.
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


def samples(batch: Batch) -> int:
    """Count the samples of a batch."""
    return find_batch_size(batch)


def shard_of(batch: Batch, shard: Shard) -> Batch:
    """Return one of several equal parts of a batch. Raises ValueError for a batch that can't be divided so."""
    if shard == WHOLE:
        return batch
    rows = shard_rows(shard, samples(batch))
    return recursively_apply(lambda tensor: tensor[rows.start : rows.stop], batch)


def to_device(batch: Batch, device: torch.device) -> Batch:
    return send_to_device(batch, device, non_blocking=True)


def checkpoint_blocks(model: nn.Module) -> None:
    """Activation checkpointing: recompute the activations inside blocks in the backward pass.

    Blocks are the members of module lists, the innermost ones where lists are nested. Weights, their names and results
    stay the same.

    Raises:
        ValueError: for a model without module lists.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    blocks = [block for blocks in lists for block in blocks if not _has_list(block)]
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


@dataclass(frozen=True)
class TrainerOptions:
    """Settings of the loop.

    Attributes:
        precision: "fp32", or "bf16" by autocast; weights and optimizer states stay float32.
        accumulate: gradient accumulation: number of parts in which each process computes its shard of a batch.
        checkpoint_activations: recompute the activations of blocks in the backward pass: less memory, a third more
            compute, the same results.
        clip_norm: maximum norm of the gradients.
        workers: number of processes that prefetch batches.
        seed: seed of batches and random numbers.
        log_seconds, save_seconds: seconds between progress lines, and between checkpoints with validation.
        save_steps: steps between additional checkpoints, for choices among checkpoints that must not depend on speed;
            None, no additional ones.
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

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ValueError(f"unknown precision {self.precision!r}: {nearest(self.precision, PRECISIONS)}")
        if not isinstance(self.accumulate, int) or self.accumulate < 1:
            raise ValueError(f"a batch is taken in 1 or more parts, not trainer.accumulate={self.accumulate}")
        if self.save_steps is not None and self.save_steps < 1:
            raise ValueError(f"trainer.save_steps={self.save_steps} must be at least 1, or null for none")


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
        stop: checked after every step.
        config_yaml: resolved config, written to the folder.
        log: called with each line of progress.
        fingerprint: settings that the checkpoint in `run` must have been made with; None, not checked.

    Returns:
        The model with averaged weights, in evaluation mode.

    Raises:
        FloatingPointError: the loss or a gradient is not finite; the last good checkpoint stays.
        ValueError: a checkpoint of another model or other settings, or a batch that is not divisible into the parts of
            all processes.
    """
    accelerator = Accelerator(mixed_precision="no")  # it would fix the precision for the whole process
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
        # Nothing depends on the settings before the first checkpoint. Folders older than fingerprints are resumed.
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
    model = accelerator.prepare(state.model)
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

        # Step of the model: gradients of the parts add up, and are exchanged between processes with the last part.
        means, aux = {}, []
        for i, part in enumerate(parts):
            torch.manual_seed(options.seed * 1_000_003 + state.step + (rank * accumulate + i << 40))
            with exchange_gradients(model, now=i == accumulate - 1):
                with autocast():
                    terms, rest = task.terms(model, part, state.step, **adversary)
                terms["loss"] = task.total(terms, state.step)
                accelerator.backward(terms["loss"] / accumulate)
            aux.append(rest)
            add_mean(means, terms, accumulate)
        means["gradient_norm"] = accelerator.clip_grad_norm_(model.parameters(), options.clip_norm)
        gradients.add(means["gradient_norm"], state.step)
        state.optimizer.step()
        state.optimizer.zero_grad()

        # Step of the discriminator, on the same parts.
        if discriminator is not None and gan.is_adversarial_step(state.step):
            for i, part in enumerate(parts):
                with exchange_gradients(discriminator, now=i == accumulate - 1):
                    with autocast():
                        terms = gan.discriminator_terms(discriminator, part, aux[i], state.lecam_ema, state.step)
                    accelerator.backward(gan.discriminator_total(terms, state.step) / accumulate)
                add_mean(means, terms, accumulate)
            means["critic_norm"] = accelerator.clip_grad_norm_(discriminator.parameters(), options.clip_norm)
            gradients.add(means["critic_norm"], state.step)
            discriminator_optimizer.step()
            discriminator_optimizer.zero_grad()
            logits = accelerator.reduce(torch.stack([means["real_logit"], means["fake_logit"]]), "mean")
            state.lecam_ema.lerp_(logits, 1 - gan.logit_decay)

        state.step += 1
        state.ema.update(state.model, state.step)
        seconds, log_due, save_due = shared.tick(clips=samples(share) * processes)
        state.seconds += seconds
        ends = schedule.progress(state.step, state.seconds) >= 1  # and is saved below
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
        if (save_due or step_due) and accelerator.is_main_process:
            save_and_validate(task, state, run, log)

    gradients.check(means)
    if accelerator.is_main_process:
        save_and_validate(task, state, run, log)
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


def peak_rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """Return the peak learning rate of each group; timm leaves `lr_scale` of layer-wise decay to the schedule."""
    return [group["lr"] * group.get("lr_scale", 1.0) for group in optimizer.param_groups]


class FiniteCheck:
    """Remember the first step whose gradient wasn't finite.

    On the device: reading a norm in every step would make a GPU wait. The norm is the same in all processes, and all
    check at the same steps, so that they end together; no checkpoint is written without a check.
    """

    def __init__(self, device: torch.device):
        self._step = torch.full((), -1, device=device)

    def add(self, norm: Tensor, step: int) -> None:
        self._step = torch.where((self._step < 0) & ~norm.isfinite(), step, self._step)

    def check(self, means: dict[str, Tensor]) -> None:
        """Raise FloatingPointError where a gradient wasn't finite; means: of the last step's terms, for the message."""
        if (step := self._step.item()) >= 0:
            bad = ", ".join(f"{name} {value.item()}" for name, value in means.items() if not value.isfinite())
            raise FloatingPointError(f"not finite at step {step}: {bad}; lower the learning rate, or use fp32")


@torch.no_grad()
def save_and_validate(task: Task, state: TrainState, run: RunFolder, log) -> None:
    run.save_checkpoint(state.state_dict())
    model = state.ema.module.eval()
    run.save_model(model)
    if line := task.validate(model, run, state.step):
        log(f"step {state.step}  {line}")


def progress_line(scalars: dict[str, float], state: TrainState, schedule: Schedule) -> str:
    done = f"step {state.step}  {state.seconds / 60:.1f} min"
    if (left := schedule.seconds_left(state.step, state.seconds)) is not None:
        done += f", {left / 60:.1f} left"
    return f"{done}  {scalars['clips_per_second']:.1f} clips/s  loss {scalars['loss']:.4f}"


def build_schedule(plain: dict, branch: "Branch | None" = None) -> dict:
    """Build the arguments `schedule` and `options` of `train` from the group `trainer` and the seed.

    Args:
        plain: the config as plain dicts.
        branch: where the run branched off; None, it is no branch.
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
