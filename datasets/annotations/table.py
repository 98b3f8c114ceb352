"""Annotation tables: csv files with a header."""

import csv
import io
import re
from dataclasses import dataclass
from functools import partial

from vidtok.datasets.annotations.words import AnnotationFormatError, is_class_list, is_media, is_several, is_whole

# Column names in order of preference, compared in lower case.
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
_TABLE_SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", " ": "space"}
_SECONDS = re.compile(r"\d+(\.\d*)?")


@dataclass(frozen=True)
class Header:
    """The header of a csv file: separator, column names as written, index of the column of each kind, format's name.

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
        key=lambda s: (sum(n in _cells(line, s) for n in wanted.values()), len(_known(_cells(line, s)))),
    )
    names = _cells(line, separator)
    for name in wanted.values():
        if name not in names:
            raise AnnotationFormatError(f"there is no column {name!r} in the header ({', '.join(names)})", 1, line)
    places = _known(names) | {kind: names.index(name) for kind, name in wanted.items()}
    if not wanted and (not {"path", "id"} & set(places) or any(is_media(n) or is_whole(n) for n in names)):
        return None
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


def read_table(text: str, header: Header) -> tuple[dict[str, list], str]:
    """Read the rows below a header into (columns, name of the format)."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=header.separator, skipinitialspace=True)
    rows = ([cell.strip() for cell in row] for row in reader if any(cell.strip() for cell in row))
    next(rows)  # the header
    columns: dict[str, list] = {kind: [] for kind in header.places}
    for row in rows:
        error = partial(AnnotationFormatError, number=reader.line_num, line=header.separator.join(row))
        if len(row) != len(header.names):
            raise error(f"{len(row)} fields under a header of {len(header.names)}")
        for kind, place in header.places.items():
            cell = row[place]
            if kind in ("path", "id") and not cell:
                raise error(f"no {header.names[place]}")
            if kind == "label" and is_several(cell):
                raise error("looks like multi-label rows")
            if kind in ("start", "end") and not _SECONDS.fullmatch(cell):
                raise error(f"{header.names[place]} is not a number of seconds")
            columns[kind].append(float(cell) if kind in ("start", "end") else cell)
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


def _cells(line: str, separator: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]


def _known(names: list[str]) -> dict[str, int]:
    lower = [name.lower() for name in names]
    places = {kind: next((lower.index(n) for n in known if n in lower), None) for kind, known in _NAMES.items()}
    return {kind: place for kind, place in places.items() if place is not None}
