"""Class numbers for the labels of annotations, and the rows of one split."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd


def of_split(table: pd.DataFrame, split: str | None, source: str | Path) -> pd.DataFrame:
    """The rows of `split`; all of them where it is None, or the annotations have no column of splits.

    Raises ValueError for a split that isn't there.
    """
    if split is None or "split" not in table:
        return table
    rows = table[table["split"] == split]
    if not len(rows):
        raise ValueError(f"{source}: no split {split!r}, there is {', '.join(sorted(set(table['split'])))}")
    return rows


def class_numbers(
    table: pd.DataFrame, rows: pd.DataFrame, classes: Sequence[str] | None, source: str | Path
) -> tuple[list[int], list[str]]:
    """(class number of each of `rows`, -1 where nothing is labelled; names of the classes).

    classes: the names, in order; None, those in all of `table`, sorted, or "0", "1", ... where labels are numbers.
    Raises ValueError for a label that is not among them.
    """
    labels = rows["label"]
    if labels.isna().all():
        return [-1] * len(rows), list(classes or [])
    if pd.api.types.is_integer_dtype(labels):
        names = [str(i) for i in range(int(table["label"].max()) + 1)] if classes is None else list(classes)
        if labels.min() < 0 or labels.max() >= len(names):
            raise ValueError(f"{source}: labels from {labels.min()} to {labels.max()} for {len(names)} classes")
        return labels.tolist(), names
    names = sorted(set(table["label"])) if classes is None else list(classes)
    number = {name: i for i, name in enumerate(names)}
    if unknown := sorted(set(labels) - set(names)):
        raise ValueError(f"{source}: {len(unknown)} labels are not among the classes: {', '.join(unknown[:5])}")
    return [number[label] for label in labels], names
