"""The training loop of a tokenizer, in full.

Batch i is a pure function of (seed, i) and every step seeds its own random numbers, so that the model, the optimiser,
the EMA and two counters are all there is to resume.
"""

import math
import signal
import time
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor

from vidtok.datasets import ClipFolder
from vidtok.lpips import LPIPS
from vidtok.tokenizer import VideoTokenizer
from vidtok.train.folder import RunFolder
from vidtok.train.loss import LossWeights, perceptual_loss, reconstruction_loss
from vidtok.train.schedule import Schedule

NAT = math.log(2)  # nats per bit


@dataclass(frozen=True)
class TrainerOptions:
    """How the loop runs.

    Attributes:
        precision: "fp32" or "bf16" (autocast; weights, optimiser and quantizer stay in float32).
        clip_norm: gradients are scaled down to this norm.
        ema_decay: of the weight average that is evaluated and saved; it ramps up over the first steps.
        workers: processes that decode batches ahead.
        seed: of batches, crops and stochastic signs.
        log_seconds, save_seconds: between progress lines; between checkpoints, pictures and validation.
    """

    precision: str = "fp32"
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    workers: int = 1
    seed: int = 0
    log_seconds: float = 10
    save_seconds: float = 300


def train(
    tokenizer: VideoTokenizer,
    optimizer: torch.optim.Optimizer,
    dataset: ClipFolder,
    fixed_clips: list[Tensor],
    schedule: Schedule,
    weights: LossWeights,
    options: TrainerOptions,
    run: RunFolder,
    lpips: LPIPS | None = None,
    say=print,
) -> VideoTokenizer:
    """Trains until the schedule ends, or until SIGTERM or Ctrl-C, and saves either way.

    Args:
        tokenizer: in training mode; trained in place.
        optimizer: over its parameters, at the peak learning rate.
        dataset: gives batch i, float32 [B, 3, T, H, W] in [-1, 1].
        fixed_clips: [1, 3, T, H, W] each; their PSNR and pictures show how the run goes. May be empty.
        run: where it is saved; if a checkpoint lies there, the run goes on from it.
        lpips: the perceptual term, needed where its weight isn't 0.
        say: takes one line of progress.

    Returns:
        The tokenizer with the averaged weights, in evaluation mode.

    Raises:
        FloatingPointError: if the loss isn't finite; the last good checkpoint stays.
    """
    accelerator = Accelerator(mixed_precision="bf16" if options.precision == "bf16" else "no")
    model, optimizer = accelerator.prepare(tokenizer, optimizer)
    ema = ModelEmaV3(tokenizer, decay=options.ema_decay, use_warmup=True)
    if lpips is not None:
        lpips.to(accelerator.device)
    peaks = [group["lr"] for group in optimizer.param_groups]
    step, seconds = 0, 0.0
    if (state := run.load_checkpoint()) is not None:
        tokenizer.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.module.load_state_dict(state["ema"])
        step, seconds = state["step"], state["seconds"]
        say(f"goes on from step {step} after {seconds / 60:.1f} minutes")

    stop_asked = False

    def ask_to_stop(*_):
        nonlocal stop_asked
        stop_asked = True

    handlers = {s: signal.signal(s, ask_to_stop) for s in (signal.SIGTERM, signal.SIGINT)}
    clock = Clock(options.log_seconds, options.save_seconds)
    for video in dataset.loader(start=step, workers=options.workers):
        if stop_asked or schedule.progress(step, seconds) >= 1:
            break
        video = video.chunk(accelerator.num_processes)[accelerator.process_index].to(accelerator.device)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule.rate(step, seconds)
        torch.manual_seed((options.seed * 1_000_003 + step) * 4096 + accelerator.process_index)

        with accelerator.autocast():
            decoded, z, codes = model(video)
            terms = {"reconstruction": reconstruction_loss(decoded, video), **tokenizer.quantizer.losses(z, codes)}
            if lpips is not None:
                terms["perceptual"] = perceptual_loss(lpips, decoded, video, weights.perceptual_frames)
        loss = weights.total(terms, step)
        if not loss.isfinite():
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}: lower the learning rate, or use fp32")
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), options.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        ema.update(tokenizer, step)

        seconds += clock.tick(clips=len(video) * accelerator.num_processes)
        terms |= {"loss": loss.detach(), "gradient_norm": norm}
        if clock.log_due():
            scalars = {name: value.item() for name, value in terms.items()}
            scalars["learning_rate"] = peaks[0] * schedule.rate(step, seconds)
            scalars["clips_per_second"] = clock.clips_per_second
            if accelerator.is_main_process:
                run.save_scalars(scalars, step)
                say(progress_line(scalars, step, seconds, schedule.progress(step, seconds)))
        if clock.save_due() and accelerator.is_main_process:
            save(run, tokenizer, optimizer, ema, step, seconds)
            validate(run, ema.module, fixed_clips, step, say)

    for number, handler in handlers.items():
        signal.signal(number, handler)
    if accelerator.is_main_process:
        save(run, tokenizer, optimizer, ema, step, seconds)
        validate(run, ema.module, fixed_clips, step, say)
        reason = "asked to stop" if stop_asked else "done"
        say(f"{reason} at step {step} after {seconds / 60:.1f} minutes; {len(dataset.skipped)} files skipped")
    return ema.module.eval()


def save(run: RunFolder, tokenizer, optimizer, ema: ModelEmaV3, step: int, seconds: float) -> None:
    state = {
        "model": tokenizer.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": ema.module.state_dict(),
        "step": step,
        "seconds": seconds,
    }
    run.save_checkpoint(state)
    run.save_model(ema.module)


@torch.no_grad()
def validate(run: RunFolder, tokenizer: VideoTokenizer, clips: list[Tensor], step: int, say) -> None:
    """PSNR of the fixed clips (peak 2, mean over clips) and a picture of the first four."""
    if not clips:
        return
    tokenizer.eval()
    decoded = [tokenizer.decode(tokenizer.encode(clip)).cpu() for clip in clips]
    errors = [reconstruction_loss(a, b) for a, b in zip(decoded, clips, strict=True)]
    psnr = sum(10 * math.log10(4 / max(e.item(), 1e-12)) for e in errors) / len(clips)
    run.save_scalars({"validation_psnr": psnr}, step)
    picture = run.save_picture(torch.cat(clips[:4]), torch.cat(decoded[:4]), step)
    say(f"step {step}  validation {psnr:.2f} dB on {len(clips)} fixed clips, {picture}")


def progress_line(scalars: dict[str, float], step: int, seconds: float, progress: float) -> str:
    left = seconds * (1 / progress - 1) / 60 if progress > 0 else float("inf")
    line = f"step {step}  {seconds / 60:.1f} min, {left:.1f} left  {scalars['clips_per_second']:.1f} clips/s"
    line += f"  loss {scalars['loss']:.4f}  l2 {scalars['reconstruction']:.4f}"
    for name in ("perceptual", "commitment"):
        if name in scalars:
            line += f"  {name} {scalars[name]:.4f}"
    if "entropy" in scalars:
        token, codebook = scalars["entropy_per_sample"] / NAT, scalars["entropy_codebook"] / NAT
        line += f"  bits: token {token:.2f}, codebook {codebook:.2f}"
    return line


class Clock:
    """Seconds per step, clips per second, and when the next line or checkpoint is due."""

    def __init__(self, log_seconds: float, save_seconds: float):
        self.log_seconds, self.save_seconds = log_seconds, save_seconds
        now = time.monotonic()
        self.last = self.logged = self.saved = now
        self.clips = 0
        self.clips_per_second = 0.0

    def tick(self, clips: int) -> float:
        """Seconds since the last tick."""
        now = time.monotonic()
        passed, self.last = now - self.last, now
        self.clips += clips
        return passed

    def log_due(self) -> bool:
        if self.last - self.logged < self.log_seconds:
            return False
        self.clips_per_second = self.clips / (self.last - self.logged)
        self.logged, self.clips = self.last, 0
        return True

    def save_due(self) -> bool:
        if self.last - self.saved < self.save_seconds:
            return False
        self.saved = self.last
        return True
