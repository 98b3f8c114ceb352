"""Work items, one per video of a source (files, folders, annotations, digits, motion tasks), and sampling of clips."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vidtok.datasets import (
    MotionTasks,
    MovingDigits,
    dense_clips,
    open_dataset,
    read_annotations,
    uniform_segments,
    whole_windows,
)
from vidtok.datasets.annotations import SUFFIXES
from vidtok.datasets.annotations.table import split_folders, tidy_split
from vidtok.datasets.samplers import Segment, describe_segment
from vidtok.datasets.sources import is_folder
from vidtok.errors import UserError, nearest
from vidtok.inputs import find_videos, index_archives, is_file
from vidtok.names import escape_name
from vidtok.remote import ADDRESS


@dataclass(frozen=True, slots=True)
class Rendered:
    """Video that is rendered: one of `MovingDigits`, or a clip of `MotionTasks`.

    Attributes:
        number: its number in the dataset. split, seed: of the dataset.
        task, source, clips: of `MotionTasks`, and columns: its root and columns as pairs; task None, digits.
    """

    number: int
    split: str | None
    seed: int = 0
    task: str | None = None
    source: str = ""
    clips: int | None = None
    columns: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One video to extract.

    Attributes:
        id, label, split: of its record.
        path: its file; None for a rendered video.
        rendered: the rendered video; None, it is read from the file.
        segment: (start, end) in seconds; None, the whole video.
    """

    id: str
    path: str | None = None
    label: str | None = None
    split: str | None = None
    rendered: Rendered | None = None
    segment: Segment | None = None

    def __str__(self) -> str:
        return describe_segment(self.path or self.id, self.segment)


def plan_sources(
    sources: str | Path | Iterable[str | Path],
    root: str | None = None,
    split: str | None = None,
    renderings: int | None = None,
    class_folders: bool = False,
    frame_folders: float | None = None,
    **columns: str | None,
) -> list[WorkItem]:
    """Make the work items of all sources, in order. For the arguments see `vidtok.extraction.run.Extraction`.

    Raises:
        UserError: a source doesn't exist, or a setting doesn't apply to it.
        ValueError: two videos would be stored under one id.
    """
    named = {**columns, "root": root, "split": split}
    given = [f"--{name.replace('_', '-')}" for name, value in named.items() if value is not None]
    items = []
    sources = [sources] if isinstance(sources, str | Path) else sources
    listed = [ADDRESS.sub(r"\1://", str(source)) for source in sources]
    for is_labeled, group in groupby(listed, lambda source: class_folders or is_dataset(source)):
        if not is_labeled:
            several = [*group]
            if given:
                raise UserError(f"{several[0]}: {', '.join(given)} is for annotations and --class-folders")
            items += plan_files(find_videos(several, frame_folders))
            continue
        for source in group:
            annotated = source != "digits" and not is_folder(source)
            if not annotated and (unfit := [flag for flag in given if flag != "--split"]):
                raise UserError(f"{source}: {', '.join(unfit)} is for annotations")
            items += plan_dataset(source, root, split, renderings or 1, frame_folders, **columns)
    return validate_unique(items)


def plan_files(files: Iterable[tuple[Path, Path]]) -> list[WorkItem]:
    """Make the work items of files, without labels; ids are escaped paths, see `vidtok.names`.

    files: pairs of (file, its path below the folder it was found in).
    """
    # `Path` turns the // of an address into one slash.
    return [WorkItem(escape_name(below.as_posix()), ADDRESS.sub(r"\1://", str(file))) for file, below in files]


def plan_dataset(
    source: str,
    root: str | None = None,
    split: str | None = None,
    renderings: int = 1,
    frame_folders: float | None = None,
    **columns: str | None,
) -> list[WorkItem]:
    """Make the work items of a labeled dataset.

    Args:
        source, root, columns: see `vidtok.datasets.open_dataset`.
        split: one split; None, all.
        renderings: number of renderings of each video of digits, with seeds 0, 1, ...
        frame_folders: frame rate given to folders of numbered images, each of which is a video; None, none is.

    Raises:
        ValueError: the source is not a dataset.
    """
    items: list[WorkItem] = []
    in_folder = source != "digits" and is_folder(source)
    table = None if source == "digits" or in_folder or not is_file(source) else read_annotations(source, **columns)
    for name in [split] if split is not None else _splits(source, table):
        dataset = open_dataset(source, root, name, **columns, frame_folders=frame_folders, table=table)
        written = name and (name.lower() if in_folder else tidy_split(name))
        for i, (id, number) in enumerate(zip(dataset.ids, dataset.labels, strict=True)):
            label = dataset.classes[number] if number >= 0 else None
            if isinstance(dataset, MovingDigits):
                digit_split = written or dataset.split
                for seed in range(renderings):
                    items.append(
                        WorkItem(f"{id}/{seed}" if seed else id, None, label, written, Rendered(i, digit_split, seed))
                    )
            else:
                items.append(WorkItem(id, dataset.paths[i], label, written, segment=dataset.segments[i]))
    index_archives(item.path for item in items)
    return items


def plan_tasks(
    sources: Iterable[str | Path],
    task: str,
    number: int | None,
    split: str | None,
    clips: "Clips | None",
    size: int | None,
    **columns: Any,
) -> list[WorkItem]:
    """Make the work items of motion tasks, made from the videos of each source.

    Args:
        sources, task, split, columns: see `MotionTasks`.
        number: clips per source; None, see `MotionTasks`.
        clips, size: frames, stride, frame rate and side of a clip; clips are "dense:1".

    Raises:
        ValueError: an unknown task, no size, several clips, or a source without videos that are long enough.
    """
    if size is None or clips is None or (clips.name, clips.number) != ("dense", 1):
        raise ValueError(f"clips of a motion task are rendered: give a size, and clips dense:1, not {size} and {clips}")
    items, written = [], split and tidy_split(split)
    for source in sources:
        first = Rendered(0, split, 0, task, str(source), number, (*columns.items(),))
        dataset = open_tasks(first, clips, size)
        for i, (id, label) in enumerate(zip(dataset.ids, dataset.labels, strict=True)):
            items.append(WorkItem(id, None, dataset.classes[label], written, replace(first, number=i)))
    return validate_unique(items)


def open_tasks(tasks: Rendered, clips: "Clips", size: int, reader: str = "auto") -> MotionTasks:
    """Open the dataset of a clip of a motion task; see `plan_tasks` and `MotionTasks`."""
    assert tasks.task is not None
    shape = clips.frames, clips.stride, size, clips.fps
    columns = dict(tasks.columns)
    return MotionTasks(tasks.source, tasks.task, tasks.split, tasks.clips, *shape, tasks.seed, reader=reader, **columns)


def validate_unique(items: Sequence[WorkItem]) -> list[WorkItem]:
    """Return the items without duplicates.

    Raises:
        ValueError: two different videos have the same id.
    """
    owners: dict[str, WorkItem] = {}
    for item in items:
        other = owners.setdefault(item.id, item)
        if other != item and not _is_same_file(other, item):
            raise ValueError(f"{other} and {item} would both be kept as {item.id}: extract them into two folders")
    return [*owners.values()]


def _is_same_file(item: WorkItem, other: WorkItem) -> bool:
    """Return whether two items are equal except for the links that lead to their file."""
    if item.path is None or other.path is None:
        return False
    return replace(item, path=os.path.realpath(item.path)) == replace(other, path=os.path.realpath(other.path))


def _splits(source: str, table: pd.DataFrame | None) -> list[str | None]:
    if source == "digits":
        return ["train", "val"]
    if is_folder(source):
        return [*split_folders(source)] or [None]
    if table is None:
        raise ValueError(f"{source}: no such file or folder, nor 'digits'")
    return [*dict.fromkeys(table["split"])] if "split" in table else [None]


def is_dataset(source: str) -> bool:
    """Return whether a source is for `plan_dataset`: "digits", or an annotation file by its suffix."""
    if ADDRESS.match(source):
        return not is_folder(source) and "*" not in source
    has_suffix = Path(source).suffix.lower() in SUFFIXES
    return source == "digits" or (has_suffix and (Path(source).is_file() or is_file(source)))


SAMPLERS = ("uniform", "dense", "windows")


@dataclass(frozen=True)
class Clips:
    """Deterministic sampling of clips, by a sampler of `vidtok.datasets.samplers`.

    Args:
        name: "uniform" (`uniform_segments`), "dense" (`dense_clips`) or "windows" (`whole_windows`).
        number: number of clips; for windows, the frames from one to the next (None: without overlap or gap).
        frames: frames per clip. stride: from one frame to the next, in frames of `fps`. fps: frame rate to sample at;
            None, the video's own. limit: take only the first clips, for measurements; None, all.
    """

    name: str
    number: int | None
    frames: int
    stride: int = 1
    fps: float | None = None
    limit: int | None = None

    @classmethod
    def of_record(cls, text: str) -> "Clips":
        """Parse `str(clips)`, the form in which the settings of extracted features store it."""
        kind, _, pace = text.partition(", ")
        (name, _, number), (frames, _, pace) = kind.partition(":"), pace.partition(" x ")
        stride, _, rate = pace.partition(" at ")
        fps = float(rate.removesuffix(" fps")) if rate else None
        return cls(name, None if number == "None" else int(number), int(frames), int(stride), fps)

    def times(self, duration: float, fps: float) -> np.ndarray:
        """Return the times of the frames, seconds [clips, frames], in a video of `duration` seconds and `fps`."""
        pace: dict[str, Any] = {"frames": self.frames, "stride": self.stride, "at_fps": self.fps}
        if self.name == "windows":
            return whole_windows(duration, fps, hop=self.number, **pace)[: self.limit]
        assert self.number is not None
        if self.name == "dense":
            return dense_clips(duration, fps, clips=self.number, **pace)
        return uniform_segments(duration, fps, frames=self.frames, clips=self.number)

    def __str__(self) -> str:
        rate = "" if self.fps is None else f" at {self.fps:g} fps"
        return f"{self.name}:{self.number}, {self.frames} x {self.stride}{rate}"


def parse_clips(text: str, frames: int, stride: int = 1, fps: float | None = None) -> Clips:
    """Parse "uniform:4", "dense:5", "windows" or "windows:8", see `Clips`.

    Raises:
        ValueError: anything else, or a stride or rate for uniform clips.
    """
    name, colon, number = text.partition(":")
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}: {nearest(name, SAMPLERS)}")
    if colon and not (number.isdecimal() and int(number) > 0):
        raise ValueError(f"clips are NAME or NAME:NUMBER, not {text!r}")
    if name == "uniform" and (stride != 1 or fps is not None):
        raise ValueError("uniform clips span the whole video: they have no stride and no rate of their own")
    return Clips(name, int(number) if colon else None if name == "windows" else 1, frames, stride, fps)
