"""Kinetics-400, -600 and -700."""

from collections.abc import Sequence
from pathlib import Path

from .annotations import read_annotations
from .container import VIDEO_SUFFIXES
from .files import Names
from .labelled_videos import LabelledVideos
from .labels import class_numbers, of_split


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
