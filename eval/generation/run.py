"""One generator against real clips: the measurement behind `vidtok eval generation` and `generation-compare`.

Legend: B batch, N clips, D features, t h w token grid.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from vidtok.eval.generation.conventions import (
    SCHEMA,
    ClipStatistics,
    Convention,
    Features,
    RealClips,
    describe,
    frames_of,
    over_folds,
    score_clips,
)
from vidtok.eval.metrics.intervals import share_of
from vidtok.generator import Generator, GeneratorConfig
from vidtok.generator.long import generate_samples
from vidtok.heads import Head
from vidtok.provenance import provenance
from vidtok.tokenizer import VideoTokenizer


@dataclass
class FeatureExtractors:
    """Networks that score clips; None leaves their metrics out.

    Attributes:
        fvd: clips [B, 3, T, H, W] to features; fid: frames [N, 3, H, W] to features; head: of tokens or pixels.
        names: of each, for the record.
    """

    fvd: Features | None = None
    fid: Features | None = None
    head: Head | None = None
    names: dict[str, str] = field(default_factory=dict)


class ClassAgreement:
    """Counts how often a head sees the class that goes with the tokens.

    Args:
        head: of tokens, codes, or of pixels, which sees the decoded clips. classes: names of the class numbers.

    Raises:
        ValueError: where one of `classes` is none of the head's, or the head reads something else.
    """

    def __init__(self, head: Head, classes: Sequence[str], tokenizer: VideoTokenizer):
        self.head, self.tokenizer, self.classes = head, tokenizer, list(classes)
        self.right_K, self.n_K = torch.zeros(2, len(self.classes), dtype=torch.long)
        self.input = head.config.input["kind"]
        if self.input not in ("tokens", "codes", "pixels"):
            raise ValueError(f"the head {head.config.name!r} reads {self.input}: give one of tokens, codes or pixels")
        head.validate_uncropped()
        own = head.config.classes
        if own is None:  # without names, both count alike
            own = classes
        if missing := [name for name in classes if name not in own]:
            raise ValueError(f"the head {head.config.name!r} knows no class {missing[0]!r}")
        self.numbers_K = torch.tensor([list(own).index(name) for name in classes], dtype=torch.long)

    def update(self, ids_Bthw: Tensor, label_B: Tensor) -> None:
        """int64 ids, and class numbers on the CPU; those of -1, no class, don't count."""
        ids_Bthw, label_B = ids_Bthw[label_B >= 0], label_B[label_B >= 0]
        if not len(label_B):
            return
        with torch.inference_mode():
            x = self.tokenizer.decode(ids_Bthw) if self.input == "pixels" else ids_Bthw
            seen = self.head(x).argmax(1).cpu()
        self.right_K += label_B[seen == self.numbers_K[label_B]].bincount(minlength=len(self.classes))
        self.n_K += label_B.bincount(minlength=len(self.classes))

    @property
    def n(self) -> int:
        return int(self.n_K.sum())

    def agreement(self) -> dict:
        """{value, low, high (Wilson, 95 %), n, classes: {name: share of those of it}}"""
        counts = zip(self.classes, self.right_K.tolist(), self.n_K.tolist(), strict=True)
        classes = {name: right / n for name, right, n in counts if n}
        return {**share_of(int(self.right_K.sum()), self.n), "n": self.n, "classes": classes}


class Evaluation:
    """Measures generators against the same real clips.

    Args:
        real, detectors: see there. tokenizer: of all the generators.
        how, name: the convention and its name.
        batch: samples at a time.
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
        moved = (video.to(self.device) for video in real.clips())
        self.scored = score_clips(moved, self.kinds, convention, convention.n_real) if self.kinds else None

    def limits(self) -> dict:
        """What a perfect generator, and one that is held back by the tokenizer alone, would get; and the head's own
        accuracy on real clips, the most that an agreement can be expected to reach."""
        found: dict = {}
        if self.real.others is None:
            return found
        if self.kinds:
            count = self.convention.n_fake
            floor = score_clips((video for video, _ in self.other_clips()), self.kinds, self.convention, count)
            decoded = (self.tokenizer.decode(self.tokenizer.encode(video)) for video, _ in self.other_clips())
            passed = score_clips(decoded, self.kinds, self.convention, count)
            for kind in self.kinds:
                for name, scored in (("floor", floor), ("reconstruction", passed)):
                    found[f"{kind}_{name}"] = {"value": self.scored.distance(kind, scored), "n": scored.n}
        if self.detectors.head is not None:
            judge = ClassAgreement(self.detectors.head, self.real.classes, self.tokenizer)
            for video, label in self.other_clips():
                judge.update(self.tokenizer.encode(video), label)
            if judge.n:
                found["real_agreement"] = judge.agreement()
        return found

    def measure(self, generator: Generator, seed: int = 0, log=lambda done: None, **sampling) -> dict:
        """The result of one generator, without the limits.

        Args:
            seed: of the first fold; each has its own.
            say: called with the number of clips generated so far.
            sampling: of `Generator.generate`.
        """
        labels, prefixes = self.conditions(generator)
        judge = None
        if labels is not None and self.detectors.head is not None:
            judge = ClassAgreement(self.detectors.head, generator.config.classes, self.tokenizer)
        values: dict[str, list[float]] = {kind: [] for kind in self.kinds}
        seconds, done = 0.0, 0
        if self.device.type == "cuda":  # kernels are loaded, and chosen for these shapes, on first use
            next(
                generate_samples(generator, self.convention.n_fake, labels, prefixes, self.batch, seed=seed, **sampling)
            )
        for fold in range(self.convention.folds):
            own = None if prefixes is None else prefixes.roll(-fold * self.convention.n_fake, 0)
            stream = generate_samples(
                generator, self.convention.n_fake, labels, own, self.batch, seed=seed + 7919 * fold, **sampling
            )
            found, number = ClipStatistics(self.kinds, self.convention), 0
            start = time.perf_counter()
            for ids in stream:
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                seconds += time.perf_counter() - start
                if judge is not None:
                    judge.update(ids, torch.tensor([labels[(number + i) % len(labels)] for i in range(len(ids))]))
                if self.kinds:
                    found.update(self.tokenizer.decode(ids))
                number, done = number + len(ids), done + len(ids)
                log(done)
                start = time.perf_counter()
            for kind in self.kinds:
                values[kind].append(self.scored.distance(kind, found))
        metrics = {kind: over_folds(distances) for kind, distances in values.items()}
        if judge is not None:
            metrics["agreement"] = judge.agreement()
        return {
            "schema": SCHEMA,
            "generator": {
                "name": generator.config.name,
                "kind": generator.config.kind,
                "parameters": sum(parameter.numel() for parameter in generator.parameters()),
                "tokenizer": {"name": generator.config.tokenizer, "weight_hash": generator.config.weight_hash},
            },
            "sampling": {"seed": seed, **sampling},
            "protocol": describe(self.convention, self.name, **self.real.about),
            "detector": self.detectors.names,
            "n_real": self.scored.n if self.kinds else 0,
            "n_fake": self.convention.n_fake,
            "folds": self.convention.folds,
            "metrics": metrics,
            "seconds_per_clip": seconds / done,
            "provenance": provenance(self.device),
        }

    def conditions(self, generator: Generator) -> tuple[list[int] | None, Tensor | None]:
        """(classes, prefixes), each taken in turn or None: what generated clips are asked to be, or to go on from."""
        classes = len(generator.config.classes)
        if self.convention.given_frames:
            return None, self._prefixes()
        return (list(range(classes)) if classes else None), None

    def other_clips(self) -> Iterator[tuple[Tensor, Tensor]]:
        """As many other real clips as a fold has, and their labels: the first clip of every video, then their second
        clips, ..., as clips of one video are too much alike to stand for several."""
        own, n = self.convention.windows * self.convention.crops, 0
        for clip in range(own):
            for video, label in self.real.others():
                yield video[clip::own].to(self.device), label[clip::own]
                n += len(video) // own
                if n >= self.convention.n_fake:
                    return

    def _prefixes(self) -> Tensor:
        """The beginnings of the real clips, int64 [N, latents, h, w]: the first clips of as many videos as all folds
        need, then their second clips, ..."""
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
    """Before the work.

    Args:
        classes: of the real clips. head: that agreement is measured by, or None. sampling: of `Generator.generate`.

    Raises:
        ValueError: where guidance or an agreement with classes is asked for and there are none, the head doesn't know
            them, or the frames that the convention gives are no whole latent frames.
    """
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
    """The convention with other numbers; None keeps its own. Raises ValueError for one that is no count."""
    given = {"n_real": n_real, "n_fake": n_fake, "folds": folds}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value} is no number of at least 1")
    return replace(convention, **given)


def summary(metrics: Mapping) -> dict[str, str]:
    """Lines for a terminal."""
    lines = {}
    for name, value in metrics.items():
        if "mean" in value:
            deviation = "" if value["deviation"] is None else f" ± {value['deviation']:.2f}"
            lines[name] = f"{value['mean']:.2f}{deviation} ({len(value['folds'])} folds)"
        elif "low" in value:
            lines[name] = f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f}), n {value['n']}"
        else:
            lines[name] = f"{value['value']:.2f}, n {value['n']}"
    return lines


def load_feature_extractors(i3d: str | None, fid: str | None, head: str | None, tokenizer, device):
    """The `FeatureExtractors` of weight files and of a head."""
    from vidtok.eval import I3D
    from vidtok.eval.metrics.inception import InceptionFID
    from vidtok.hub import hash_weights

    found = FeatureExtractors()
    if i3d:
        found.fvd = I3D(i3d).to(device)
        found.names["fvd"] = f"I3D Kinetics-400 logits, weights {found.fvd.weight_hash}"
    if fid:
        found.fid = InceptionFID(fid).to(device)
        found.names["fid"] = f"Inception of 2015-12-05, pooled features, weights {hash_weights(found.fid)}"
    if head:
        found.head = Head.from_pretrained(head, device).eval()
        found.head.check_tokenizer(tokenizer.config.name, tokenizer.weight_hash)
        found.names["agreement"] = f"{found.head.config.name}, weights {found.head.weight_hash}"
    return found


def draw_neighbors(path: str, evaluation, generator, seed: int, sampling: dict, rows: int = 6) -> dict:
    """Each row: a middle frame of a generated clip, then those of the three real clips with the nearest features.

    Returns:
        n_real: clips that were looked at, all there are. generated: each row's distance to the nearest of them; others:
        those of as many other real clips, which are no copies, where there are some.
    """
    import torch

    from vidtok.datasets import write_video
    from vidtok.datasets.frames import frame_rows
    from vidtok.eval.generation.conventions import Neighbors, prepare

    convention, network = evaluation.convention, evaluation.kinds["fvd"]

    def features(video):
        with torch.inference_mode():
            return network(prepare(video, convention)).cpu()

    conditions = evaluation.conditions(generator)
    ids = torch.cat(list(generate_samples(generator, rows, *conditions, evaluation.batch, seed=seed, **sampling)))
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
