"""Training a generator: what the training loop asks of it.

Training batches for generators, each a pure function of (seed, number).

A batch is a dict of tensors with the samples along dimension 0: label int64 [B], -1 for none; seed int64 [B], of each
sample's random draws; and ids int64 [B, t, h, w], latents float32 [B, K, t, h, w], whose signs are the ids, or video
float32 [B, 3, T, H, W], which the task encodes.
"""

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from vidtok.datasets import LabelledDataset
from vidtok.datasets.frames import frame_rows
from vidtok.datasets.loading import WHOLE, Shard, prefetch, shard_rows
from vidtok.extraction.dataset import TokenBatches
from vidtok.generator.base import Generator, Objective
from vidtok.quantize.bits import pack_bits
from vidtok.tokenizer import VideoTokenizer
from vidtok.train.loop import build_schedule
from vidtok.train.run_folder import RunFolder
from vidtok.train.state import build_state

if TYPE_CHECKING:
    from vidtok.generator.base import GeneratorConfig

PIXELS_AT_ONCE = 1 << 22  # that are encoded, 15 clips of 17 x 128 x 128: a share of a published batch would fill a GPU


class GeneratorTask:
    """Every kind of generator's own loss, on the batches of `vidtok.generator.training`.

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


Batch = dict[str, Tensor]


class StoredBatches:
    """Extracted ids or latents.

    Raises ValueError for other features.
    """

    def __init__(self, tokens: TokenBatches, seed: int = 0):
        if tokens.dataset.feature not in ("ids", "latents"):
            raise ValueError(f"generators are trained on ids or latents, not on {tokens.dataset.feature}")
        self.tokens, self.seed = tokens, seed

    def __getitem__(self, number: int) -> Batch:
        return self._complete(number, self.tokens[number], WHOLE)

    def first(self, count: int) -> Batch:
        """The first `count` samples of the first batch."""
        return {name: values[:count] for name, values in self[0].items()}

    def loader(self, start: int = 0, workers: int = 0, shard: Shard = WHOLE) -> Iterator[Batch]:
        """That part of batches start, start + 1, ... for ever, read ahead by `workers` processes."""
        read = self.tokens.loader(start, workers=workers, shard=shard)
        return map(partial(self._complete, shard=shard), itertools.count(start), read)

    def summary(self) -> str:
        return self.tokens.summary()

    def _complete(self, number: int, read: Batch, shard: Shard) -> Batch:
        features = read["features"]
        batch = {"label": read["label"], "seed": seeds(self.seed, number, self.tokens.batch_size, shard)}
        return {self.tokens.dataset.feature: features, **batch}


class ClipBatches:
    """Clips of a labelled dataset, decoded as they are needed.

    Raises ValueError for a batch size below 1 or an empty dataset.
    """

    def __init__(self, dataset: LabelledDataset, batch_size: int, seed: int = 0):
        if batch_size < 1 or not len(dataset):
            raise ValueError(f"want a batch size of at least 1 and something to train on, got {batch_size}")
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed

    def __getitem__(self, number: int) -> Batch:
        return self.shard_of(number, WHOLE)

    def shard_of(self, number: int, shard: Shard) -> Batch:
        """The rows that are `part` of batch `number`. Raises ValueError where it doesn't divide into such parts."""
        samples = []
        for row in shard_rows(shard, self.batch_size):
            epoch, place = divmod(number * self.batch_size + row, len(self.dataset))
            samples.append(self.dataset.draw(int(_order(self.seed, epoch, len(self.dataset))[place]), epoch))
        return {
            "video": torch.stack([sample.video[0] for sample in samples]),
            "label": torch.tensor([sample.label for sample in samples]),
            "seed": seeds(self.seed, number, self.batch_size, shard),
        }

    def first(self, count: int) -> Batch:
        """The first `count` samples of the first batch, of which the others aren't decoded."""
        return ClipBatches(self.dataset, count, self.seed)[0]

    def loader(self, start: int = 0, workers: int = 0, shard: Shard = WHOLE) -> Iterator[Batch]:
        """That part of batches start, start + 1, ... for ever, made ahead by `workers` processes."""
        return prefetch(partial(self.shard_of, shard=shard), start, workers)

    def summary(self) -> str:
        count = self.dataset.resampled
        return f"{count} times another video took the place of a bad one" if count else ""


def seeds(seed: int, number: int, size: int, shard: Shard) -> Tensor:
    """int64, of the random draws of the samples in a part of batch `number`, which has `size`."""
    rows = shard_rows(shard, size)
    return torch.from_numpy(np.random.default_rng([seed, number]).integers(2**62, size=size)[rows.start : rows.stop])


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, count]).permutation(count)


FIRST_SAMPLES = 16  # that tell a generator its grid, and diffusion the scale of latents


def build_generator_training(cfg: DictConfig) -> dict:
    """The arguments of `vidtok.train.loop.train` that a config determines: for `vidtok train generator`."""
    from vidtok.generator import GeneratorConfig, Objective, create_generator
    from vidtok.generator.masks import check_task

    plain = OmegaConf.to_container(cfg, resolve=True)
    data, count = plain["data"], plain["data"]["held_out_samples"]
    tokenizer = VideoTokenizer.from_pretrained(plain["tokenizer"])
    if tokenizer.bits != int(tokenizer.bits):
        raise ValueError(
            f"generators take ids apart into bits, and {plain['tokenizer']} has {tokenizer.bits:.2f} of them"
        )
    if plain["generator"]["kind"] == "diffusion" and tokenizer.config.quantizer["kind"] != "lfq":
        raise ValueError(
            f"diffusion makes latents whose signs are the tokens, as those of LFQ: {plain['tokenizer']} isn't"
        )
    batches, classes, fps = build_generator_batches(data, data["split"], data["batch_size"], tokenizer, plain["seed"])
    sampling = {name: value for name, value in plain["sampling"].items() if value is not None}
    task = GeneratorTask(Objective(**plain["objective"]), tokenizer, plain["samples"], sampling)
    if data["held_out"]:
        same = data | {"classes": list(classes)}
        task.held_out = build_generator_batches(same, data["held_out"], count, tokenizer, plain["seed"])[0][0]
    if task.samples and task.objective.given_prefix and task.held_out is None:
        raise ValueError("pictures of a model that is always given a prefix need data.held_out=SPLIT, or samples=0")
    first = task.encoded(batches.first(min(FIRST_SAMPLES, data["batch_size"])))
    torch.manual_seed(plain["seed"])  # of the initial weights
    generator = create_generator(
        GeneratorConfig(
            name=plain["name"],
            tokenizer=tokenizer.config.name,
            weight_hash=tokenizer.weight_hash,
            bits=tokenizer.bits,
            grid=tuple(first["ids"].shape[1:]),
            stride=tokenizer.stride,
            fps=fps,
            classes=tuple(classes),
            **plain["size"],
            **plain["generator"],
        )
    )
    generator.check_sampling(**sampling)  # now, not at the first picture
    for name, weight in task.objective.tasks.items():
        if weight and generator.causal and not name.startswith(("none", "prefix")):  # it learns every prefix anyway
            raise ValueError(
                f"an autoregressive model goes on from prefixes alone: objective.tasks.{name} is for others"
            )
        if weight:
            check_task(name, generator.config.grid)  # likewise: not when it is first drawn
    if generator.config.kind == "diffusion":
        if "latents" not in first:
            raise ValueError("diffusion is trained on latents: give clips, or extract them with --features latents")
        generator.fit_scale(first["latents"])
    return {"task": task, "state": build_state(generator, plain), "batches": batches, **build_schedule(plain)}


def check_generator(cfg: DictConfig, config: "GeneratorConfig") -> None:
    """Notes in the run folder what its weights mean. Raises ValueError where that was something else, such as another
    tokenizer or other classes: the checkpoint might fit, and its tokens would be of neither."""
    from pathlib import Path

    from vidtok.generator.base import SCHEMA
    from vidtok.train.run_folder import check_fingerprint

    facts = {key: value for key, value in asdict(config).items() if key != "name"}
    check_fingerprint(Path(cfg.run), {"command": "train generator", "schema": SCHEMA, **facts})


def build_generator_batches(data: dict, split: str, batch_size: int, tokenizer: VideoTokenizer, seed: int):
    """(batches, classes, frames per second or None where these differ) of the group `data` of a generator.

    Raises:
        ValueError: for features of another tokenizer, a split held out where there are none, or unless either features
            or a source are given.
    """
    from vidtok.datasets import MovingDigits
    from vidtok.extraction import TokenDataset

    if (data["features"] is None) == (data["source"] is None):
        raise ValueError("give either data.features=, extracted tokens, or data.source=, videos")
    if data["features"] is None:
        dataset = build_generator_clips(data, split, seed)
        batches = ClipBatches(dataset, batch_size, seed)
        fps = MovingDigits.fps if data["source"] == "digits" else data["fps"] and data["fps"] / data["stride"]
    else:
        splits = {entry.split for entry in TokenDataset(data["features"], cache=data["cache"]).entries}
        if splits == {None} and split != data["split"]:
            raise ValueError(f"{data['features']} has no splits, so that {split!r} can't be held out of it")
        chosen = split if splits != {None} else None
        dataset = TokenDataset(data["features"], chosen, classes=data["classes"] or None, cache=data["cache"])
        if (own := dataset.meta["weight_hash"]) != tokenizer.weight_hash:
            name = f"{tokenizer.config.name} ({tokenizer.weight_hash})"
            raise ValueError(f"{data['features']} holds tokens of weights {own}, not of {name}: set tokenizer=")
        if dataset.feature == "latents" and tokenizer.config.quantizer["kind"] != "lfq":
            raise ValueError(f"{data['features']}: tokens are the signs of latents of LFQ alone: extract ids")
        tokens = TokenBatches(dataset, batch_size, data["latents"], first_only=True, seed=seed)
        batches = StoredBatches(tokens, seed)
        rates = {round(dataset.read(i).meta.fps, 3) for i in range(0, len(dataset), -(-len(dataset) // 32))}
        fps = rates.pop() if len(rates) == 1 else None
        if fps is None:
            message = (
                f"{data['features']}: clips of different rates: real clips to compare with, and prefixes, will be read "
                "at their own; extract with --fps for one of all"
            )
            warnings.warn(message, stacklevel=2)
    return batches, [] if data["classes"] == [] else dataset.classes, fps


def build_generator_clips(data: dict, split: str, seed: int) -> "LabelledDataset":
    """Random clips and crops of the videos that the group `data` of a generator names."""

    from vidtok.datasets import MovingDigits, SquareTransform, open_dataset, random_clip

    if data["source"] == "digits":
        return MovingDigits(split, data["frames"], data["size"], seed)
    if data["stride"] != 1 and data["fps"] is None:
        raise ValueError(f"data.stride={data['stride']} counts frames of data.fps: give it, too")
    columns = {name: data[name] for name in ("path_column", "label_column", "split_column")}
    return open_dataset(
        data["source"],
        data["root"],
        split,
        data["classes"] or None,
        **columns,
        seed=seed,
        on_error="resample",
        sampler=partial(random_clip, frames=data["frames"], stride=data["stride"], at_fps=data["fps"]),
        transform=SquareTransform(data["size"], tuple(data["scale"]), data["flip"]),
    )
