"""Clips and what they are encoded to, kept in a folder so that a comparison can go on where it was stopped.

Extracted features as what a head or a probe is trained and tested on.

Legend: B batch, V views: the records that share an id, clips and crops of one video; N videos.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vidtok.eval.recognition.clips import DIGITS, ClipSet, digits_of
from vidtok.eval.recognition.prediction import Views
from vidtok.eval.recognition.protocol import Protocol
from vidtok.extraction import TokenDataset
from vidtok.extraction.output import read_failures
from vidtok.extraction.record import Entry
from vidtok.extraction.sources import Clips
from vidtok.tokenizer import VideoTokenizer
from vidtok.train.run_folder import _temporary, check_fingerprint


class ClipStore:
    """A folder of safetensors files, one for each thing. facts: what they depend on, see `check_fingerprint`."""

    def __init__(self, folder: Path, facts: Mapping):
        self.folder = folder
        check_fingerprint(folder, facts)

    def clips(self, name: str, load: Callable[[], ClipSet]) -> ClipSet:
        """The clips of that name; loaded where they aren't there yet."""
        file, side = self.path(name), self.folder / f"{name}.json"
        if not side.exists():
            found = load()
            _save({"video": found.video}, file)
            keys = ("ids", "classes", "failures", "paths")
            facts = {key: getattr(found, key) for key in keys} | {"labels": found.labels.tolist()}
            part = _temporary(side)
            part.write_text(json.dumps(facts))
            part.replace(side)
            return found
        known = json.loads(side.read_text())
        labels = np.array(known.pop("labels"))
        return ClipSet(load_file(file)["video"], labels, **known)

    def array(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of that name; made where it isn't there yet."""
        if not self.path(name).exists():
            _save({"x": make()}, self.path(name))
        return load_file(self.path(name))["x"]

    def read(self, name: str, index: int) -> Tensor:
        """One clip's part of an array, read from disk."""
        with safe_open(self.path(name), "pt") as file:
            return file.get_slice("x")[index]

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    part = _temporary(path)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)
    part.replace(path)


# input of a head: the feature that it is made of
FEATURES = {"tokens": "ids", "codes": "ids", "latents": "latents", "hidden": "hidden", "embedding": "embedding"}


class FeatureFiles:
    """The videos of one split in the files of `vidtok extract`.

    input: what the head reads, a key of `FEATURES`. classes: names in order; None, those in the files. cache: see
    `TokenDataset`; for drawing views at random. failures: [{name, reason}] of the videos that extraction failed on.

    Raises ValueError for features of another kind, of another tokenizer, of clips that aren't those of the protocol,
    without labels, or with labels that are none of the classes.
    """

    def __init__(
        self,
        path: str | Path,
        split: str | None,
        input: str,
        tokenizer: VideoTokenizer,
        protocol: Protocol,
        classes: Sequence[str] | None = None,
        seed: int = 0,
        cache: str | Path | None = None,
    ):
        dataset = TokenDataset(path, split, cache=cache)
        if dataset.feature != FEATURES.get(input):
            raise ValueError(
                f"{path} holds {dataset.feature}; input {input!r} is made of {FEATURES.get(input, 'none')}"
            )
        meta = dataset.meta
        if meta["weight_hash"] != tokenizer.weight_hash:
            ours, theirs = (f"{name} (weights {hash})" for name, hash in (
                (tokenizer.config.name, tokenizer.weight_hash), (meta["model"], meta["weight_hash"])
            ))  # fmt: skip
            raise ValueError(f"{path} holds features of tokenizer {theirs}, not of {ours}")
        if min(dataset.labels) < 0:
            raise ValueError(f"{path}: records without labels")
        self.classes = list(dataset.classes if classes is None else classes)
        if unknown := sorted({entry.label for entry in dataset.entries} - {*self.classes}):
            raise ValueError(f"{path}: {len(unknown)} labels are not among the classes: {', '.join(unknown[:5])}")
        validate_clips(path, meta["sampler"], dataset.entries, protocol)
        self.dataset, self.seed = dataset, seed
        records: dict[str, list[int]] = {}
        for record, name in enumerate(dataset.ids):
            records.setdefault(name, []).append(record)
        self.ids, self.records = list(records), list(records.values())
        self.labels = [self.classes.index(dataset.entries[rows[0]].label) for rows in self.records]
        self.failures = [row for row in read_failures(Path(path), split) if row["name"] not in records]

    def __len__(self) -> int:
        return len(self.ids)

    def keep(self, indices: Sequence[int]) -> "FeatureFiles":
        """Leaves only some of the videos; returns itself."""
        for name in ("ids", "records", "labels"):
            values = getattr(self, name)
            setattr(self, name, [values[i] for i in indices])
        return self

    def first(self, limit: int | None) -> None:
        """Leaves only the first `limit` videos, and no failures, whose places nobody knows; None, all."""
        if limit is not None:
            self.keep(range(len(self))[:limit]).failures = []

    @property
    def groups(self) -> list[str] | None:
        """What must not be parted, as far as files know it: of the built-in digits the digit. None for others."""
        return digits_of(self.ids) if self.dataset.read(0).meta.reader == DIGITS else None

    def validate_views(self, protocol: Protocol) -> None:
        """Of a test. Raises ValueError where a video has other than the protocol's number of views."""
        for name, rows in zip(self.ids, self.records, strict=True):
            if len(rows) != protocol.views:
                raise ValueError(f"{name} has {len(rows)} records, and protocol {protocol} has {protocol.views} views")

    def validate_disjoint(self, test: "FeatureFiles") -> None:
        """Raises ValueError where a video is in both."""
        if both := sorted(set(self.ids) & set(test.ids)):
            raise ValueError(f"{len(both)} videos are in training and test, the first is {both[0]}")

    def draw(self, index: int, epoch: int) -> tuple[Tensor, int]:
        """One view of a video and its label, see `vidtok.eval.recognition.data.Source`."""
        rows = self.records[index]
        view = np.random.default_rng([self.seed, epoch, index]).integers(len(rows))
        return self.dataset[rows[view]]["features"], self.labels[index]

    def summary(self) -> str:
        return ""

    def views(self, batch_size: int) -> Iterator[Views]:
        """All videos, in order; neighbours with the same number of views share a batch."""
        start, failures = 0, self.failures
        while start < len(self):
            stop = start + 1
            while stop < min(start + batch_size, len(self)) and len(self.records[stop]) == len(self.records[start]):
                stop += 1
            x = torch.stack([self.all_views(index) for index in range(start, stop)])
            yield Views(x, torch.tensor(self.labels[start:stop]), self.ids[start:stop], failures)
            start, failures = stop, []

    def all_views(self, index: int) -> Tensor:
        """[V,...]"""
        return torch.stack([self.dataset[row]["features"] for row in self.records[index]])


def validate_clips(path: str | Path, sampler: str | None, entries: Sequence[Entry], protocol: Protocol) -> None:
    """Raises ValueError unless all records are clips of the protocol, or whole videos of its length and size, of which
    a protocol takes every frame."""
    name = "uniform" if protocol.stride is None else "dense"
    wanted = str(Clips(name, protocol.segments, protocol.frames, protocol.stride or 1, protocol.fps))
    if sampler is None and (protocol.segments > 1 or protocol.stride not in (None, 1)):
        own = f"{protocol.frames}x1x1x{protocol.crops}"
        raise ValueError(f"{path} holds whole videos, which are protocol {own}, and not {protocol}")
    if sampler not in (None, wanted):
        raise ValueError(f"{path} holds clips ({sampler}), and protocol {protocol} is of others ({wanted})")
    seen = {(entry.frames, *entry.coded_size) for entry in entries}
    if other := sorted(seen - {(protocol.frames, protocol.size, protocol.size)}):
        given = "{} frames of {} x {}".format(*other[0])
        raise ValueError(f"{path} holds {given}, and protocol {protocol} has {protocol.frames} of {protocol.size}")
