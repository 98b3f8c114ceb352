"""Training of generators: the task of the training loop, batches, and functions that build both from a config.

A batch is a dict of tensors with the samples along dimension 0: "label", int64 [B], -1 for none; "seed", int64 [B],
seed of each sample's random numbers; and one of "ids", int64 [B, t, h, w]; "latents", float32 [B, K, t, h, w], whose
signs are the ids; "video", float32 [B, 3, T, H, W] in [-1, 1], which the task encodes. A batch is a pure function of
(seed, number).
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
from omegaconf import DictConfig
from torch import Tensor, nn

from vidtok.configs.compose import to_dict
from vidtok.datasets import LabeledDataset, VideoError
from vidtok.datasets.frames import frame_rows
from vidtok.datasets.loading import WHOLE, Shard, prefetch, shard_rows
from vidtok.extraction.dataset import TokenBatches
from vidtok.generator.base import Generator, Objective
from vidtok.hub import describe_weights
from vidtok.quantize.lfq import pack_bits
from vidtok.tokenizer import VideoTokenizer
from vidtok.train.loop import build_schedule
from vidtok.train.run_folder import RunFolder
from vidtok.train.state import build_state

if TYPE_CHECKING:
    from vidtok.generator.base import GeneratorConfig

PIXELS_AT_ONCE = 1 << 22  # encoded at once: 15 clips of 17 x 128 x 128, since a whole batch could fill a GPU


class GeneratorTask:
    """Training task of all kinds of generators; see `vidtok.train.task.Task` for the interface.

    Args:
        objective: settings of the objective.
        tokenizer: encodes clips and decodes samples; None, batches are tokens and no samples are drawn.
        samples: number of samples drawn at each validation, with the classes in turn.
        sampling: arguments of `Generator.generate` for the samples.
        held_out: a validation batch; None, no validation loss.
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

    def terms(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor], None]:
        terms = dict(model(self.encoded(batch), self.objective))
        terms["objective"] = loss = terms.pop("loss")  # the training loop logs what it minimizes as "loss"
        return loss, terms, None

    def encoded(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add ids to a batch of latents; replace a video by its latents and ids."""
        batch = encode_batch(batch, self.tokenizer)
        batch.pop("video", None)
        return batch

    def held_out_on(self, device: torch.device) -> dict[str, Tensor]:
        assert self.held_out is not None
        return self.encoded({name: value.to(device) for name, value in self.held_out.items()})

    def validate(self, model: Generator, run: RunFolder, step: int) -> str | None:
        """Compute the loss on held-out samples and save a picture of new samples; return a line for the log."""
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
        """Draw samples as a picture [3, H, W] in [0, 1], with a row of frames for each sample.

        If the model is always given a prefix in training, the prefixes are those of the held-out samples, in turn.
        """
        classes = len(model.config.classes)
        label = [i % classes for i in range(self.samples)] if classes else None
        prefix = None
        if latents := self.objective.given_prefix:
            ids = self.held_out_on(model.device)["ids"]
            prefix = ids[torch.arange(self.samples) % len(ids), :latents]
        ids = model.generate(self.samples, label, prefix, **self.sampling)
        assert self.tokenizer is not None, "samples need a tokenizer"
        video = self.tokenizer.to(model.device).decode(ids)
        return (frame_rows(video.cpu()) + 1) / 2

    def progress(self, scalars: dict[str, float]) -> str:
        if "bits" not in scalars:
            return f"rms error {math.sqrt(scalars['objective']):.3f}"
        return f"bits per token {scalars['bits']:.2f}  accuracy {scalars['accuracy']:.3f}"


Batch = dict[str, Tensor]


def encode_batch(batch: Batch, tokenizer: VideoTokenizer | None) -> Batch:
    """Add ids to a batch of latents, and latents and ids to one of videos, which need a tokenizer."""
    if "ids" in batch:
        return dict(batch)
    if "latents" in batch:
        return {**batch, "ids": pack_bits(batch["latents"] > 0)}
    video = batch["video"]
    assert tokenizer is not None, "batches of videos need a tokenizer"
    tokenizer.to(video.device)
    some = max(1, PIXELS_AT_ONCE // video[0, 0].numel())
    with torch.autocast(video.device.type, enabled=False):  # tokens must not depend on the precision of training
        latents = torch.cat([tokenizer.encode_latents(part) for part in video.split(some)])
    return {**batch, "latents": latents, "ids": tokenizer.quantizer.codes_to_ids(latents)}


class StoredBatches:
    """Batches of extracted ids or latents.

    Args:
        tokens: batches of a `TokenDataset`.
        seed: seed of the samples' random numbers.

    Raises:
        ValueError: the features are neither ids nor latents.
    """

    def __init__(self, tokens: TokenBatches, seed: int = 0):
        if tokens.dataset.feature not in ("ids", "latents"):
            feature = tokens.dataset.feature
            raise ValueError(f"generators are trained on ids or latents, not on {feature}: extract one of these")
        self.tokens, self.seed = tokens, seed

    def __getitem__(self, number: int) -> Batch:
        return self._complete(number, self.tokens[number], WHOLE)

    def first(self, count: int) -> Batch:
        """Return the first `count` samples of the first batch."""
        return {name: values[:count] for name, values in self[0].items()}

    def loader(self, start: int = 0, workers: int = 0, shard: Shard = WHOLE) -> Iterator[Batch]:
        """Yield one shard of batches start, start + 1, ... endlessly, prefetched by `workers` processes."""
        read = self.tokens.loader(start, workers=workers, shard=shard)
        return map(partial(self._complete, shard=shard), itertools.count(start), read)

    def summary(self) -> str:
        return self.tokens.summary()

    def _complete(self, number: int, read: Batch, shard: Shard) -> Batch:
        features = read["features"]
        batch = {"label": read["label"], "seed": seeds(self.seed, number, self.tokens.batch_size, shard)}
        return {self.tokens.dataset.feature: features, **batch}


class ClipBatches:
    """Batches of clips of a labeled dataset, decoded on the fly.

    Args:
        dataset: the dataset.
        batch_size: samples per batch.
        seed: seed of the order and of the samples' random numbers.

    Raises:
        ValueError: a batch size below 1, or an empty dataset.
    """

    def __init__(self, dataset: LabeledDataset, batch_size: int, seed: int = 0):
        if batch_size < 1 or not len(dataset):
            raise ValueError(f"want {batch_size=} of at least 1 and a dataset that is not empty ({len(dataset)} clips)")
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed

    def __getitem__(self, number: int) -> Batch:
        return self.shard_of(number, WHOLE)

    def shard_of(self, number: int, shard: Shard) -> Batch:
        """Return the rows of one shard of batch `number`.

        Raises:
            ValueError: the batch is not divisible into so many shards.
        """
        samples = []
        for row in shard_rows(shard, self.batch_size):
            epoch, place = divmod(number * self.batch_size + row, len(self.dataset))
            sample = self.dataset.draw(int(_order(self.seed, epoch, len(self.dataset))[place]), epoch)
            if isinstance(sample, VideoError):
                raise sample
            samples.append(sample)
        return {
            "video": torch.stack([sample.video[0] for sample in samples]),
            "label": torch.tensor([sample.label for sample in samples]),
            "seed": seeds(self.seed, number, self.batch_size, shard),
        }

    def first(self, count: int) -> Batch:
        """Return the first `count` samples of the first batch; the others are not decoded."""
        return ClipBatches(self.dataset, count, self.seed)[0]

    def loader(self, start: int = 0, workers: int = 0, shard: Shard = WHOLE) -> Iterator[Batch]:
        """Yield one shard of batches start, start + 1, ... endlessly, prefetched by `workers` processes."""
        return prefetch(partial(self.shard_of, shard=shard), start, workers)

    def summary(self) -> str:
        count = self.dataset.resampled
        return f"unreadable videos were replaced {count} times" if count else ""


def seeds(seed: int, number: int, size: int, shard: Shard) -> Tensor:
    """Return the seeds of the samples in one shard of batch `number` of `size` samples, int64."""
    rows = shard_rows(shard, size)
    return torch.from_numpy(np.random.default_rng([seed, number]).integers(2**62, size=size)[rows.start : rows.stop])


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, count]).permutation(count)


FIRST_SAMPLES = 16  # samples that determine a generator's grid, and the scale of latents for diffusion


def build_generator_training(cfg: DictConfig) -> dict:
    """Build the arguments of `vidtok.train.loop.train` from the config of `vidtok train generator`.

    Raises:
        ValueError: settings that contradict each other, the tokenizer or the data.
    """
    from vidtok.generator import GeneratorConfig, Objective, create_generator
    from vidtok.generator.masks import check_task

    plain = to_dict(cfg)
    data, count = plain["data"], plain["data"]["held_out_samples"]
    tokenizer = VideoTokenizer.from_pretrained(plain["tokenizer"])
    if tokenizer.bits != int(tokenizer.bits):
        raise ValueError(
            f"generators need a codebook of a whole number of bits, and {plain['tokenizer']} has {tokenizer.bits:.2f}"
        )
    if plain["generator"]["kind"] == "diffusion" and tokenizer.config.quantizer["kind"] != "lfq":
        raise ValueError(
            f"diffusion needs an LFQ tokenizer, whose tokens are the signs of latents: {plain['tokenizer']} isn't one"
        )
    batches, classes, fps = build_generator_batches(data, data["split"], data["batch_size"], tokenizer, plain["seed"])
    sampling = {name: value for name, value in plain["sampling"].items() if value is not None}
    task = GeneratorTask(Objective(**plain["objective"]), tokenizer, plain["samples"], sampling)
    if data["held_out"]:
        same = data | {"classes": list(classes)}
        task.held_out = build_generator_batches(same, data["held_out"], count, tokenizer, plain["seed"])[0][0]
    if task.samples and task.objective.given_prefix and task.held_out is None:
        raise ValueError("samples of a model that is always given a prefix need data.held_out=SPLIT; or give samples=0")
    first = task.encoded(batches.first(min(FIRST_SAMPLES, data["batch_size"])))
    t, h, w = first["ids"].shape[1:]
    torch.manual_seed(plain["seed"])  # for the initial weights
    generator = create_generator(
        GeneratorConfig(
            name=plain["name"],
            tokenizer=tokenizer.config.name,
            weight_hash=tokenizer.weight_hash,
            bits=tokenizer.bits,
            grid=(t, h, w),
            stride=tokenizer.stride,
            fps=fps,
            classes=tuple(classes),
            tasks=tuple(name for name, weight in task.objective.tasks.items() if weight),
            **plain["size"],
            **generator_settings(plain),
        )
    )
    generator.check_sampling(**sampling)  # fail now, not at the first validation
    for name, weight in task.objective.tasks.items():
        if weight and generator.causal and not name.startswith(("none", "prefix")):  # it learns every prefix anyway
            raise ValueError(f"an autoregressive model takes only prefixes: objective.tasks.{name} is for other kinds")
        if weight:
            check_task(name, generator.config.grid)  # fail now, not when it is first drawn
    if generator.config.kind == "diffusion":
        from vidtok.generator.diffusion import DiffusionGenerator

        assert isinstance(generator, DiffusionGenerator)
        if "latents" not in first:
            raise ValueError("diffusion is trained on latents: give clips, or extract them with --features latents")
        generator.fit_scale(first["latents"])
    if plain["max_flops"] is not None:
        steps = max(1, int(plain["max_flops"] / (training_flops(generator) * data["batch_size"])))
        plain["trainer"]["max_steps"] = min(steps, plain["trainer"]["max_steps"] or steps)
    return {"task": task, "state": build_state(generator, plain), "batches": batches, **build_schedule(plain)}


NEW_ARGUMENTS = (("factors", 2), ("positions", "both"))  # earlier versions did the same


def generator_settings(plain: dict) -> dict:
    """Return the group `generator` of a config, {"kind", "arguments"}, as it is recorded.

    It lacks `NEW_ARGUMENTS`, which configs and folders of earlier versions don't have.
    """
    kind, arguments = plain["generator"]["kind"], plain["generator"]["arguments"]
    return {
        "kind": kind,
        "arguments": {key: value for key, value in arguments.items() if (key, value) not in NEW_ARGUMENTS},
    }


def training_flops(model: Generator) -> int:
    """Return the FLOPs of training on one sample by the usual estimate, 6 x parameters x tokens (Kaplan et al. 2020).

    It leaves out the attention scores, which are the same for all kinds of one size.
    """
    return 6 * sum(parameter.numel() for parameter in model.parameters()) * model.tokens


def check_generator(cfg: DictConfig, config: "GeneratorConfig") -> None:
    """Check the fingerprint of a run folder: tokenizer, classes and architecture of its generator.

    Raises:
        ValueError: the folder was created with others. Its checkpoint might load, and train on wrong tokens.
    """
    from pathlib import Path

    from vidtok.generator.base import SCHEMA
    from vidtok.train.run_folder import check_fingerprint

    facts = {key: value for key, value in asdict(config).items() if key != "name"}
    check_fingerprint(Path(cfg.run), {"command": "train generator", "schema": SCHEMA, **facts})


def build_generator_batches(data: dict, split: str, batch_size: int, tokenizer: VideoTokenizer, seed: int):
    """Build the batches of one split from a generator's config group `data`.

    Returns:
        (batches, class names, frames per second or None if it differs between clips).

    Raises:
        ValueError: features of another tokenizer, a held-out split of features without splits, or both or neither of
            features and source.
    """
    from vidtok.datasets import MovingDigits
    from vidtok.extraction import TokenDataset

    if (data["features"] is None) == (data["source"] is None):
        raise ValueError("give either data.features= (extracted tokens) or data.source= (videos)")
    batches: ClipBatches | StoredBatches
    if data["features"] is None:
        clips = build_generator_clips(data, split, seed)
        batches, classes = ClipBatches(clips, batch_size, seed), clips.classes
        fps = MovingDigits.fps if data["source"] == "digits" else data["fps"] and data["fps"] / data["stride"]
    else:
        splits = {entry.split for entry in TokenDataset(data["features"], cache=data["cache"]).entries}
        if splits == {None} and split != data["split"]:
            raise ValueError(f"{data['features']} has no splits: the split {split!r} can't be held out of it")
        chosen = split if splits != {None} else None
        dataset = TokenDataset(data["features"], chosen, classes=data["classes"] or None, cache=data["cache"])
        if (weight_hash := dataset.meta["weight_hash"]) != tokenizer.weight_hash:
            name = f"{tokenizer.config.name} ({tokenizer.weight_hash})"
            theirs = describe_weights(weight_hash)
            raise ValueError(f"{data['features']} holds tokens of {theirs}, not of {name}: set tokenizer=")
        if dataset.feature == "latents" and tokenizer.config.quantizer["kind"] != "lfq":
            raise ValueError(f"{data['features']} holds latents, and only those of LFQ determine the ids: extract ids")
        tokens = TokenBatches(dataset, batch_size, data["latents"], first_only=True, seed=seed)
        batches, classes = StoredBatches(tokens, seed), dataset.classes
        rates = {round(dataset.read(i).meta.fps, 3) for i in range(0, len(dataset), -(-len(dataset) // 32))}
        fps = rates.pop() if len(rates) == 1 else None
        if fps is None:
            message = (
                f"{data['features']}: clips of different rates: real clips to compare with, and prefixes, will be "
                "read at their native rate; extract with --fps for a common rate"
            )
            warnings.warn(message, stacklevel=2)
    return batches, [] if data["classes"] == [] else classes, fps


def build_generator_clips(data: dict, split: str, seed: int) -> "LabeledDataset":
    """Build the dataset of random clips and crops of a generator's config group `data`."""

    from vidtok.datasets import MovingDigits, SquareTransform, open_dataset, random_clip

    if data["source"] == "digits":
        return MovingDigits(split, data["frames"], data["size"], seed)
    if data["stride"] != 1 and data["fps"] is None:
        raise ValueError(f"data.stride={data['stride']} counts frames of data.fps: give data.fps= too")
    columns = {name: data[name] for name in ("path_column", "label_column", "split_column")}
    return open_dataset(
        data["source"],
        data["root"],
        split,
        data["classes"] or None,
        **columns,
        seed=seed,
        on_error="resample",
        reader=data["reader"],
        sampler=partial(random_clip, frames=data["frames"], stride=data["stride"], at_fps=data["fps"]),
        transform=SquareTransform(data["size"], tuple(data["scale"]), data["flip"]),
    )
