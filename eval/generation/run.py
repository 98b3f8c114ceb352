"""Evaluation of one generator against real clips.

Legend: B batch, N clips, D features, t h w token grid.
"""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidtok.checks import pick_device
from vidtok.datasets import write_video
from vidtok.datasets.frames import frame_rows
from vidtok.eval.generation.conventions import (
    SCHEMA,
    ClipStatistics,
    Convention,
    Features,
    Neighbors,
    RealClips,
    describe,
    frames_of,
    get_convention,
    over_folds,
    prepare,
    real_clips,
    shares_over_folds,
)
from vidtok.eval.generation.extractors import ClassAgreement, FeatureExtractors, HeadFeatures, load_feature_extractors
from vidtok.eval.metrics.frechet import SHARES
from vidtok.generator import Generator, GeneratorConfig, from_pretrained, load_tokenizer
from vidtok.generator.long import generate_samples
from vidtok.heads import Head
from vidtok.provenance import provenance
from vidtok.tokenizer import VideoTokenizer


def evaluate(
    generator: str,
    source: str,
    *,
    convention: str = "plain",
    root: str | None = None,
    split: str | None = None,
    others: str | None = None,
    label_column: str | None = None,
    n_real: int | None = None,
    n_fake: int | None = None,
    folds: int | None = None,
    i3d: str | None = None,
    fid: str | None = None,
    head: str | None = None,
    neighbors: str | None = None,
    tokenizer: str | None = None,
    device: str = "auto",
    batch: int = 8,
    workers: int = 0,
    precision: str = "fp32",
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **sampling,
) -> dict:
    """Measure a generator against real clips: Fréchet distances, precision and recall, agreement with a recognizer.

    Args:
        generator: its shipped name, folder or hub id.
        source, root, label_column: source of the real clips: "digits", a folder, or an annotation file and the folder
            of its videos, see `vidtok.datasets.open_dataset`.
        convention: a key of `CONVENTIONS`. n_real, n_fake, folds: override the convention's numbers. With a head alone
            and neither the convention's number nor n_real, there are as many real clips as generated ones.
        split: split of the real clips; None, "train", or all of a folder without a folder "train".
        others: split of other real clips, for the floor and for reconstructions; None, neither is measured.
        i3d, fid: weights of I3D and of FID's Inception, files or URLs. head: a recognition head on tokens, codes or
            pixels. Each adds its metrics; at least one is needed.
        neighbors: .png file of generated clips beside their nearest real clips. It needs `i3d`.
        tokenizer: path of the generator's tokenizer; None, find it by its name.
        device: device of all networks. batch: number of clips per batch. workers: number of processes that decode real
            clips. precision: precision of I3D, "fp32" or "bf16". seed: seed of the sampling.
        progress: called with (number of clips generated so far, total).
        sampling: arguments of `Generator.generate`: steps, guidance, ...; None leaves the generator's default.

    Returns:
        A result of schema "vidtok.eval.generation/1", see `vidtok.eval.generation.conventions`.

    Raises:
        ValueError: settings that don't fit the generator, the convention or the real clips.
    """
    if neighbors and not neighbors.lower().endswith(".png"):
        raise ValueError(f"neighbors are drawn in a .png file, not {neighbors}")
    if not (i3d or fid or head):
        raise ValueError("nothing to measure: give i3d, fid or head")
    if neighbors and not i3d:
        raise ValueError("neighbors need i3d, whose features say which clips are near")
    where = pick_device(device)
    rules = smaller(get_convention(convention), n_real, n_fake, folds)
    if not (i3d or fid) and rules.n_real is None:
        rules = replace(rules, n_real=rules.n_fake * rules.folds)
    model = from_pretrained(generator, where)
    coder = load_tokenizer(model.config, tokenizer, where)
    networks = load_feature_extractors(i3d, fid, head, coder, where, precision)
    real = real_clips(source, root, split, others, model.config, rules, batch, workers, label_column=label_column)
    given = {name: value for name, value in sampling.items() if value is not None}
    model.check_sampling(**given)
    check_conditions(rules, model.config, real.classes, networks.head, coder, given)
    evaluation = Evaluation(real, networks, coder, rules, convention, batch)
    limits, total = evaluation.limits(), rules.folds * rules.n_fake
    result = evaluation.measure(model, seed, lambda done: progress(done, total), **given)
    result["metrics"] |= limits
    if neighbors:
        result["neighbors"] = draw_neighbors(neighbors, evaluation, model, seed, given)
    return result


class Evaluation:
    """Evaluation of any number of generators against the same real clips, whose features are computed once.

    Args:
        real: the real clips. detectors: networks of the metrics. tokenizer: tokenizer of all generators.
        convention, name: the convention and its name.
        batch: number of clips per batch.
    """

    def __init__(
        self,
        real: RealClips,
        detectors: FeatureExtractors,
        tokenizer: VideoTokenizer,
        convention: Convention,
        name: str,
        batch: int = 8,
    ):
        self.real, self.detectors, self.tokenizer, self.convention, self.name = (
            real,
            detectors,
            tokenizer,
            convention,
            name,
        )
        self.batch = batch
        self.device = tokenizer.device
        self.kinds: dict[str, Features] = {}
        if detectors.fvd is not None:
            self.kinds["fvd"] = detectors.fvd
        if detectors.fid is not None:
            self.kinds["fid"] = frames_of(detectors.fid)
        self.head = None if detectors.head is None else HeadFeatures(detectors.head)
        self.scored, self.decoded = self._statistics(), self._statistics(decoded=True)
        if self.measures:
            self._score(real.clips(), convention.n_real, self.scored, self.decoded)

    @property
    def sees_pixels(self) -> bool:
        """Whether there is a network that sees clips, not only tokens."""
        return bool(self.kinds) or (self.head is not None and self.head.reads_pixels)

    @property
    def measures(self) -> bool:
        """Whether there is a network whose features are compared."""
        return bool(self.kinds) or self.head is not None

    def _statistics(self, decoded: bool = False) -> ClipStatistics:
        """Make empty statistics. decoded: of reconstructions, which a recognizer of tokens doesn't see."""
        head = None if self.head is None or (decoded and not self.head.reads_pixels) else self.head
        keep = self.convention.n_fake * self.convention.folds
        return ClipStatistics(self.kinds, self.convention, head, keep)

    def _score(
        self, clips: Iterable[Tensor], count: int | None, scored: ClipStatistics, decoded: ClipStatistics
    ) -> None:
        """Add real clips to `scored` and their reconstructions to `decoded`; at most the first `count`.

        Raises:
            ValueError: there are no clips.
        """
        for video in clips:
            video = video[: None if count is None else count - scored.n].to(self.device)
            ids = self.tokenizer.encode(video)
            scored.update(video, ids)
            if self.sees_pixels:
                decoded.update(self.tokenizer.decode(ids))
            if scored.n == count:
                break
        if scored.n == 0:
            raise ValueError("no clips to score")

    def _compare(self, found: ClipStatistics, fold: int = 0) -> dict[str, float]:
        """Compare clips with the real ones and with their reconstructions; return metric -> value."""
        values = {}
        for kind in found.kinds:
            values[kind] = self.scored.distance(kind, found)
            if kind in self.decoded.kinds:
                values[f"{kind}_to_reconstructions"] = self.decoded.distance(kind, found)
            for name, value in self.scored.neighborhood(kind, found, fold).items():
                values[f"{kind}_{name}"] = value
        return values

    def limits(self) -> dict:
        """Measure the bounds of the metrics: those of other real clips (the floor) and of their reconstructions, those
        of clips that repeat the last given frame, and the head's accuracy on the tokens of the other real clips."""
        found: dict = {}
        if (given := self.convention.given_frames) and self.measures:
            frozen = self._statistics()
            for clips, _ in self._one_fold(lambda: ((video, video) for video in self.real.clips())):
                video = clips[: self.convention.n_fake - frozen.n]
                still = video[:, :, given - 1 : given].expand_as(video[:, :, given:])
                ids = self.tokenizer.encode(torch.cat([video[:, :, :given], still], 2))
                frozen.update(self.tokenizer.decode(ids) if self.sees_pixels else None, ids)
            for metric, value in self._compare(frozen).items():
                found[f"{metric}_repeated"] = {"value": value, "n": frozen.n}
        if self.real.others is None:
            return found
        if self.measures:
            floor, passed = self._statistics(), self._statistics(decoded=True)
            self._score((video for video, _ in self.other_clips()), self.convention.n_fake, floor, passed)
            for name, scored in (("floor", floor), ("reconstruction", passed)):
                for metric, value in self._compare(scored).items():
                    found[f"{metric}_{name}"] = {"value": value, "n": scored.n}
        if self.detectors.head is not None:
            judge = ClassAgreement(self.detectors.head, self.real.classes, self.tokenizer)
            for video, label in self.other_clips():
                judge.update(self.tokenizer.encode(video), label)
            if judge.n:
                found["real_agreement"] = judge.agreement()
        return found

    def measure(self, generator: Generator, seed: int = 0, log=lambda done: None, **sampling) -> dict:
        """Measure one generator and return its result without `limits`.

        Args:
            generator: the generator.
            seed: seed of the first fold; the seeds of the others are derived from it.
            log: called with the number of clips generated so far.
            sampling: arguments of `Generator.generate`.
        """
        labels, prefixes = self.conditions(generator)
        judge = None
        if labels is not None and self.detectors.head is not None:
            judge = ClassAgreement(self.detectors.head, generator.config.classes, self.tokenizer)
        folds: list[dict[str, float]] = []
        seconds, done = 0.0, 0
        if self.device.type == "cuda":  # warm up: kernels are loaded and selected on first use
            next(
                generate_samples(generator, self.convention.n_fake, labels, prefixes, self.batch, seed=seed, **sampling)
            )
        for fold in range(self.convention.folds):
            own = None if prefixes is None else prefixes.roll(-fold * self.convention.n_fake, 0)
            stream = generate_samples(
                generator, self.convention.n_fake, labels, own, self.batch, seed=seed + 7919 * fold, **sampling
            )
            found, number = self._statistics(), 0
            start = time.perf_counter()
            for ids in stream:
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                seconds += time.perf_counter() - start
                if judge is not None and labels is not None:
                    judge.update(ids, torch.tensor([labels[(number + i) % len(labels)] for i in range(len(ids))]))
                if self.measures:
                    found.update(self.tokenizer.decode(ids) if self.sees_pixels else None, ids)
                number, done = number + len(ids), done + len(ids)
                log(done)
                start = time.perf_counter()
            if self.measures:
                folds.append(self._compare(found, fold))
        metrics = {}
        for metric in folds[0] if folds else ():
            values = [one[metric] for one in folds]
            share = metric.rpartition("_")[2] in SHARES
            metrics[metric] = shares_over_folds(values, min(found.n, self.scored.n)) if share else over_folds(values)
        if judge is not None:
            metrics["agreement"] = judge.agreement()
        return {
            "schema": SCHEMA,
            "generator": {
                "name": generator.config.name,
                "kind": generator.config.kind,
                "weight_hash": generator.weight_hash,
                "parameters": sum(parameter.numel() for parameter in generator.parameters()),
                "tokenizer": {"name": generator.config.tokenizer, "weight_hash": generator.config.weight_hash},
            },
            "sampling": {"seed": seed, **sampling},
            "protocol": describe(self.convention, self.name, **self.real.about),
            "detector": self.detectors.names,
            "n_real": self.scored.n,
            "n_fake": self.convention.n_fake,
            "folds": self.convention.folds,
            "metrics": metrics,
            "seconds_per_clip": seconds / done,
            "provenance": provenance(self.device),
        }

    def conditions(self, generator: Generator) -> tuple[list[int] | None, Tensor | None]:
        """Return (class numbers, prefixes) to generate for, each used in turn; None where there are none."""
        classes = len(generator.config.classes)
        if self.convention.given_frames:
            return None, self._prefixes()
        return (list(range(classes)) if classes else None), None

    def other_clips(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield as many other real clips as a fold has, with their labels."""
        assert self.real.others is not None
        return self._one_fold(self.real.others)

    def _one_fold(self, batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield as many clips as a fold has. The first clips of all videos come before their second clips, ..., because
        clips of one video are similar."""
        own, n = self.convention.windows * self.convention.crops, 0
        for clip in range(own):
            for video, label in batches():
                yield video[clip::own].to(self.device), label[clip::own]
                n += len(video) // own
                if n >= self.convention.n_fake:
                    return

    def _prefixes(self) -> Tensor:
        """Encode the first frames of as many real clips as all folds need, int64 [N, latents, h, w]. The first clips of
        all videos come before their second clips, ..."""
        own, wanted = self.convention.windows * self.convention.crops, self.convention.n_fake * self.convention.folds
        ids, n = [], 0
        for video in self.real.clips():
            ids.append(self.tokenizer.encode(video[:, :, : self.convention.given_frames].to(self.device)))
            n += len(video)
            if n >= wanted * own:
                break
        return torch.cat(ids).unflatten(0, (-1, own)).transpose(0, 1).flatten(0, 1)


def check_conditions(
    convention: Convention,
    config: GeneratorConfig,
    classes: Sequence[str],
    head: Head | None,
    tokenizer: VideoTokenizer,
    sampling: Mapping,
) -> None:
    """Check the conditions of generation before anything is generated.

    Args:
        convention: the convention. config: config of the generator. tokenizer: its tokenizer.
        classes: class names of the real clips. head: recognizer for the agreement, or None.
        sampling: arguments of `Generator.generate`.

    Raises:
        ValueError: guidance or agreement without classes, classes that the head doesn't know, or a number of given
            frames that isn't a whole number of latent frames.
    """
    if config.needs_video and not convention.given_frames:
        tasks = ", ".join(config.tasks)
        message = (
            f"{config.name} was trained on {tasks} alone: a convention that gives frames is --convention magvit-k600"
        )
        warnings.warn(message, stacklevel=2)
    if convention.given_frames and sampling.get("guidance", 1) != 1:
        raise ValueError("guidance needs classes, and this convention gives frames instead")
    if convention.given_frames and (convention.given_frames - 1) % tokenizer.stride[0]:
        raise ValueError(
            f"the convention gives {convention.given_frames} frames, which aren't whole latent frames "
            f"of {config.tokenizer}: 1 and multiples of {tokenizer.stride[0]} more"
        )
    if head is None:
        return
    if convention.given_frames or not config.classes:
        why = "the convention gives frames instead" if convention.given_frames else f"{config.name} has none"
        raise ValueError(f"agreement is of generated clips with the classes that they are asked to be: {why}")
    for names in (config.classes, classes):
        ClassAgreement(head, names, tokenizer)


def smaller(convention: Convention, n_real: int | None, n_fake: int | None, folds: int | None) -> Convention:
    """Replace numbers of a convention; None keeps the convention's.

    Raises:
        ValueError: a number below 1.
    """
    numbers = {"n_real": n_real, "n_fake": n_fake, "folds": folds}
    given: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
    for name, value in given.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value} is no number of at least 1")
    return replace(convention, **given)


def summary(metrics: Mapping) -> dict[str, str]:
    """Format metrics for a terminal; return name -> text."""
    lines = {}
    for name, value in metrics.items():
        if "mean" in value:
            deviation = "" if value["deviation"] is None else f" ± {value['deviation']:.2f}"
            interval = f", {value['low']:.2f} to {value['high']:.2f}" if "low" in value else ""
            lines[name] = f"{value['mean']:.2f}{deviation} ({len(value['folds'])} folds{interval})"
        elif "low" in value:
            lines[name] = f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f}), n {value['n']}"
        else:
            lines[name] = f"{value['value']:.2f}, n {value['n']}"
    return lines


def draw_neighbors(path: str, evaluation, generator, seed: int, sampling: dict, rows: int = 6) -> dict:
    """Draw the middle frame of generated clips, each beside those of the three real clips with the nearest features.

    Returns:
        n_real: number of real clips searched. generated: distance of each generated clip to its nearest real clip.
        others: the same for other real clips, if there are any.
    """
    convention, network = evaluation.convention, evaluation.kinds["fvd"]

    def features(video):
        with torch.inference_mode():
            return network(prepare(video, convention)).cpu()

    labels, prefixes = evaluation.conditions(generator)
    ids = torch.cat(list(generate_samples(generator, rows, labels, prefixes, evaluation.batch, seed=seed, **sampling)))
    video = evaluation.tokenizer.decode(ids)
    requested = [features(video)]
    if evaluation.real.others is not None:
        batches = []
        for other, _ in evaluation.other_clips():
            batches.append(other)
            if sum(map(len, batches)) >= rows:
                break
        requested.append(features(torch.cat(batches)[:rows]))
    middle, nearest, n_real = video.shape[2] // 2, Neighbors(torch.cat(requested)), 0
    for real in evaluation.real.clips():
        nearest.update(features(real.to(evaluation.device)), list(real[:, :, middle].clone()))
        n_real += len(real)
    shown = zip(video, nearest.pictures[:rows], strict=True)
    cells = [torch.stack([clip[:, middle].cpu(), *near], 1) for clip, near in shown]
    picture = frame_rows(torch.stack(cells), columns=cells[0].shape[1])
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_video(path, picture[:, None], 1)
    distances = nearest.distances[:, 0].tolist()
    found = {"n_real": n_real, "generated": distances[:rows]}
    return found | ({"others": distances[rows:]} if len(requested) > 1 else {})
