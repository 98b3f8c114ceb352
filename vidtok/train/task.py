"""What the training loop asks of the things that it trains."""

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from vidtok.datasets.loading import Shard
from vidtok.train.run_folder import RunFolder

Batch = Any  # a tensor, or a nested dict, list or tuple of tensors, all with the samples along dimension 0


class Batches(Protocol):
    """An endless row of batches: batch i is a pure function of (seed, i), and so is each part of it."""

    def loader(self, start: int, workers: int, shard: Shard) -> Iterator[Batch]:
        """That part of batches start, start + 1, ..., made ahead by `workers` processes.

        part: (index, count), the rows of one of `count` equal slices. What belongs to other parts alone isn't made.

        Raises:
            ValueError: where a batch doesn't divide into such parts.
        """

    def summary(self) -> str:
        """What there is to say of the parts made, such as "3 files skipped"; "" for nothing."""


class Task(Protocol):
    """An objective and how to watch it. Plain settings and frozen networks only: all that training changes is in the
    `TrainState`.

    A batch comes on the model's device, and is this process' share or, with gradient accumulation, a part of that.
    Every part has random numbers of its own. So a term that is a mean over samples comes out the same for any number of
    processes and parts; what all samples shall have in common is drawn by a generator seeded with `step`, and what
    shall be random per sample and yet the same for any number of processes comes in the batch.
    """

    def terms(self, model: nn.Module, batch: Batch, step: int) -> tuple[dict[str, Tensor], Any]:
        """Scalar terms and diagnostics by name, and what `discriminator_terms` needs (detached) or None.

        `model` is wrapped where several processes train it: call it as a whole (`unwrap_model` gives its attributes).
        """

    def total(self, terms: dict[str, Tensor], step: int) -> Tensor:
        """The weighted sum that is minimised."""

    def validate(self, model: Any, run: RunFolder, step: int) -> str | None:
        """Called at every checkpoint, in the main process, with the averaged model in evaluation mode: writes scalars
        and pictures to `run`, returns what to say or None."""

    def progress(self, scalars: dict[str, float]) -> str:
        """Its part of the progress line."""


class AdversarialTask(Task, Protocol):
    """A task whose state has a discriminator, too: after each step of the model, it has one on the same batch.

    Attributes:
        logit_decay: of the moving averages of the terms "real_logit" and "fake_logit".
    """

    logit_decay: float

    def terms(
        self, model: nn.Module, batch: Batch, step: int, discriminator: nn.Module | None = None
    ) -> tuple[dict[str, Tensor], Any]:
        """As in `Task`. discriminator: that of the state, not wrapped; only the model learns from the terms."""

    def is_adversarial_step(self, step: int) -> bool:
        """Return whether the discriminator trains at this step."""

    def discriminator_terms(
        self, discriminator: nn.Module, batch: Batch, aux: Any, lecam_ema: Tensor, step: int
    ) -> dict[str, Tensor]:
        """Scalar terms and diagnostics by name, "real_logit" and "fake_logit" among them.

        aux: what `terms` returned for the same batch; lecam_ema: [2], averages of the real and the fake logit.
        """

    def discriminator_total(self, terms: dict[str, Tensor], step: int) -> Tensor:
        """Return the weighted sum that the discriminator minimizes."""
