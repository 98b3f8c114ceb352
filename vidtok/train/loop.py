"""The training loop, in full: schedules, both optimizers, logs, checkpoints. What is trained is the `Task`'s business.

Batch i is a pure function of (seed, i) and every step seeds its own random numbers, so that a run resumes exactly from
`TrainState`, and k processes, each of which makes a k-th of each batch, do what one does with the whole.

A batch is a tensor, or a nested dict, list or tuple of tensors with the samples along dimension 0.
"""

import signal
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, cast

import torch
from accelerate import Accelerator
from accelerate.utils import find_batch_size, recursively_apply, send_to_device
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vidtok.datasets.loading import WHOLE, Shard, shard_rows
from vidtok.errors import nearest
from vidtok.tokenizer import PRECISIONS
from vidtok.train.distributed import Clock, SharedClock
from vidtok.train.run_folder import RunFolder, check_fingerprint, write_fingerprint
from vidtok.train.state import Schedule, TrainState, has_fast_bf16
from vidtok.train.task import AdversarialTask, Batch, Batches, Task

if TYPE_CHECKING:
    from vidtok.train.branch import Branch


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
    """How the loop runs.

    Attributes:
        precision: "fp32" or "bf16" (autocast; weights and optimisers stay in float32).
        accumulate: parts that each process takes its share of a batch in, one after the other; the gradients add up,
            the memory is that of one part. See `Task` for what comes out the same.
        checkpoint_activations: blocks of the model keep only their inputs and are computed again on the way back, for a
            third more work; the results are the same.
        clip_norm: gradients are scaled down to this norm.
        workers: processes that make batches ahead.
        seed: of batches and random numbers.
        log_seconds, save_seconds: between progress lines; between checkpoints with validation.
        save_steps: steps between further checkpoints, or None: where the choice among them shall not depend on speed.
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
    """Trains until the schedule ends, if it does, or somebody asks to stop, and saves either way.

    Args:
        task: the objective. Where the state has a critic it is an `AdversarialTask`.
        state: a new run's; goes on from the checkpoint in `run` where there is one. Its optimisers stand at the peak
            learning rate.
        batches: every process makes its share of each, and takes that in `options.accumulate` parts.
        run: where it is saved; config_yaml: what it writes down of the settings.
        stop: looked at between steps.
        log: takes one line of progress.
        fingerprint: the settings that the checkpoint in `run` must have been made with; None where the caller has
            checked them.

    Returns:
        The model with the averaged weights, in evaluation mode.

    Raises:
        FloatingPointError: if the loss or its gradient isn't finite; the last good checkpoint stays.
        ValueError: for a checkpoint of another model or of other settings, or a batch that doesn't divide into the
            processes' parts.
    """
    accelerator = Accelerator(mixed_precision="no")  # its precision is the process' for good; ours is this run's
    device, accumulate = accelerator.device, options.accumulate
    rank, processes = accelerator.process_index, accelerator.num_processes

    def autocast():
        return torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16")

    if options.precision == "bf16" and device.type == "cpu" and not has_fast_bf16():
        log("this CPU only emulates bf16, at a fraction of its speed: trainer.precision=fp32 is quicker here")
    state.to(device)
    peaks = [(opt, peak_rates(opt)) for opt in (state.optimizer, state.discriminator_optimizer) if opt]
    checkpoint = run.load_checkpoint()
    if fingerprint is not None:
        # Nothing depends on the settings before the first checkpoint. A folder from before fingerprints goes on.
        (write_fingerprint if checkpoint is None else check_fingerprint)(run.path, fingerprint)
    if checkpoint is not None:
        state.load_state_dict(checkpoint)
        log(f"goes on from step {state.step} after {state.seconds / 60:.1f} minutes, as {run.path} holds a checkpoint")
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

    clock = Clock(options.log_seconds, options.save_seconds)
    loader = batches.loader(start=state.step, workers=options.workers, shard=(rank, processes))
    shared, gradients = SharedClock(accelerator, clock, stop), FiniteCheck(device)
    means: dict[str, Tensor] = {}
    while not (ends or shared.stopping):
        share = next(loader)
        parts = [to_device(shard_of(share, (i, accumulate)), device) for i in range(accumulate)]
        rate = schedule.rate(state.step, state.seconds)
        for optimizer, rates in peaks:
            for group, peak in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = peak * rate

        # The model's step: the gradients of the parts add up, and the processes exchange them with the last one.
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

        # The critic's step, on the same parts.
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
        reason = "asked to stop" if shared.stopping else "done"
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
    """Of each group: timm leaves it to the schedule to apply the `lr_scale` of layer-wise decay."""
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
    """The arguments `schedule` and `options` of `vidtok.train.loop.train`, of the group `trainer` and the seed.

    branch: where the run branched off, for one that did.
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
    return {"schedule": Schedule(**schedule), "options": TrainerOptions(seed=plain["seed"], **trainer)}
