"""From what a user names, a folder or an annotation file, to the dataset that it is."""

from collections.abc import Sequence
from pathlib import Path

from .annotations import read_annotations
from .container import MEDIA_SUFFIXES
from .digits import MovingDigits
from .files import find_media
from .kinetics import Kinetics
from .labelled import LabelledDataset
from .something import SomethingSomethingV2
from .video_folder import VideoFolder
from .video_list import VideoList

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
