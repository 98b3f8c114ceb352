"""Annotations as csv with a header: Kinetics' own, and anyone's with columns that have a name."""

import csv
import io
import re
from dataclasses import dataclass
from functools import partial

from .annotation_misfit import Misfit, is_class_list, is_media, is_several, is_whole

# In order of preference, compared in lower case.
_NAMES = {
    "path": ("path", "video_path", "file_path", "filepath", "clip_path", "relative_path", "filename", "file_name",
             "file", "video_file", "video", "video_name", "clip_name", "clip"),
    "id": ("youtube_id", "id", "video_id", "vid", "clip_id"),
    "label": ("label", "class", "class_name", "label_name", "category", "action", "tag", "target", "labels",
              "class_label", "action_label", "label_id", "class_id", "label_idx", "class_idx"),
    "split": ("split", "subset", "partition"),
    "start": ("time_start", "start", "start_time"),
    "end": ("time_end", "end", "end_time"),
}  # fmt: skip
_TEXT = {"caption", "captions", "sentence", "text", "description", "question", "narration", "summary"}
_SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", " ": "space"}
_SECONDS = re.compile(r"\d+(\.\d*)?")


@dataclass(frozen=True)
class Header:
    """separator: a key of _SEPARATORS. names: the columns as written. places: path or id, label, ... -> column.
    format: its name."""

    separator: str
    names: list[str]
    places: dict[str, int]
    format: str


def find_header(text: str, columns: dict[str, str | None]) -> Header | None:
    """The header of `text`, or None where its first line is no header.

    columns: path, label, split -> the name that was asked for, or None. Raises `Misfit` where that isn't there, or the
    header has no column of labels.
    """
    line = next(line for line in text.split("\n") if line.strip())
    wanted = {kind: name for kind, name in columns.items() if name}
    separator = max(
        _SEPARATORS, key=lambda s: (sum(n in _cells(line, s) for n in wanted.values()), len(_known(_cells(line, s))))
    )
    names = _cells(line, separator)
    for name in wanted.values():
        if name not in names:
            raise Misfit(f"there is no column {name!r} in the header", 1, line)
    places = _known(names) | {kind: names.index(name) for kind, name in wanted.items()}
    if not wanted and (not {"path", "id"} & set(places) or any(is_media(n) or is_whole(n) for n in names)):
        return None
    kinetics = {"youtube_id", "time_start", "time_end"} <= {name.lower() for name in names}
    if "path" in places and "id" in places:
        del places["path" if kinetics and "path" not in wanted else "id"]
    if not {"path", "id"} & set(places):
        raise Misfit("no column of paths or ids is known by its name: give path_column", 1, line)
    others = {name.lower() for place, name in enumerate(names) if place not in places.values() and name}
    if "label" not in places and others and not kinetics:
        if others & _TEXT:
            raise Misfit("looks like captions; for a column that holds classes give label_column", 1, line)
        if others == {"name"}:
            raise Misfit("looks like a class list, not like annotations of videos", 1, line)
        raise Misfit("no column of labels is known by its name: give label_column", 1, line)
    return Header(separator, names, places, "kinetics csv" if kinetics else "csv with a header")


def read_table(text: str, header: Header) -> tuple[dict[str, list], str]:
    """The columns that are known, and the name of the format. Raises `Misfit` for a row that doesn't fit."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=header.separator, skipinitialspace=True)
    rows = ([cell.strip() for cell in row] for row in reader if any(cell.strip() for cell in row))
    next(rows)  # the header
    columns: dict[str, list] = {kind: [] for kind in header.places}
    for row in rows:
        misfit = partial(Misfit, number=reader.line_num, line=header.separator.join(row))
        if len(row) != len(header.names):
            raise misfit(f"{len(row)} fields under a header of {len(header.names)}")
        for kind, place in header.places.items():
            cell = row[place]
            if kind in ("path", "id") and not cell:
                raise misfit(f"no {header.names[place]}")
            if kind == "label" and is_several(cell):
                raise misfit("looks like multi-label rows")
            if kind in ("start", "end") and not _SECONDS.fullmatch(cell):
                raise misfit(f"{header.names[place]} is not a number of seconds")
            columns[kind].append(float(cell) if kind in ("start", "end") else cell)
    if {"path", "start"} <= set(columns) and not any(map(is_media, columns["path"])):
        raise Misfit("looks like a list of frame-folders with the frames to take")
    key = "path" if "path" in columns else "id"
    if not columns[key]:
        raise Misfit("a header without rows")
    columns.setdefault("label", [None] * len(columns[key]))
    if key == "id" and is_class_list(columns["id"], columns["label"]):
        raise Misfit("looks like a class list, not like annotations of videos")
    unlabelled = "" if any(columns["label"]) else " without labels"
    return columns, f"{header.format} separated by {_SEPARATORS[header.separator]}{unlabelled}"


def _cells(line: str, separator: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]


def _known(names: list[str]) -> dict[str, int]:
    lower = [name.lower() for name in names]
    found = {kind: next((lower.index(n) for n in known if n in lower), None) for kind, known in _NAMES.items()}
    return {kind: place for kind, place in found.items() if place is not None}
