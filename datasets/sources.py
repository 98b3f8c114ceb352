"""Labeled datasets from folders and annotation files: Kinetics, Something-Something-v2, class folders and lists.

`open_dataset` detects which of them a source is.
"""

import json
import os
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from vidtok import inputs
from vidtok.archives import members, split_path
from vidtok.datasets.annotations import SUFFIXES, read_annotations
from vidtok.datasets.annotations.formats import without_brackets
from vidtok.datasets.annotations.table import find_split_folder, of_split, split_folders
from vidtok.datasets.labeled import LabeledDataset, LabeledVideos
from vidtok.datasets.samplers import Segment, ids_and_segments, segment_id
from vidtok.datasets.synthetic.digits import MovingDigits
from vidtok.names import (
    FRAMES,
    IMAGE_SUFFIXES,
    MEDIA_SUFFIXES,
    VIDEO_SUFFIXES,
    escape_name,
    spellings,
    without_suffix,
)
from vidtok.remote import as_address, as_text, join, without_query
from vidtok.virtual_files import as_frames


def class_numbers(
    table: pd.DataFrame, rows: pd.DataFrame, classes: Sequence[str] | None, source: str | Path
) -> tuple[list[int], list[str]]:
    """Convert labels to class numbers.

    Args:
        table: all rows, from `read_annotations`.
        rows: the rows to convert.
        classes: class names in the order of the class numbers; None, the labels in `table`, sorted, or "0", "1", ... if
            the labels are numbers.
        source: name of the source for an error.

    Returns:
        (class number of each of `rows`, -1 without labels; class names).

    Raises:
        ValueError: a label that is not among the classes.
    """
    labels = rows["label"]
    if labels.isna().all():
        return [-1] * len(rows), list(classes or [])
    if pd.api.types.is_integer_dtype(labels):
        names = [str(i) for i in range(int(table["label"].max()) + 1)] if classes is None else list(classes)
        if labels.min() < 0 or labels.max() >= len(names):
            legal = f"legal are 0 to {len(names) - 1}: {len(names)} classes"
            raise ValueError(f"{source} has labels from {labels.min()} to {labels.max()}, {legal}")
        return labels.tolist(), names
    names = sorted(set(table["label"])) if classes is None else list(classes)
    number = {name: i for i, name in enumerate(names)}
    if unknown := sorted(set(labels) - set(names)):
        raise ValueError(f"{source}: {len(unknown)} labels are not among the classes: {', '.join(unknown[:5])}")
    return [number[label] for label in labels], names


def find_media(root: str | Path, suffixes: tuple[str, ...], frame_folders: float | None = None) -> list[str]:
    """Find the files below `root` with one of `suffixes` as `walk_files` does; return them sorted.

    Args:
        root: a folder or archive, a folder in an archive, or an address of one (`vidtok.inputs`).
        suffixes: in lower case.
        frame_folders: frames per second; folders of numbered images are then videos, `DIR/@FPS`. None, images are
            ordinary files.

    Raises:
        ValueError: root is none of these.
        VideoError: the archive can't be read.
    """
    if frame_folders is not None:
        found = find_media(root, (*suffixes, *IMAGE_SUFFIXES))
        return [*dict.fromkeys(as_frames(path, frame_folders) for path in found)]
    if (place := split_path(f"{os.fspath(root)}/")) is not None:
        found = [join(place[0], name) for name in members(place[0]) if name.startswith(place[1])]
        return sorted(path for path in found if path.lower().endswith(suffixes))
    if (url := as_address(root)) is not None:
        return sorted(join(url, str(file)) for file, _ in inputs.find_files([url], suffixes))
    if not Path(root).is_dir():
        raise ValueError(f"{root} is not a folder")
    return sorted(inputs.walk_files(root, suffixes))


def _below(path: str, folder: str | Path) -> str:
    """Return the path of a video below a folder, with "/"; for a folder of frames, the path of that folder."""
    place = os.path.relpath(FRAMES.sub("", path), folder)
    return Path(place if place != "." else os.path.basename(os.path.abspath(folder))).as_posix()


class Names:
    """Index of the files below a folder, at any depth, by their name without suffix."""

    def __init__(self, root: str | Path, suffixes: tuple[str, ...], frame_folders: float | None = None):
        self._root = Path(root)
        self._paths: dict[str, list[str]] = defaultdict(list)  # by path without suffix
        self._named: dict[str, list[str]] = defaultdict(list)  # by name without suffix
        for path in find_media(root, suffixes, frame_folders):
            stem = without_suffix(path)
            self._paths[os.path.normpath(stem)].append(path)
            self._named[os.path.basename(stem)].append(path)

    def find(self, name: str, folder: str = "") -> str | None:
        """Return the path of the file called `name`, which may begin with folders; None if there is none.

        The file at exactly this path below the root is preferred, then those whose path ends with `name`, then those in
        a folder called `folder`.

        Raises:
            ValueError: two files fit.
        """
        parts = Path(name).parts
        places = self._paths.get(os.path.normpath(self._root / name)) or self._named.get(Path(name).name, [])
        for fits in (
            lambda path: Path(without_suffix(path)).parts[-len(parts) :] == parts,
            lambda path: Path(without_suffix(path)).parent.name == folder,
        ):
            if len(places) > 1:
                places = [path for path in places if fits(path)] or places
        if len(places) > 1:
            raise ValueError(f"{name} is {places[0]} or {places[1]}: give its path below {self._root}, with the suffix")
        return places[0] if places else None

    def locate(self, name: str, segment: Segment | None, folder: str = "") -> tuple[str | None, Segment | None]:
        """Return (path, segment to read from it); the file of the segment alone if there is one, see `segment_id`."""
        if segment is not None and (path := self.find(segment_id(name, segment), folder)):
            return path, None
        path = self.find(name, folder)
        return path, None if path is None else segment


class Kinetics(LabeledVideos):
    """Kinetics-400, -600 or -700 with its official csv files (label,youtube_id,time_start,time_end,split).

    Args:
        annotations: csv file. table: its content, if it has been read.
        root: folder with the clips, {youtube_id}_{start:06d}_{end:06d}.mp4 (or another suffix), at any depth, or with
            whole videos, {youtube_id}.mp4, from which the segments are read. A missing clip keeps its expected path;
            reading it raises an error.
        split: "train", "val" or "test", if the file has several; None, all.
        classes: class names in the order of the class numbers, required if the file lacks some of them; None, the
            labels in the file, sorted.
        frame_folders: see `find_media`; a clip may then be a folder of frames.
        reading: see `LabeledVideos`.

    Raises:
        ValueError: the annotations are of another kind, or don't fit the split or the classes.
    """

    def __init__(
        self,
        annotations: str | Path,
        root: str | Path,
        split: str | None = None,
        classes: Sequence[str] | None = None,
        frame_folders: float | None = None,
        table: pd.DataFrame | None = None,
        **reading,
    ):
        table = read_annotations(annotations) if table is None else table
        if not table.attrs["format"].startswith("kinetics"):
            raise ValueError(f"{annotations} is a {table.attrs['format']}, not a Kinetics csv")
        rows = of_split(table, split, annotations)
        labels, classes = class_numbers(table, rows, classes, annotations)
        ids, segments = ids_and_segments(rows)
        names = Names(root, VIDEO_SUFFIXES, frame_folders)
        folders = [_folder(label) for label in rows["label"]]
        found = [names.locate(*row) for row in zip(rows["id"], segments, folders, strict=True)]
        paths = [path or join(root, f"{name}.mp4") for (path, _), name in zip(found, ids, strict=True)]
        super().__init__(paths, ids, labels, classes, split, segments=[segment for _, segment in found], **reading)


def _folder(label: str | None) -> str:
    """Return the folder name of a class in the common download scripts."""
    return "" if label is None else label.replace(" ", "_")


class SomethingSomethingV2(LabeledVideos):
    """Something-Something-v2 with its official json files.

    Args:
        annotations: something-something-v2-train.json, -validation.json or -test.json (no labels). table: its content.
        root: folder with {id}.webm (or another suffix), at any depth.
        split: name of the split; it does not select samples.
        classes: something-something-v2-labels.json, or the class names in order; None, the labels in the file, sorted.
        frame_folders: see `find_media`; a clip may then be a folder of frames.
        reading: see `LabeledVideos`. A transform with flip=True is rejected: "pushing from left to right" would become
            its opposite.

    Raises:
        ValueError: the annotations are of another kind, or don't fit the classes.
    """

    flip_keeps_label = False

    def __init__(
        self,
        annotations: str | Path,
        root: str | Path,
        split: str | None = None,
        classes: str | Path | Sequence[str] | None = None,
        frame_folders: float | None = None,
        table: pd.DataFrame | None = None,
        **reading,
    ):
        table = read_annotations(annotations) if table is None else table
        if not table.attrs["format"].startswith("something"):
            raise ValueError(f"{annotations} is a {table.attrs['format']}, not Something-Something-v2's json")
        if isinstance(classes, str | Path):
            classes = _read_classes(classes)
        labels, classes = class_numbers(table, table, classes, annotations)
        names = Names(root, VIDEO_SUFFIXES, frame_folders)
        paths = [names.find(name) or join(root, f"{name}.webm") for name in table["id"]]
        super().__init__(paths, table["id"].tolist(), labels, classes, split, **reading)


def _read_classes(path: str | Path) -> list[str]:
    """Read class names from {template: number as a string}, in the order of the numbers."""
    try:
        with inputs.open_binary(path) as file:
            numbers = {without_brackets(name): int(number) for name, number in json.load(file).items()}
    except (ValueError, TypeError, AttributeError) as e:
        raise ValueError(f'{path}: not a class list such as {{"Holding something": "0", ...}}') from e
    if sorted(numbers.values()) != list(range(len(numbers))):
        raise ValueError(f"{path}: class numbers are not 0 to {len(numbers) - 1}")
    return sorted(numbers, key=numbers.__getitem__)


class VideoFolder(LabeledVideos):
    """Videos in class folders: ROOT/CLASS/VIDEO or, with a split, ROOT/SPLIT/CLASS/VIDEO.

    Files may lie at any depth below their class folder. Images are videos of one frame. A folder without class folders
    is unlabeled. Ids are paths relative to the root; ids and classes escape names, see `vidtok.names`.

    Args:
        root: the folder.
        split: subfolder of the root; None, the root itself.
        suffixes: suffixes of the files to use, such as `vidtok.names.IMAGE_SUFFIXES`.
        classes: class names in the order of the class numbers; None, the folder names, sorted.
        frame_folders: see `find_media`; ROOT/CLASS/VIDEO/0001.jpg, ... are then the frames of one video.
        reading: see `LabeledVideos`.

    Raises:
        ValueError: no matching files in the folder, files beside class folders, or a folder that is not a class.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        suffixes: tuple[str, ...] = MEDIA_SUFFIXES,
        classes: Sequence[str] | None = None,
        frame_folders: float | None = None,
        **reading,
    ):
        if "*" in str(root) and as_address(root):
            raise ValueError(f"{as_text(root)}: a pattern; give a folder, an archive or an annotation file")
        root = Path(root)
        folder = find_split_folder(root, split) if split else root
        paths = find_media(folder, suffixes, frame_folders)
        shown = as_text(folder)
        if not paths:
            raise ValueError(f"{shown} holds no file with one of the suffixes {', '.join(suffixes[:4])}, ...")
        inside = [Path(_below(path, folder)).parts for path in paths]
        flat = [parts[0] for parts in inside if len(parts) == 1]
        if flat and len(flat) < len(inside):
            raise ValueError(f"{shown}: {flat[0]} lies beside the class folders: move it into the folder of its class")
        table = pd.DataFrame({"label": [None if flat else escape_name(parts[0]) for parts in inside]})
        labels, classes = class_numbers(table, table, classes, shown)
        ids = [escape_name(_below(path, root)) for path in paths]
        super().__init__(paths, ids, labels, classes, split, **reading)


class VideoList(LabeledVideos):
    """Videos in a list of paths and labels, or in a csv with a header. Images are videos of one frame.

    Args:
        annotations: see `read_annotations`. table: its result, if it has been read with these columns.
        root: folder that the paths are relative to; None, the folder of the list. Paths may have Windows separators,
            other Unicode accents than on disk, or the escapes of the table of `vidtok check`. A name without a suffix
            (a number or an id) is searched for below the root, see `Names.find`.
        split: the split to use, if there is a column of splits; None, all. The case of its name doesn't matter.
        path_column, label_column, split_column: column names; None, the usual ones, see `read_annotations`.
        classes: class names in the order of the class numbers; None, the labels in the file, sorted.
        frame_folders: see `find_media`; the list may then name folders of frames.
        reading: see `LabeledVideos`.

    Attributes:
        format: name of the detected format.
        dropped: number of rows dropped, with a warning, because they have no label in a file that has labels.

    Raises:
        ValueError: the annotations can't be read, or don't fit the split or the classes; or a name without a suffix
            fits two files.
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
        frame_folders: float | None = None,
        table: pd.DataFrame | None = None,
        **reading,
    ):
        table = read_annotations(annotations, path_column, label_column, split_column) if table is None else table
        self.format, self.dropped = table.attrs["format"], table.attrs["dropped"]
        if self.dropped:
            warnings.warn(f"{annotations}: {self.dropped} rows without a label are dropped", stacklevel=2)
        rows = of_split(table, split, annotations)
        labels, classes = class_numbers(table, rows, classes, annotations)
        root = Path(without_query(annotations)).parent if root is None else Path(root)
        names = rows["path" if "path" in rows else "id"].tolist()
        ids, segments = ids_and_segments(rows)
        found = _resolve(names, segments, root, frame_folders)
        paths, segments = [path for path, _ in found], [segment for _, segment in found]
        super().__init__(paths, ids, labels, classes, split, segments=segments, **reading)


def _resolve(
    names: list[str], segments: list[Segment | None], root: Path, frame_folders: float | None
) -> list[tuple[str, Segment | None]]:
    """Return (path, segment to read from it) of each name; a missing file raises an error when it is read."""
    bare = [not name.lower().endswith(MEDIA_SUFFIXES) for name in names]
    index = Names(root, VIDEO_SUFFIXES, frame_folders) if any(bare) else None
    found: list[tuple[str, Segment | None]] = []
    for name, segment, is_bare in zip(names, segments, bare, strict=True):
        path, rest = None, segment
        if index is not None and is_bare:
            path, rest = index.locate(name.replace("\\", "/"), segment)
        found.append((path, rest) if path else (_locate(root, name), segment))
    return found


def _locate(root: Path, name: str) -> str:
    """Return the path of a file that a list names: as written, or in another of its `spellings`."""
    path = join(root, name)
    if as_address(path) or (name.isascii() and "\\" not in name and "%x" not in name) or os.path.lexists(path):
        return path
    return next((other for each in spellings(name) if os.path.lexists(other := str(root / each))), path)


def open_dataset(
    source: str | Path,
    root: str | Path | None = None,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    frame_folders: float | None = None,
    table: pd.DataFrame | None = None,
    **reading,
) -> LabeledDataset:
    """Open the labeled dataset at `source`; detect its kind.

    Args:
        source: "digits" (`MovingDigits`), a folder or archive (`VideoFolder`), or an annotation file, whose content
            decides between `Kinetics`, `SomethingSomethingV2` and `VideoList`. All may lie at addresses.
        root: folder of the videos; None, the folder of the annotation file.
        split, classes, reading: see the dataset. path_column, label_column, split_column: see `VideoList`.
        frame_folders: frames per second; folders of numbered images are then videos. None, images are videos of one
            frame. See `vidtok.virtual_files`. table: of an annotation file that has been read with these columns.

    Raises:
        ValueError: the source is of none of these kinds, or the dataset rejects an argument.
    """
    if str(source) == "digits":
        if frame_folders is not None:
            raise ValueError("frame_folders is for files, not for digits")
        return MovingDigits(split or "train", classes=classes, **reading)
    if is_folder(source):
        return VideoFolder(source, split, classes=classes, frame_folders=frame_folders, **reading)
    if not inputs.is_file(source):
        raise ValueError(f"{source}: no such file or folder; want a folder, an annotation file or 'digits'")
    table = read_annotations(source, path_column, label_column, split_column) if table is None else table
    rest = classes, frame_folders, table
    name, root = table.attrs["format"], root or Path(without_query(source)).parent
    if name.startswith("kinetics"):
        return Kinetics(source, root, split, *rest, **reading)
    if name.startswith("something"):
        return SomethingSomethingV2(source, root, split, *rest, **reading)
    return VideoList(source, root, split, path_column, label_column, split_column, *rest, **reading)


def is_folder(source: str | Path) -> bool:
    """Return whether a source is a folder or archive, as opposed to an annotation file; of an address by its suffix."""
    if as_address(source) is not None:
        return not without_query(source).lower().endswith(SUFFIXES)
    if os.path.isdir(source) or (inside := split_path(f"{os.fspath(source)}/")) is None:
        return os.path.isdir(source)
    return any(name.startswith(inside[1]) for name in members(inside[0]))


def videos_by_split(
    source: str | Path, root: str | Path | None = None, frame_folders: float | None = None, **columns: str | None
) -> dict[str, list[tuple[str, Segment | None]]]:
    """List the videos of each split of a folder or an annotation file; labels are ignored.

    In a folder, the subfolders train, val, validation and test are the splits, in any case.

    Args:
        source: folder, archive or annotation file, on this machine or at an address.
        root: folder of the videos of an annotation file; None, the folder of the file.
        frame_folders: see `open_dataset`.
        columns: path_column, label_column, split_column, see `VideoList`.

    Returns:
        {split: [(path, segment or None for the whole video)]}. A source without splits is one split with the name of
        the source.

    Raises:
        ValueError: the source does not exist or can't be read.
    """
    source = Path(source)
    if not inputs.exists(source):
        raise ValueError(f"{as_text(source)}: no such file or folder")
    if is_folder(source):
        folders = {name: source / name for name in split_folders(source)} or {str(source): source}
        media = {name: find_media(folder, MEDIA_SUFFIXES, frame_folders) for name, folder in folders.items()}
        return {name: [(path, None) for path in paths] for name, paths in media.items()}
    table = read_annotations(source, **columns)
    splits = dict.fromkeys(table["split"]) if "split" in table else {str(source): None}
    found: dict[str, list[tuple[str, Segment | None]]] = {}
    for split in splits:
        kept = split if "split" in table else None
        dataset = open_dataset(source, root, kept, **columns, frame_folders=frame_folders)
        found[split] = list(zip(dataset.paths, dataset.segments, strict=True))
    return found


def files_by_split(source: str | Path, root: str | Path | None = None, **columns: str | None) -> dict[str, list[str]]:
    """List the files of each split, {split: paths}; see `videos_by_split`."""
    found = videos_by_split(source, root, None, **columns)
    return {split: [path for path, _ in videos] for split, videos in found.items()}
