"""Interfaces of the training loop: batches and tasks."""

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from vidtok.datasets.loading import Shard
from vidtok.train.run_folder import RunFolder

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

    def terms(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor], Any]:
        """Compute the loss and its terms.

        With several processes `model` is wrapped: call it as a whole; `unwrap_model` gives access to its attributes.

        Returns:
            The scalar that training minimizes; scalar terms of it and diagnostics by name; and the detached inputs of
            `discriminator_terms`, or None.
        """

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
    ) -> tuple[Tensor, dict[str, Tensor], Any]:
        """Compute what `Task.terms` does, given the discriminator, not wrapped. It is not trained by the loss."""

    def is_adversarial_step(self, step: int) -> bool:
        """Return whether the discriminator trains at this step."""

    def discriminator_terms(
        self, discriminator: nn.Module, batch: Batch, aux: Any, lecam_ema: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the discriminator's loss and its terms.

        Args:
            discriminator: the discriminator, wrapped with several processes.
            batch: the batch of `terms`.
            aux: the last value that `terms` returned for it.
            lecam_ema: [2], moving averages of the real and the fake logit.
            step: number of the step.

        Returns:
            The scalar that the discriminator minimizes; scalar terms of it and diagnostics by name, including
            "real_logit" and "fake_logit".
        """
