"""Time and memory of a training step of `vidtok train tokenizer`, with and without a discriminator."""

import tempfile
import time
from collections.abc import Callable, Iterator

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor

from vidtok.bench.timing import peak_mb, summary
from vidtok.bench.tokenizer import Clip, Variant, open_tokenizer
from vidtok.datasets.loading import Shard
from vidtok.nets.discriminator import Discriminator
from vidtok.train.loop import Schedule, TrainerOptions, train
from vidtok.train.losses import LossWeights
from vidtok.train.run_folder import RunFolder
from vidtok.train.state import StopSignal, TrainState, make_ema
from vidtok.train.tokenizer import TokenizerTask

CLIP = Clip(2, 17, 64)
DISCRIMINATOR_BASE = 32  # a quarter of the paper's discriminator, whose full width is for a larger tokenizer
NEVER = 1e9  # seconds between progress lines and checkpoints, so that only the last checkpoint is written


class RandomClips:
    """Batches of random clips that record when each is requested."""

    def __init__(self, clip: Clip):
        self.clip = clip
        self.requested: list[float] = []

    def loader(self, start: int, workers: int, shard: Shard) -> Iterator[Tensor]:
        batch, frames, side = self.clip
        while True:
            video = torch.rand(batch, 3, frames, side, side) * 2 - 1
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.requested.append(time.perf_counter())
            yield video

    def summary(self) -> str:
        return ""


def training_run(
    name: str, clip: Clip, precision: str, discriminator_base: int | None, steps: int
) -> Callable[[], list]:
    """Build a function that runs the training loop in a temporary folder, on the device that accelerate picks.

    The function returns the seconds of each step except the first.

    Args:
        name: see `vidtok.bench.tokenizer.open_tokenizer`.
        clip: size of a batch.
        precision: "fp32" or "bf16" (autocast).
        discriminator_base: width of the discriminator; None, no discriminator.
        steps: number of timed steps.
    """
    tokenizer = open_tokenizer(name, torch.device("cpu"), Variant("fp32")).train()
    state = TrainState(tokenizer, create_optimizer_v2(tokenizer, opt="adamw", lr=1e-4), make_ema(tokenizer))
    weights = LossWeights(perceptual=0, adversarial=0 if discriminator_base is None else 0.1)
    if discriminator_base is not None:
        state.discriminator = Discriminator((clip.frames, clip.side, clip.side), discriminator_base)
        state.discriminator_optimizer = create_optimizer_v2(state.discriminator, opt="adamw", lr=1e-4)
    batches = RandomClips(clip)
    options = TrainerOptions(precision, log_seconds=NEVER, save_seconds=NEVER)
    task = TokenizerTask(weights)

    def run() -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            # More steps than are timed: the first is left out, and a step ends when the next batch is requested.
            schedule = Schedule(max_steps=steps + 2)
            train(task, state, batches, schedule, options, RunFolder(folder), StopSignal(), log=lambda line: None)
        return [b - a for a, b in zip(batches.requested[1:], batches.requested[2:], strict=False)]

    return run


def bench_training(
    name: str,
    device: torch.device,
    clip: Clip = CLIP,
    precisions: tuple[str, ...] = ("fp32", "bf16"),
    runs: int = 5,
    memory: bool = True,
) -> list[dict]:
    """Time training steps: losses, optimizers and the moving average, without reading clips and without LPIPS.

    The weights of LPIPS are not shipped.

    Args:
        name: see `vidtok.bench.tokenizer.open_tokenizer`.
        device: device of the memory measurement; steps are timed on the device that accelerate picks.
        clip: size of a batch.
        precisions: precisions of autocast to measure.
        runs: number of timed steps.
        memory: whether to measure peak memory.

    Returns:
        One row per precision, without and with a discriminator: {"what": "step" or "step with GAN", "precision",
        "batch", "frames", "side", "critic_base" (width of the discriminator), "clips_per_s", "median_s", "best_s",
        "worst_s", "runs", "peak_mb"}. "peak_mb" is the peak over two steps and the checkpoint, None without `memory`.
    """
    rows = []
    for what, base in (("step", None), ("step with GAN", DISCRIMINATOR_BASE)):
        for precision in precisions:
            times = summary(training_run(name, clip, precision, base, runs)())
            rows.append(
                {
                    "what": what,
                    "precision": precision,
                    **clip._asdict(),
                    "critic_base": base,
                    "clips_per_s": clip.batch / times["median_s"],
                    **times,
                    "peak_mb": peak_mb(training_run, name, clip, precision, base, 0, device=device) if memory else None,
                }
            )
    return rows
