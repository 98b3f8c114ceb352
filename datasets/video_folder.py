"""Videos whose folder is their class."""

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from .container import MEDIA_SUFFIXES
from .files import find_media
from .labelled_videos import LabelledVideos
from .labels import class_numbers


class VideoFolder(LabelledVideos):
    """ROOT/CLASS/VIDEO or, with a split, ROOT/SPLIT/CLASS/VIDEO; a folder without class folders is not labelled.

    Videos, and images as videos of one frame, at any depth below the class's folder; suffixes: which of them, such as
    `vidtok.datasets.container.IMAGE_SUFFIXES`. classes: names in the order of the numbers; None, the folders, sorted.
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
