"""The training loop of a tokenizer, in full: schedules, losses, both optimisers, logs, checkpoints.

Batch i is a pure function of (seed, i) and every step seeds its own random numbers, so that a run resumes exactly from
`TrainState`, and k processes with a k-th of each batch do what one does with the whole.
"""

import math
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from vidtok.datasets import ClipFolder
from vidtok.hints import nearest
from vidtok.lpips import LPIPS
from vidtok.tokenizer import PRECISIONS, VideoTokenizer
from vidtok.train import adversarial
from vidtok.train.clock import Clock
from vidtok.train.folder import RunFolder
from vidtok.train.loss import LossWeights, perceptual_loss, reconstruction_loss
from vidtok.train.schedule import Schedule
from vidtok.train.state import TrainState
from vidtok.train.stop import StopSignal

BIT = math.log(2)  # nats


@dataclass(frozen=True)
class TrainerOptions:
    """How the loop runs.

    Attributes:
        precision: "fp32" or "bf16" (autocast; weights, optimisers, quantizer and R1 stay in float32).
        clip_norm: gradients are scaled down to this norm.
        workers: processes that decode batches ahead.
        seed: of batches, crops and random frames.
        log_seconds, save_seconds: between progress lines; between checkpoints, pictures and validation.
    """

    precision: str = "fp32"
    clip_norm: float = 1.0
    workers: int = 1
    seed: int = 0
    log_seconds: float = 10
    save_seconds: float = 300

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ValueError(f"unknown precision {self.precision!r}: {nearest(self.precision, PRECISIONS)}")


def train(
    state: TrainState,
    dataset: ClipFolder,
    fixed_clips: list[Tensor],
    schedule: Schedule,
    weights: LossWeights,
    options: TrainerOptions,
    run: RunFolder,
    stop: StopSignal,
    config_yaml: str = "",
    lpips: LPIPS | None = None,
    say=print,
) -> VideoTokenizer:
    """Trains until the schedule ends or somebody asks to stop, and saves either way.

    Args:
        state: a new run's; goes on from the checkpoint in `run` where there is one. Its optimisers stand at the peak
            learning rate.
        dataset: gives batch i, float32 [B, 3, T, H, W] in [-1, 1]; every process takes its share of it.
        fixed_clips: [1, 3, T, H, W] each; their PSNR and pictures show how the run goes. May be empty.
        run: where it is saved; config_yaml: what it writes down of the settings.
        stop: looked at between steps.
        lpips: the perceptual term, needed where its weight isn't 0.
        say: takes one line of progress.

    Returns:
        The tokenizer with the averaged weights, in evaluation mode.

    Raises:
        FloatingPointError: if the loss isn't finite; the last good checkpoint stays.
        ValueError: for a checkpoint of another model, or a batch that the processes can't share evenly.
    """
    accelerator = Accelerator(mixed_precision="no")  # its precision is the process' for good; ours is this run's
    device = accelerator.device

    def autocast():
        return torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16")

    tokenizer, discriminator = state.tokenizer, state.discriminator
    for part in (tokenizer, state.ema, discriminator, lpips):
        if part is not None:
            part.to(device)
    state.logit_averages = state.logit_averages.to(device)
    peaks = [
        (opt, [g["lr"] for g in opt.param_groups]) for opt in (state.optimizer, state.discriminator_optimizer) if opt
    ]
    if (checkpoint := run.load_checkpoint()) is not None:
        state.load_state_dict(checkpoint)
        say(f"goes on from step {state.step} after {state.seconds / 60:.1f} minutes, as {run.path} holds a checkpoint")
    if accelerator.is_main_process:
        run.open(config_yaml)
    model = accelerator.prepare(tokenizer)
    critic = accelerator.prepare(discriminator) if discriminator is not None else None

    clock = Clock(options.log_seconds, options.save_seconds)
    for batch in dataset.loader(start=state.step, workers=options.workers):
        if together(accelerator, stop.asked or schedule.progress(state.step, state.seconds) >= 1):
            break
        video = share(batch, accelerator).to(device)
        for optimizer, rates in peaks:
            for group, peak in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = peak * schedule.rate(state.step, state.seconds)
        torch.manual_seed(options.seed * 1_000_003 + state.step)

        # The tokenizer's step.
        with autocast():
            decoded, z, codes = model(video)
            terms = {"reconstruction": reconstruction_loss(decoded, video), **tokenizer.quantizer.losses(z, codes)}
            if lpips is not None:
                terms["perceptual"] = perceptual_loss(lpips, decoded, video, weights.perceptual_frames)
            playing = discriminator is not None and state.step >= weights.adversarial_start
            if playing:
                discriminator.requires_grad_(False)
                terms["adversarial"] = adversarial.generator_loss(discriminator(decoded))
                discriminator.requires_grad_(True)
        loss = weights.total(terms, state.step)
        if not loss.isfinite():
            message = f"the loss is {loss.item()} at step {state.step}: lower the learning rate, or use fp32"
            raise FloatingPointError(message)
        accelerator.backward(loss)
        terms["gradient_norm"] = accelerator.clip_grad_norm_(model.parameters(), options.clip_norm)
        state.optimizer.step()
        state.optimizer.zero_grad()

        # The discriminator's step, on the same clips.
        if playing:
            real = video.requires_grad_(weights.r1 > 0)
            with autocast():
                real_logits, fake_logits = critic(torch.cat([real, decoded.detach()])).chunk(2)
            critic_terms = {
                "discriminator": adversarial.discriminator_loss(real_logits, fake_logits),
                "lecam": adversarial.lecam_penalty(real_logits, fake_logits, state.logit_averages),
            }
            if weights.r1 > 0:
                critic_terms["r1"] = adversarial.r1_penalty(real_logits, real)
            accelerator.backward(weights.critic_total(critic_terms))
            norm = accelerator.clip_grad_norm_(critic.parameters(), options.clip_norm)
            state.discriminator_optimizer.step()
            state.discriminator_optimizer.zero_grad()
            means = torch.stack([real_logits.detach().mean(), fake_logits.detach().mean()])
            state.logit_averages.lerp_(accelerator.reduce(means, "mean"), 1 - weights.lecam_decay)
            correct = adversarial.accuracy(real_logits, fake_logits)
            terms |= {**critic_terms, "discriminator_norm": norm, "discriminator_accuracy": correct}

        state.step += 1
        state.ema.update(tokenizer, state.step)
        state.seconds += together(accelerator, clock.tick(clips=len(batch)))
        terms["loss"] = loss
        if together(accelerator, clock.log_due()):
            scalars = {k: accelerator.reduce(v.detach().float(), "mean").item() for k, v in terms.items()}
            scalars["learning_rate"] = peaks[0][1][0] * schedule.rate(state.step, state.seconds)
            scalars["clips_per_second"] = clock.clips_per_second()
            if accelerator.is_main_process:
                run.save_scalars(scalars, state.step)
                say(progress_line(scalars, state, schedule))
        if clock.save_due() and accelerator.is_main_process:
            save_and_validate(state, fixed_clips, run, say)

    if accelerator.is_main_process:
        save_and_validate(state, fixed_clips, run, say)
        reason = "asked to stop" if stop.asked else "done"
        skipped = f"{len(dataset.skipped)} files skipped"
        say(f"{reason} at step {state.step} after {state.seconds / 60:.1f} minutes; {skipped}")
    accelerator.wait_for_everyone()
    return state.ema.module.eval()


def share(batch: Tensor, accelerator: Accelerator) -> Tensor:
    """This process' part of a batch."""
    world = accelerator.num_processes
    if len(batch) % world:
        raise ValueError(f"{world} processes can't share a batch of {len(batch)} evenly: change the batch sizes")
    return batch.chunk(world)[accelerator.process_index]


def together(accelerator: Accelerator, value: float) -> float:
    """The mean over processes: their clocks and signals differ, but what follows from them must not."""
    if accelerator.num_processes == 1:
        return value
    return accelerator.reduce(torch.tensor(float(value), device=accelerator.device), "mean").item()


@torch.no_grad()
def save_and_validate(state: TrainState, clips: list[Tensor], run: RunFolder, say) -> None:
    """Checkpoint, model, and of the fixed clips the PSNR (peak 2, mean over clips) and a picture of the first four."""
    run.save_checkpoint(state.state_dict())
    tokenizer = state.ema.module.eval()
    run.save_model(tokenizer)
    if not clips:
        return
    decoded = [tokenizer.decode(tokenizer.encode(clip)).cpu() for clip in clips]
    errors = [reconstruction_loss(a, b).item() for a, b in zip(decoded, clips, strict=True)]
    psnr = sum(10 * math.log10(4 / max(error, 1e-12)) for error in errors) / len(clips)
    run.save_scalars({"validation_psnr": psnr}, state.step)
    picture = run.save_picture(torch.cat(clips[:4]), torch.cat(decoded[:4]), state.step)
    say(f"step {state.step}  validation {psnr:.2f} dB on {len(clips)} fixed clips, {picture}")


def progress_line(scalars: dict[str, float], state: TrainState, schedule: Schedule) -> str:
    progress = schedule.progress(state.step, state.seconds)
    left = state.seconds * (1 / progress - 1) / 60
    line = (
        f"step {state.step}  {state.seconds / 60:.1f} min, {left:.1f} left  {scalars['clips_per_second']:.1f} clips/s"
    )
    line += f"  loss {scalars['loss']:.4f}  l2 {scalars['reconstruction']:.4f}"
    for name in ("perceptual", "commitment", "adversarial", "discriminator"):
        if name in scalars:
            line += f"  {name} {scalars[name]:.4f}"
    if "discriminator_accuracy" in scalars:
        line += f"  accuracy {scalars['discriminator_accuracy']:.2f}"
    if "entropy" in scalars:
        token, codebook = scalars["entropy_per_sample"] / BIT, scalars["entropy_codebook"] / BIT
        line += f"  bits: token {token:.2f}, codebook {codebook:.2f}"
    return line
