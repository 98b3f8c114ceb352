"""From what a user names, a folder or an annotation file, to the dataset that it is.

Kinetics-400, -600 and -700.

Something-Something-v2.

Videos whose folder is their class.

Videos named in a list.

Class numbers for the labels of annotations, and the rows of one split.

Finding the files that annotations mean.
"""

import json
import os
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from vidtok.datasets.annotations import read_annotations, without_brackets
from vidtok.datasets.decode import MEDIA_SUFFIXES, VIDEO_SUFFIXES
from vidtok.datasets.digits import MovingDigits
from vidtok.datasets.labelled import LabelledDataset, LabelledVideos


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


def find_media(root: str | Path, suffixes: tuple[str, ...]) -> list[str]:
    """Files below `root` with one of `suffixes`, sorted, hidden ones left out. Raises ValueError if it is no folder."""
    if not Path(root).is_dir():
        raise ValueError(f"{root} is not a folder")
    return sorted(
        os.path.join(where, name)
        for where, _, names in os.walk(root, followlinks=True)
        for name in names
        if name.lower().endswith(suffixes) and not name.startswith(".")
    )


class Names:
    """Files below a folder by their name without suffix, wherever they lie."""

    def __init__(self, root: str | Path, suffixes: tuple[str, ...]):
        self._root, self._places = Path(root), defaultdict(list)
        for path in find_media(root, suffixes):
            self._places[Path(path).stem].append(path)

    def find(self, name: str, folder: str, suffix: str) -> str:
        """The file called `name`, where there are several the one in a folder called `folder`; where there is none, the
        path it should have: name + suffix in the root."""
        places = self._places.get(name) or [str(self._root / f"{name}{suffix}")]
        return next((path for path in places if Path(path).parent.name == folder), places[0])


class Kinetics(LabelledVideos):
    """Kinetics by its official csv files (label,youtube_id,time_start,time_end,split).

    annotations: csv file. root: folder with the clips, {youtube_id}_{start:06d}_{end:06d}.mp4 (or another suffix), in
    class folders or flat, at any depth; a clip that isn't there has the path it should have, and is an error when it is
    read. split: "train", "val", "test" where the file has several. classes: names in the order of the numbers, as they
    must be when the file at hand has not all of them; None, those in the file, sorted. reading: see `LabelledVideos`.

    Raises ValueError for annotations that don't fit.
    """

    def __init__(
        self,
        annotations: str | Path,
        root: str | Path,
        split: str | None = None,
        classes: Sequence[str] | None = None,
        **reading,
    ):
        table = read_annotations(annotations)
        if not table.attrs["format"].startswith("kinetics"):
            raise ValueError(f"{annotations}: a {table.attrs['format']}, not a Kinetics csv")
        rows = of_split(table, split, annotations)
        labels, classes = class_numbers(table, rows, classes, annotations)
        ids = [f"{i}_{int(s):06d}_{int(e):06d}" for i, s, e in zip(rows["id"], rows["start"], rows["end"], strict=True)]
        names = Names(root, VIDEO_SUFFIXES)
        folders = [_folder(label) for label in rows["label"]]
        paths = [names.find(name, folder, ".mp4") for name, folder in zip(ids, folders, strict=True)]
        super().__init__(paths, ids, labels, classes, split, **reading)


def _folder(label: str | None) -> str:
    """The folder of a class, as the common download scripts name it."""
    return "" if label is None else label.replace(" ", "_")


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


class VideoFolder(LabelledVideos):
    """ROOT/CLASS/VIDEO or, with a split, ROOT/SPLIT/CLASS/VIDEO; a folder without class folders is not labelled.

    Videos, and images as videos of one frame, at any depth below the class's folder; suffixes: which of them, such as
    `vidtok.datasets.decode.IMAGE_SUFFIXES`. classes: names in the order of the numbers; None, the folders, sorted.
    ids are paths relative to the root. reading: see `LabelledVideos`.

    Raises ValueError for a folder with nothing in it, and for files beside class folders.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        suffixes: tuple[str, ...] = MEDIA_SUFFIXES,
        classes: Sequence[str] | None = None,
        **reading,
    ):
        root = Path(root)
        folder = root / split if split else root
        paths = find_media(folder, suffixes)
        if not paths:
            raise ValueError(f"{folder}: no file with one of the suffixes {', '.join(suffixes[:4])}, ...")
        inside = [Path(os.path.relpath(path, folder)).parts for path in paths]
        flat = [parts[0] for parts in inside if len(parts) == 1]
        if flat and len(flat) < len(inside):
            raise ValueError(f"{folder}: {flat[0]} lies beside the class folders, what is it?")
        table = pd.DataFrame({"label": [None if flat else parts[0] for parts in inside]})
        labels, classes = class_numbers(table, table, classes, folder)
        ids = [os.path.relpath(path, root) for path in paths]
        super().__init__(paths, ids, labels, classes, split, **reading)


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


_SPLITS = ("train", "val", "validation", "test")


def open_dataset(
    source: str | Path,
    root: str | Path | None = None,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    **reading,
) -> LabelledDataset:
    """The dataset that `source` is: "digits", a folder (`VideoFolder`), or an annotation file, told by its content.

    root: the folder of the videos, where it isn't the one of the annotation file. The columns are those of `VideoList`;
    for the other arguments see the datasets. Raises ValueError for what is none of these.
    """
    columns = {"path_column": path_column, "label_column": label_column, "split_column": split_column}
    if str(source) == "digits":
        return MovingDigits(split or "train", classes=classes, **reading)
    source = Path(source)
    if source.is_dir():
        return VideoFolder(source, split, classes=classes, **reading)
    if not source.is_file():
        raise ValueError(f"{source}: no such file or folder, nor 'digits'")
    name, root = read_annotations(source, **columns).attrs["format"], root or source.parent
    if name.startswith("kinetics"):
        return Kinetics(source, root, split, classes, **reading)
    if name.startswith("something"):
        return SomethingSomethingV2(source, root, split, classes, **reading)
    return VideoList(source, root, split, **columns, classes=classes, **reading)


def files_by_split(source: str | Path, root: str | Path | None = None, **columns: str | None) -> dict[str, list[str]]:
    """The videos of all splits of `source`, a folder or an annotation file; one without splits is a split of its own,
    called as the source. In a folder the folders train, val, validation and test are splits; labels do not matter.
    Raises ValueError for what is neither."""
    source = Path(source)
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    if source.is_dir():
        splits = [name for name in _SPLITS if (source / name).is_dir()]
        return {name: find_media(source / name, MEDIA_SUFFIXES) for name in splits} or {
            str(source): find_media(source, MEDIA_SUFFIXES)
        }
    dataset = open_dataset(source, root, **columns)
    table = read_annotations(source, **columns)
    if "split" not in table:
        return {str(source): dataset.paths}
    return {split: open_dataset(source, root, split, **columns).paths for split in dict.fromkeys(table["split"])}
