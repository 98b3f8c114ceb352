"""Parting training clips, so that no choice ever looks at the test."""

from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import (
    GroupKFold,
    GroupShuffleSplit,
    KFold,
    ShuffleSplit,
    StratifiedKFold,
    StratifiedShuffleSplit,
)

Indices = np.ndarray


def split_off(labels: np.ndarray, groups: Sequence[str] | None, share: float, seed: int = 0) -> tuple[Indices, Indices]:
    """(the rest, about `share` of the clips): whole groups where there are groups, else the same share of each class
    where each has clips enough. Raises ValueError for a single group, or a share that leaves one side empty."""
    n = len(labels)
    if not 0 < round(share * n) < n:
        raise ValueError(f"a share of {share:g} of {n} training clips leaves one side empty")
    if groups is not None:
        if len(set(groups)) < 2:
            raise ValueError("all training clips are of one group, which can't be parted")
        splitter = GroupShuffleSplit(1, test_size=share, random_state=seed)
    elif np.bincount(labels)[np.unique(labels)].min() >= 2 and round(share * n) >= len(set(labels.tolist())):
        splitter = StratifiedShuffleSplit(1, test_size=share, random_state=seed)
    else:
        splitter = ShuffleSplit(1, test_size=share, random_state=seed)
    return next(iter(splitter.split(np.zeros(n), labels, groups)))


def folds(
    labels: np.ndarray, groups: Sequence[str] | None, count: int = 5
) -> tuple[str, list[tuple[Indices, Indices]]]:
    """(its name, [(train, test)]) for cross-validation: by group where there are groups, else stratified where each
    class has `count` clips or more."""
    if groups is not None:
        count = min(count, len(set(groups)))
        if count < 2:
            raise ValueError("all training clips are of one group, which can't be parted")
        name, splitter = f"{count} folds by group", GroupKFold(count)
    elif np.bincount(labels)[np.unique(labels)].min() >= count:
        name, splitter = f"{count} stratified folds", StratifiedKFold(count, shuffle=True, random_state=0)
    else:
        count = min(count, len(labels))
        name, splitter = f"{count} folds", KFold(count, shuffle=True, random_state=0)
    return name, list(splitter.split(np.zeros(len(labels)), labels, groups))
