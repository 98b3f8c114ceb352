"""Features for a probe: computed from clips, or read from files."""

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from vidtok.tokenizer import VideoTokenizer

from .feature_files import FeatureFiles
from .inputs import InputEncoder
from .labelled_clips import ClipSource, cut
from .predict import views_of_dataset
from .probe import pool_features, signs
from .protocol import Protocol
from .references import ReferenceEncoder


@dataclass
class ProbeSide:
    """x float32 [N,V,F], labels int [N], ids, groups (None, there are none), failures [{name, reason}]."""

    x_NVF: np.ndarray
    labels: np.ndarray
    ids: list[str]
    groups: list[str] | None = None
    failures: list[dict] = field(default_factory=list)


def features_of_clips(
    source: ClipSource,
    split: str | None,
    protocol: Protocol,
    encoder: InputEncoder | ReferenceEncoder,
    pool: str,
    limit: int | None = None,
    workers: int = 0,
    shuffle: bool = False,
) -> tuple[ProbeSide, list[str]]:
    """(features, names of the classes). Videos are decoded one at a time and only their features are kept; shuffle:
    with their frames in random order. Raises ValueError where none can be read."""
    dataset = source.open(split, protocol)
    cut(dataset, slice(limit))
    rows, labels, ids, failures = [], [], [], []
    for batch in views_of_dataset(dataset, 1, workers, shuffle):
        failures += batch.failures
        if batch.ids:
            x = encoder(batch.x[0])[None].cpu()
            rows.append(pool_features(_numbers(x, encoder.kind, encoder.tokenizer), pool))
            labels += batch.labels.tolist()
            ids += batch.ids
    if not ids:
        raise ValueError(f"no clip could be read: {failures[0]['name']}: {failures[0]['reason']}")
    return ProbeSide(np.concatenate(rows), np.array(labels), ids, None, failures), dataset.classes


def features_of_files(files: FeatureFiles, input: str, tokenizer: VideoTokenizer, pool: str) -> ProbeSide:
    """Raises ValueError where the videos have different numbers of views."""
    counts = {len(rows) for rows in files.records}
    if len(counts) > 1:
        raise ValueError(f"videos of {min(counts)} to {max(counts)} records: extract the same number of clips of each")
    rows = [
        pool_features(_numbers(files.all_views(index)[None], input, tokenizer), pool) for index in range(len(files))
    ]
    return ProbeSide(np.concatenate(rows), np.array(files.labels), files.ids, failures=files.failures)


def _numbers(x_NV: Tensor, input: str, tokenizer: VideoTokenizer) -> Tensor:
    """Floats [N,V,C,...]: ids become signs, pixels a channel each."""
    return signs(x_NV, int(tokenizer.bits)) if input in ("tokens", "codes") else x_NV
