"""Training a generator: what the training loop asks of it."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vidtok.generator.base import Generator, Objective
from vidtok.generator.pictures import frame_rows
from vidtok.quantize.lfq import pack_bits
from vidtok.tokenizer import VideoTokenizer
from vidtok.train.folder import RunFolder

PIXELS_AT_ONCE = 1 << 22  # that are encoded, 15 clips of 17 x 128 x 128: a share of a published batch would fill a GPU


class GeneratorTask:
    """Every kind of generator's own loss, on the batches of `vidtok.generator.batches`.

    Args:
        objective: of the kind-independent settings.
        tokenizer: encodes clips and decodes samples. None: batches are tokens, and no pictures are drawn.
        samples: how many are drawn at each checkpoint, of classes in turn.
        sampling: arguments of `generate` for them.
        held_out: one batch whose loss is watched, or None.
    """

    def __init__(
        self,
        objective: Objective,
        tokenizer: VideoTokenizer | None = None,
        samples: int = 0,
        sampling: Mapping[str, Any] | None = None,
        held_out: dict[str, Tensor] | None = None,
    ):
        self.objective, self.tokenizer, self.samples = objective, tokenizer, samples
        self.sampling, self.held_out = dict(sampling or {}), held_out

    def terms(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[dict[str, Tensor], None]:
        terms = dict(model(self.encoded(batch), self.objective))
        terms["objective"] = terms.pop("loss")  # the loop calls the total the loss
        return terms, None

    def total(self, terms: dict[str, Tensor], step: int) -> Tensor:
        return terms["objective"]

    def encoded(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """With ids, and latents where there are any, in place of a video or of latents alone."""
        if "ids" in batch:
            return batch
        if "latents" in batch:
            return {**batch, "ids": pack_bits(batch["latents"] > 0)}
        batch = dict(batch)
        video = batch.pop("video")
        tokenizer = self.tokenizer.to(video.device)
        some = max(1, PIXELS_AT_ONCE // video[0, 0].numel())
        with torch.autocast(video.device.type, enabled=False):  # tokens are those of the tokenizer's own precision
            latents = torch.cat([tokenizer.encode_latents(part) for part in video.split(some)])
        return {**batch, "latents": latents, "ids": tokenizer.quantizer.codes_to_ids(latents)}

    def held_out_on(self, device: torch.device) -> dict[str, Tensor]:
        return self.encoded({name: value.to(device) for name, value in self.held_out.items()})

    def validate(self, model: Generator, run: RunFolder, step: int) -> str | None:
        """The loss on held-out samples, and a picture of new ones."""
        lines = []
        if self.held_out is not None:
            batch = self.held_out_on(model.device)
            terms = model(batch, Objective(0.0, 0.0, self.objective.tasks))
            scalars = {f"held_out_{name}": value.item() for name, value in terms.items()}
            run.save_scalars(scalars, step)
            numbers = "  ".join(f"{name.removeprefix('held_out_')} {value:.3f}" for name, value in scalars.items())
            lines.append(f"{len(batch['label'])} held out: {numbers}")
        if self.samples and self.tokenizer is not None:
            image = self.draw(model)
            lines.append(str(run.save_picture("samples", image, step)))
        return ", ".join(lines) or None

    def draw(self, model: Generator) -> Tensor:
        """A picture [3, H, W] in [0, 1]: a row of frames of each sample; of what held-out samples begin with, in turn,
        where the model always is given a prefix."""
        classes = len(model.config.classes)
        label = [i % classes for i in range(self.samples)] if classes else None
        prefix = None
        if latents := self.objective.given_prefix:
            ids = self.held_out_on(model.device)["ids"]
            prefix = ids[torch.arange(self.samples) % len(ids), :latents]
        ids = model.generate(self.samples, label, prefix, **self.sampling)
        video = self.tokenizer.to(model.device).decode(ids)
        return (frame_rows(video.cpu()) + 1) / 2

    def progress(self, scalars: dict[str, float]) -> str:
        if "bits" not in scalars:
            return f"rms error {math.sqrt(scalars['objective']):.3f}"
        return f"bits per token {scalars['bits']:.2f}  accuracy {scalars['accuracy']:.3f}"
