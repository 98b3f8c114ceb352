"""One generator against real clips: the measurement behind `vidtok eval generation` and `generation-compare`.

Legend: B batch, N clips, D features, t h w token grid.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vidtok.generator import Generator
from vidtok.generator.samples import generate_samples
from vidtok.heads import Head
from vidtok.tokenizer import VideoTokenizer

from .generation import SCHEMA, Convention, Features, describe, distance, frames_of, gather, over_folds
from .provenance import provenance
from .statistics import wilson_interval


@dataclass
class Detectors:
    """Networks that score clips; None leaves their metrics out.

    Attributes:
        fvd: clips [B, 3, T, H, W] to features; fid: frames [N, 3, H, W] to features; head: of token ids.
        names: of each, for the record.
    """

    fvd: Features | None = None
    fid: Features | None = None
    head: Head | None = None
    names: dict[str, str] = field(default_factory=dict)


@dataclass
class Real:
    """Real clips, whose features are measured once for any number of generators.

    Attributes:
        clips: gives the clips that others are compared with, in batches [B, 3, T, H, W], anew at each call.
        others: gives other real clips, for the floor and the reconstructions, with their labels [B]; or None.
        classes: names of the labels.
        about: both in words, for the protocol.
    """

    clips: Callable[[], Iterable[Tensor]]
    others: Callable[[], Iterable[tuple[Tensor, Tensor]]] | None
    classes: Sequence[str]
    about: dict


class Evaluation:
    """Measures generators against the same real clips.

    Args:
        real, detectors: see there. tokenizer: of all the generators.
        how, name: the convention and its name.
        batch: samples at a time.
    """

    def __init__(
        self, real: Real, detectors: Detectors, tokenizer: VideoTokenizer, how: Convention, name: str, batch: int = 8
    ):
        self.real, self.detectors, self.tokenizer, self.how, self.name = real, detectors, tokenizer, how, name
        self.batch = batch
        self.device = tokenizer.device
        self.kinds: dict[str, Features] = {}
        if detectors.fvd is not None:
            self.kinds["fvd"] = detectors.fvd
        if detectors.fid is not None:
            self.kinds["fid"] = frames_of(detectors.fid)
        moved = (video.to(self.device) for video in real.clips())
        kept = list(moved) if len(self.kinds) > 1 else moved  # two networks look at the same clips
        self.features = {kind: gather(kept, network, how, how.n_real) for kind, network in self.kinds.items()}

    def limits(self) -> dict:
        """What a perfect generator, and one that is held back by the tokenizer alone, would get; and the head's own
        accuracy on real clips, the most that an agreement can be expected to reach."""
        found: dict = {}
        if self.real.others is None:
            return found
        for kind, network in self.kinds.items():
            others = (video.to(self.device) for video, _ in self.real.others())
            floor = gather(others, network, self.how, self.how.n_fake)
            found[f"{kind}_floor"] = {"value": distance(self.features[kind], floor), "n": len(floor)}
            decoded = (self.tokenizer.decode(self.tokenizer.encode(v.to(self.device))) for v, _ in self.real.others())
            passed = gather(decoded, network, self.how, self.how.n_fake)
            found[f"{kind}_reconstruction"] = {"value": distance(self.features[kind], passed), "n": len(passed)}
        if self.detectors.head is not None:
            found["real_agreement"] = self.agreement(self._real_ids(), self.real.classes)
        return found

    def measure(self, generator: Generator, seed: int = 0, say=lambda done: None, **sampling) -> dict:
        """The result of one generator, without the limits.

        Args:
            seed: of the first fold; each has its own.
            say: called with the number of clips generated so far.
            sampling: of `Generator.generate`.
        """
        classes = len(generator.config.classes)
        labels = list(range(classes)) if classes and not self.how.given_frames else None
        prefixes = self._prefixes() if self.how.given_frames else None
        values: dict[str, list[float]] = {kind: [] for kind in self.kinds}
        votes: list[tuple[Tensor, Tensor]] = []
        seconds, done = 0.0, 0
        for fold in range(self.how.folds):
            stream = generate_samples(
                generator, self.how.n_fake, labels, prefixes, self.batch, seed=seed + 7919 * fold, **sampling
            )
            found: dict[str, list[Tensor]] = {kind: [] for kind in self.kinds}
            start = time.perf_counter()
            for ids in stream:
                seconds += time.perf_counter() - start
                if labels is not None and self.detectors.head is not None:
                    first = done % self.how.n_fake
                    wanted = torch.tensor([labels[(first + i) % classes] for i in range(len(ids))])
                    votes.append((ids, wanted))
                if self.kinds:
                    video = self.tokenizer.decode(ids)
                    for kind, network in self.kinds.items():
                        found[kind].append(gather([video], network, self.how))
                done += len(ids)
                say(done)
                start = time.perf_counter()
            for kind in self.kinds:
                values[kind].append(distance(self.features[kind], torch.cat(found[kind])))
        metrics = {kind: over_folds(distances) for kind, distances in values.items()}
        if votes:
            metrics["agreement"] = self.agreement(iter(votes), generator.config.classes)
        return {
            "schema": SCHEMA,
            "generator": {
                "name": generator.config.name,
                "kind": generator.config.kind,
                "parameters": sum(parameter.numel() for parameter in generator.parameters()),
                "tokenizer": {"name": generator.config.tokenizer, "weight_hash": generator.config.weight_hash},
            },
            "sampling": {"seed": seed, **sampling},
            "protocol": describe(self.how, self.name, **self.real.about),
            "detector": self.detectors.names,
            "n_real": {kind: len(features) for kind, features in self.features.items()},
            "n_fake": self.how.n_fake,
            "folds": self.how.folds,
            "metrics": metrics,
            "seconds_per_clip": seconds / done,
            "provenance": provenance(self.device),
        }

    def agreement(self, votes: Iterator[tuple[Tensor, Tensor]], classes: Sequence[str]) -> dict:
        """{value, low, high, n}: share of ids in whose clips the head sees the class that goes with them.

        Raises:
            ValueError: where one of `classes`, the names of the numbers in the votes, is none of the head's.
        """
        numbers, right, n = self._head_numbers(classes), 0, 0
        with torch.inference_mode():
            for ids, wanted in votes:
                seen = self.detectors.head(ids.to(self.device)).argmax(1).cpu()
                right += int((seen == numbers[wanted]).sum())
                n += len(ids)
        low, high = wilson_interval(right, n)
        return {"value": right / n, "low": low, "high": high, "n": n}

    def _head_numbers(self, classes: Sequence[str]) -> Tensor:
        """int64 [K]: the head's numbers of these classes; without names in the head, both count alike."""
        own = self.detectors.head.config.classes
        if own is None:
            return torch.arange(len(classes))
        if missing := [name for name in classes if name not in own]:
            raise ValueError(f"the head {self.detectors.head.config.name!r} knows no class {missing[0]!r}")
        return torch.tensor([own.index(name) for name in classes])

    def _real_ids(self) -> Iterator[tuple[Tensor, Tensor]]:
        n = 0
        for video, label in self.real.others():
            yield self.tokenizer.encode(video.to(self.device)), label
            n += len(video)
            if n >= self.how.n_fake:
                return

    def _prefixes(self) -> Tensor:
        """The beginnings of the real clips, int64 [N, latents, h, w]."""
        latents = 1 + (self.how.given_frames - 1) // self.tokenizer.stride[0]
        given = 1 + (latents - 1) * self.tokenizer.stride[0]
        ids, n = [], 0
        for video in self.real.clips():
            ids.append(self.tokenizer.encode(video[:, :, :given].to(self.device)))
            n += len(video)
            if n >= self.how.n_fake:
                break
        return torch.cat(ids)


def smaller(how: Convention, n_real: int | None, n_fake: int | None, folds: int | None) -> Convention:
    """The convention with other numbers; None keeps its own."""
    given = {"n_real": n_real, "n_fake": n_fake, "folds": folds}
    return replace(how, **{name: value for name, value in given.items() if value is not None})


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
