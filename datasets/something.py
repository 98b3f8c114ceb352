"""Something-Something-v2."""

import json
from collections.abc import Sequence
from pathlib import Path

from .annotation_json import without_brackets
from .annotations import read_annotations
from .container import VIDEO_SUFFIXES
from .files import Names
from .labelled_videos import LabelledVideos
from .labels import class_numbers


class SomethingSomethingV2(LabelledVideos):
    """Something-Something-v2 by its official json files.

    annotations: something-something-v2-train.json, -validation.json or -test.json (no labels). root: folder with
    {id}.webm (or another suffix), at any depth. split: what to call it. classes: something-something-v2-labels.json, or
    the names in order; None, those in the file, sorted. reading: see `LabelledVideos`; a transform that flips is
    refused, since "pushing from left to right" would be the opposite.

    Raises ValueError for annotations that don't fit.
    """

    flip_keeps_label = False

    def __init__(
        self,
        annotations: str | Path,
        root: str | Path,
        split: str | None = None,
        classes: str | Path | Sequence[str] | None = None,
        **reading,
    ):
        table = read_annotations(annotations)
        if not table.attrs["format"].startswith("something"):
            raise ValueError(f"{annotations}: a {table.attrs['format']}, not Something-Something-v2's json")
        if isinstance(classes, str | Path):
            classes = _read_classes(classes)
        labels, classes = class_numbers(table, table, classes, annotations)
        names = Names(root, VIDEO_SUFFIXES)
        paths = [names.find(name, "", ".webm") for name in table["id"]]
        super().__init__(paths, table["id"].tolist(), labels, classes, split, **reading)


def _read_classes(path: str | Path) -> list[str]:
    """{template: number as a string}, in the order of the numbers."""
    try:
        numbers = {without_brackets(name): int(number) for name, number in json.loads(Path(path).read_text()).items()}
    except (ValueError, TypeError, AttributeError) as e:
        raise ValueError(f'{path}: not a class list such as {{"Holding something": "0", ...}}') from e
    if sorted(numbers.values()) != list(range(len(numbers))):
        raise ValueError(f"{path}: class numbers are not 0 to {len(numbers) - 1}")
    return sorted(numbers, key=numbers.__getitem__)
