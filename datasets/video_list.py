"""Videos named in a list."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from .annotations import read_annotations
from .container import MEDIA_SUFFIXES, VIDEO_SUFFIXES
from .files import Names
from .labelled_videos import LabelledVideos
from .labels import class_numbers, of_split


class VideoList(LabelledVideos):
    """Videos, and images as videos of one frame, by a list of paths and labels or a csv with a header.

    annotations: see `read_annotations`, which also says how path_column, label_column and split_column are found where
    they are not given. root: what its paths are relative to; None, the folder the list is in. A name without a suffix
    (a bare number, an id) is looked for below the root. split: where there is a column of splits. classes: names in the
    order of the numbers; None, those in the file, sorted. reading: see `LabelledVideos`.

    format: what was recognised. dropped: how many rows had no label in a file that has labels (warned about).
    Raises ValueError for annotations that don't fit.
    """

    def __init__(
        self,
        annotations: str | Path,
        root: str | Path | None = None,
        split: str | None = None,
        path_column: str | None = None,
        label_column: str | None = None,
        split_column: str | None = None,
        classes: Sequence[str] | None = None,
        **reading,
    ):
        table = read_annotations(annotations, path_column, label_column, split_column)
        self.format, self.dropped = table.attrs["format"], table.attrs["dropped"]
        if self.dropped:
            warnings.warn(f"{annotations}: {self.dropped} rows without a label are dropped", stacklevel=2)
        rows = of_split(table, split, annotations)
        labels, classes = class_numbers(table, rows, classes, annotations)
        root = Path(annotations).parent if root is None else Path(root)
        ids = rows["path" if "path" in rows else "id"].tolist()
        super().__init__(_resolve(ids, root), ids, labels, classes, split, **reading)


def _resolve(ids: list[str], root: Path) -> list[str]:
    bare = [not name.lower().endswith(MEDIA_SUFFIXES) for name in ids]
    names = Names(root, VIDEO_SUFFIXES) if any(bare) else None
    return [
        names.find(Path(name).name, Path(name).parent.name, "") if is_bare else str(root / name)
        for name, is_bare in zip(ids, bare, strict=True)
    ]
