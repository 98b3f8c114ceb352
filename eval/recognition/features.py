"""Extracted features as training and test data.

Legend: V views (records that share an id: clips and crops of one video).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidtok.eval.recognition.clips import DIGITS, Protocol, digits_of
from vidtok.eval.recognition.inputs import Views
from vidtok.extraction import TokenDataset
from vidtok.extraction.output import read_failures
from vidtok.extraction.record import Entry
from vidtok.extraction.sources import Clips
from vidtok.tokenizer import VideoTokenizer

# Input of a head -> name of the extracted feature.
FEATURES = {"tokens": "ids", "codes": "ids", "latents": "latents", "hidden": "hidden", "embedding": "embedding"}


class FeatureFiles:
    """The videos of one split in the files of `vidtok extract`.

    Args:
        path, split: files or folder, and name of the split.
        input: input of the head, a key of `FEATURES`.
        tokenizer, protocol: tokenizer and protocol that the features must have been extracted with.
        classes: class names in order; None, those in the files.
        seed: seed of the random views. cache: see `TokenDataset`.

    Attributes:
        failures: [{name, reason}] of videos whose extraction failed.

    Raises:
        ValueError: features of another kind, tokenizer or protocol, without labels, or with unknown classes.
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
        if input == "hidden" and meta.get("layer") != tokenizer.encoder.feature_layer:
            raise ValueError(f"{path} holds hidden features of another layer (of an earlier version?): extract anew")
        if min(dataset.labels) < 0:
            raise ValueError(f"{path}: records without labels")
        self.classes = list(dataset.classes if classes is None else classes)
        names = [dataset.classes[label] for label in dataset.labels]
        if unknown := sorted({*names} - {*self.classes}):
            raise ValueError(f"{path}: {len(unknown)} labels are not among the classes: {', '.join(unknown[:5])}")
        validate_clips(path, meta["sampler"], dataset.entries, protocol)
        self.dataset, self.seed = dataset, seed
        records: dict[str, list[int]] = {}
        for record, name in enumerate(dataset.ids):
            records.setdefault(name, []).append(record)
        self.ids, self.records = list(records), list(records.values())
        self.labels = [self.classes.index(names[rows[0]]) for rows in self.records]
        self.failures = [row for row in read_failures(Path(path), split) if row["name"] not in records]

    def __len__(self) -> int:
        return len(self.ids)

    def keep(self, indices: Sequence[int] | np.ndarray) -> "FeatureFiles":
        """Keep only the videos of these indices, and return self."""
        for name in ("ids", "records", "labels"):
            values = getattr(self, name)
            setattr(self, name, [values[i] for i in indices])
        return self

    def first(self, limit: int | None) -> None:
        """Keep only the first `limit` videos, and no failures, since their positions are unknown; None keeps all."""
        if limit is not None:
            self.keep(range(len(self))[:limit]).failures = []

    @property
    def groups(self) -> list[str] | None:
        """Return the group of each video, if the files determine it: the digit for the built-in digits, else None."""
        return digits_of(self.ids) if self.dataset.read(0).meta.reader == DIGITS else None

    def validate_views(self, protocol: Protocol) -> None:
        """Raise ValueError if a test video doesn't have the protocol's number of views."""
        for name, rows in zip(self.ids, self.records, strict=True):
            if len(rows) != protocol.views:
                raise ValueError(f"{name} has {len(rows)} records, and protocol {protocol} has {protocol.views} views")

    def validate_disjoint(self, test: "FeatureFiles") -> None:
        """Raise ValueError if the two share a video."""
        if both := sorted(set(self.ids) & set(test.ids)):
            raise ValueError(f"{len(both)} videos are in training and test, the first is {both[0]}")

    def draw(self, index: int, epoch: int) -> tuple[Tensor, int]:
        """Draw a view of a video: (features, label), see `vidtok.eval.recognition.data.Source`."""
        rows = self.records[index]
        view = np.random.default_rng([self.seed, epoch, index]).integers(len(rows))
        return self.dataset[rows[view]]["features"], self.labels[index]

    def summary(self) -> str:
        return ""

    def views(self, batch_size: int) -> Iterator[Views]:
        """Yield all videos in order; neighbors with the same number of views share a batch."""
        start, failures = 0, self.failures
        while start < len(self):
            stop = start + 1
            while stop < min(start + batch_size, len(self)) and len(self.records[stop]) == len(self.records[start]):
                stop += 1
            x = torch.stack([self.all_views(index) for index in range(start, stop)])
            yield Views(x, torch.tensor(self.labels[start:stop]), self.ids[start:stop], failures)
            start, failures = stop, []

    def all_views(self, index: int) -> Tensor:
        """Return all views of a video, [V,...]."""
        return torch.stack([self.dataset[row]["features"] for row in self.records[index]])


def validate_clips(path: str | Path, sampler: str | None, entries: Sequence[Entry], protocol: Protocol) -> None:
    """Check that all records are clips of the protocol.

    If the protocol uses every frame, whole videos of its length and size are accepted, too.

    Raises:
        ValueError: other clips.
    """
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
