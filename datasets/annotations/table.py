"""Annotation tables in csv files with a header, and tests of single words in annotation files."""

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vidtok.inputs import subfolders
from vidtok.names import MEDIA_SUFFIXES

if TYPE_CHECKING:
    import pandas as pd


class AnnotationFormatError(Exception):
    """Error that says why a file, or the line `line` with the 1-based `number`, fits none of the formats.

    `str()` is meant to follow the name of the file in a message.
    """

    def __init__(self, why: str, number: int | None = None, line: str | None = None):
        shown = "" if line is None else f": {line if len(line) <= 200 else line[:200] + '...'!r}"
        super().__init__(f"{'' if number is None else f', line {number}'}{shown}: {why}")


_WHOLE = re.compile(r"-?\d+")


def is_whole(word: str) -> bool:
    """Return whether a word is a whole number, such as 3 or -1."""
    return _WHOLE.fullmatch(word) is not None


def is_media(word: str) -> bool:
    """Return whether a word has the suffix of a video or image file."""
    return word.lower().endswith(MEDIA_SUFFIXES)


def is_several(label: str) -> bool:
    """Return whether a label holds several classes: [1, 2] or 1,2 or a;b or a|b."""
    parts = label.split(",")
    numbers = len(parts) > 1 and all(part.strip().isdigit() for part in parts)
    return numbers or (label.startswith("[") and label.endswith("]")) or ";" in label or "|" in label


def is_class_list(names: Sequence[str], labels: Sequence[str | None]) -> bool:
    """Return whether one column holds 0..n-1 or 1..n, and the other n distinct words, most of them without digits."""
    known = [label for label in labels if label is not None]
    if len(known) < len(labels):
        return False
    for numbers, words in (([name.rstrip(":.)") for name in names], known), (known, names)):
        if not all(numbers) or not all(words) or not all(map(is_whole, numbers)) or len(set(words)) < len(words):
            continue
        if any(is_whole(word) or is_media(word) or "/" in word for word in words):
            continue
        first = min(map(int, numbers), default=-1)
        counts = first in (0, 1) and set(map(int, numbers)) == set(range(first, first + len(numbers)))
        if counts and 2 * sum(re.search(r"\d", word) is None for word in words) > len(words):
            return True
    return False


_SPLITS = {"validate": "val", "validation": "val", "valid": "val", "dev": "val", "training": "train", "testing": "test"}


def canonical_split(name: str) -> str:
    """Return the name by which splits are compared: lower case; "val" also for "validation", "dev" and so on."""
    return _SPLITS.get(name.lower(), name.lower())


SPLIT_FOLDERS = ("train", "val", "validation", "test")


def split_folders(root: str | Path) -> list[str]:
    """Return the subfolders of `root` that have names of splits, in any case, in the order train, val, test.

    root: a folder or archive, on this machine or at an address.
    """
    names = subfolders(root)
    return sorted((n for n in names if n.lower() in SPLIT_FOLDERS), key=lambda n: SPLIT_FOLDERS.index(n.lower()))


def find_split_folder(root: str | Path, split: str) -> Path:
    """Return the subfolder of `root` for a split: the one with exactly this name, else with the same canonical name."""
    folder = Path(root) / split
    if split not in subfolders(root):
        same = [name for name in split_folders(root) if canonical_split(name) == canonical_split(split)]
        if len(same) == 1:
            return Path(root) / same[0]
    return folder


def of_split(table: "pd.DataFrame", split: str | None, source: str | Path) -> "pd.DataFrame":
    """Select the rows of a split; all rows if `split` is None or the annotations have no column of splits.

    Args:
        table: from `read_annotations`.
        split: name of the split, or None.
        source: name of the source for an error.

    Raises:
        ValueError: the split does not exist.
    """
    if split is None or "split" not in table:
        return table
    rows = table[table["split"].map(canonical_split) == canonical_split(split)]
    if not len(rows):
        raise ValueError(f"{source} has no split {split!r}, only {', '.join(sorted(set(table['split'])))}")
    return rows


def tidy_split(name: str) -> str:
    """Return "train", "val" or "test" for their usual names in any case; other names unchanged."""
    canonical = canonical_split(name)
    return canonical if canonical in ("train", "val", "test") else name


# Column names in order of preference, compared in lower case.
_NAMES = {
    "path": ("path", "video_path", "file_path", "filepath", "clip_path", "relative_path", "filename", "file_name",
             "file", "video_file", "video", "video_name", "clip_name", "clip"),
    "id": ("youtube_id", "id", "video_id", "vid", "clip_id"),
    "label": ("label", "class", "class_name", "label_name", "category", "action", "tag", "target", "labels",
              "class_label", "action_label", "label_id", "class_id", "label_idx", "class_idx"),
    "split": ("split", "subset", "partition"),
    "start": ("time_start", "t_start", "start", "start_time", "start_sec", "start_seconds", "start_timestamp", "begin"),
    "end": ("time_end", "t_end", "end", "end_time", "end_sec", "end_seconds", "end_timestamp", "stop",
            "stop_timestamp"),
}  # fmt: skip
_FRAME_NUMBERS = {"start_frame", "end_frame", "stop_frame", "frame_start", "frame_end", "first_frame", "last_frame"}
_TEXT = {"caption", "captions", "sentence", "text", "description", "question", "narration", "summary"}
_TABLE_SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", " ": "space"}
_CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:\.\d*)?)")


@dataclass(frozen=True)
class Header:
    """Header of a csv file: separator, column names as written, index of the column of each kind, format's name.

    The kinds are "path" or "id", "label", "split", "start" and "end".
    """

    separator: str
    names: list[str]
    places: dict[str, int]
    format: str


def find_header(text: str, columns: dict[str, str | None]) -> Header | None:
    """Parse the header of `text`; return None if its first line is not a header.

    Args:
        columns: {"path" | "label" | "split": requested column name, or None for the usual names}.
    """
    line = next(line for line in text.split("\n") if line.strip())
    wanted = {kind: name for kind, name in columns.items() if name}
    separator = max(
        _TABLE_SEPARATORS,
        key=lambda s: (sum(n in _cells(line, s) for n in wanted.values()), len(known_columns(_cells(line, s)))),
    )
    names = _cells(line, separator)
    for name in wanted.values():
        if name not in names:
            raise AnnotationFormatError(f"there is no column {name!r} in the header ({', '.join(names)})", 1, line)
    places = known_columns(names) | {kind: names.index(name) for kind, name in wanted.items()}
    if not wanted and (not {"path", "id"} & set(places) or any(is_media(n) or is_whole(n) for n in names)):
        return None
    check_times(names, places)
    kinetics = {"youtube_id", "time_start", "time_end"} <= {name.lower() for name in names}
    if "path" in places and "id" in places:
        del places["path" if kinetics and "path" not in wanted else "id"]
    if not {"path", "id"} & set(places):
        raise AnnotationFormatError("no column of paths or ids is known by its name: give path_column", 1, line)
    others = {name.lower() for place, name in enumerate(names) if place not in places.values() and name}
    if "label" not in places and others and not kinetics:
        if others & _TEXT:
            raise AnnotationFormatError(
                "looks like captions; for a column that holds classes give label_column", 1, line
            )
        if others == {"name"}:
            raise AnnotationFormatError("looks like a class list, not annotations of videos", 1, line)
        raise AnnotationFormatError("no column of labels is known by its name: give label_column", 1, line)
    return Header(separator, names, places, "kinetics csv" if kinetics else "csv with a header")


def check_times(names: Sequence[str], places: dict[str, int]) -> None:
    """Raise AnnotationFormatError for columns of times that don't give segments."""
    if len({"start", "end"} & set(places)) == 1:
        raise AnnotationFormatError(f"segments need a start and an end, there are {', '.join(names)}")
    if "start" not in places and (frames := _FRAME_NUMBERS & {name.lower() for name in names}):
        raise AnnotationFormatError(f"{', '.join(sorted(frames))}: segments are given in seconds, as start and end")


def read_table(text: str, header: Header) -> tuple[dict[str, list], str]:
    """Read the rows below a header into (columns, name of the format)."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=header.separator, skipinitialspace=True)
    rows = ([cell.strip() for cell in row] for row in reader if any(cell.strip() for cell in row))
    next(rows)  # the header
    columns: dict[str, list] = {kind: [] for kind in header.places}
    for row in rows:
        add_row(columns, row, header, reader.line_num)
    if {"path", "start"} <= set(columns) and not any(map(is_media, columns["path"])):
        raise AnnotationFormatError("looks like a list of frame-folders with the frames to take")
    key = "path" if "path" in columns else "id"
    if not columns[key]:
        raise AnnotationFormatError("a header without rows")
    columns.setdefault("label", [None] * len(columns[key]))
    if key == "id" and is_class_list(columns["id"], columns["label"]):
        raise AnnotationFormatError("looks like a class list, not annotations of videos")
    unlabeled = "" if any(columns["label"]) else " without labels"
    return columns, f"{header.format} separated by {_TABLE_SEPARATORS[header.separator]}{unlabeled}"


def add_row(columns: dict[str, list], row: list[str], header: Header, number: int) -> None:
    """Append the cells of a row to the columns; raise `AnnotationFormatError` with its number if they don't fit."""

    def error(why: str) -> AnnotationFormatError:
        return AnnotationFormatError(why, number, header.separator.join(row))

    if len(row) != len(header.names):
        raise error(f"{len(row)} fields under a header of {len(header.names)}")
    for kind, place in header.places.items():
        cell: str | float | None = row[place]
        if kind in ("path", "id") and not cell:
            raise error(f"no {header.names[place]}")
        if kind == "label" and is_several(row[place]):
            raise error("looks like multi-label rows")
        if kind in ("start", "end"):
            try:
                cell = parse_time(row[place])
            except ValueError:
                raise error(f"{header.names[place]} is not a number of seconds from 0 on") from None
        columns[kind].append(cell)
    if "start" in columns:
        start, end = columns["start"][-1], columns["end"][-1]
        if (start is None) != (end is None) or (start is not None and start >= end):
            raise error("a segment has a start and a later end, in seconds; a whole video has neither")


def parse_time(text: str) -> float | None:
    """Parse "62.5" or "00:01:02.5" as seconds; None if the text is empty.

    Raises:
        ValueError: the text is not a time, or negative, infinite or NaN.
    """
    if not text:
        return None
    if ":" in text and (clock := _CLOCK.fullmatch(text)):
        hours, minutes, seconds = clock.groups()
        return 3600 * int(hours or 0) + 60 * int(minutes) + float(seconds)
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{text} is not a time in a video")
    return seconds


def _cells(line: str, separator: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]


def known_columns(names: list[str]) -> dict[str, int]:
    """Return {kind: index} of the columns whose names are known."""
    lower = [name.lower() for name in names]
    places = {kind: next((lower.index(n) for n in known if n in lower), None) for kind, known in _NAMES.items()}
    return {kind: place for kind, place in places.items() if place is not None}
