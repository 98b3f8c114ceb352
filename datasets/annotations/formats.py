"""Annotation lists: lines of a path and a label, without a header.

Annotations in JSON: those of Something-Something-v2, and tables as lists of objects.
"""

import csv
import re
from pathlib import Path

from vidtok.datasets.annotations.table import (
    AnnotationFormatError,
    Header,
    add_row,
    check_times,
    is_class_list,
    is_media,
    is_several,
    is_whole,
    known_columns,
)
from vidtok.names import MEDIA_SUFFIXES


def read_json(document: list | dict, wanted: dict[str, str | None]) -> tuple[dict[str, list], str]:
    """Read [{id, template, ...}], [{id}] or a table in json into (columns, name of the format).

    Args:
        wanted: {"path" | "label" | "split": requested key, or None for the usual names}.
    """
    if isinstance(document, dict) or not document or not all(isinstance(entry, dict) for entry in document):
        raise AnnotationFormatError(_looks_like(document))
    if (table := _read_records(document, wanted)) is not None:
        return table
    ids_only = all(set(entry) == {"id"} for entry in document)
    for number, entry in enumerate(document):
        if (not ids_only and not isinstance(entry.get("template"), str)) or not _is_id(entry.get("id")):
            keys = ", ".join(map(str, entry))
            raise AnnotationFormatError(
                f"entry {number} has {keys or 'nothing'}, not id and template: {_looks_like(document)}"
            )
    labels = [None] * len(document) if ids_only else [without_brackets(entry["template"]) for entry in document]
    name = "something-something-v2 json" + (" without labels" if ids_only else "")
    return {"id": [str(entry["id"]) for entry in document], "label": labels}, name


def _read_records(document: list[dict], wanted: dict[str, str | None]) -> tuple[dict[str, list], str] | None:
    """Read [{path (or id with times), label, start, end, split}], keys as the columns of a csv.

    "segment": [start, end] stands for the two times. Return None for other kinds of entries.
    """
    rows = [entry | _times(entry.get("segment")) for entry in document]
    names = list(dict.fromkeys(str(key) for row in rows for key in row))
    for name in wanted.values():
        if name and name not in names:
            raise AnnotationFormatError(f"there is no key {name!r} ({', '.join(names)})")
    places = known_columns(names) | {kind: names.index(name) for kind, name in wanted.items() if name}
    cells = [["" if row.get(name) is None else row.get(name) for name in names] for row in rows]
    plain = all(isinstance(row[place], str | int | float) for row in cells for place in places.values())
    named = "path" in places or {"id", "start"} <= set(places)  # without times, [{id, label}] lacks its templates
    has_labels = "label" in places or ("path" in places and len(places) == len(names))
    if ("template" in names and not any(wanted.values())) or not has_labels or not named or not plain:
        return None
    check_times(names, places)
    if "path" in places:
        places.pop("id", None)
    header = Header(" ", names, places, "json table")
    columns: dict[str, list] = {kind: [] for kind in places}
    for number, row in enumerate(cells, 1):
        add_row(columns, [str(cell).strip() for cell in row], header, number)
    columns.setdefault("label", [None] * len(cells))
    return columns, header.format + ("" if any(columns["label"]) else " without labels")


def _times(segment: object) -> dict:
    if not isinstance(segment, list) or len(segment) != 2:
        return {}
    return {"start": segment[0], "end": segment[1]}


def without_brackets(template: str) -> str:
    """Remove the brackets of a template, which gives the class name of the official labels file.

    "Holding [something] next to [something]" becomes "Holding something next to something".
    """
    return template.replace("[", "").replace("]", "")


def _is_id(value: object) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool) and value != ""


def _looks_like(document: list | dict) -> str:
    """Describe which common kind of json a document appears to be."""
    if isinstance(document, dict):
        if "database" in document or _any_key(document.values(), {"segment", "annotations", "segments", "timestamps"}):
            return "looks like temporal localization (such as ActivityNet), or Kinetics json; Kinetics' csv can be read"
        if {"images", "annotations"} <= set(document) or {"videos", "annotations"} <= set(document):
            return "looks like COCO annotations (boxes, captions)"
        if document and all(isinstance(value, int | str) for value in document.values()):
            return "looks like a class list, not annotations of videos"
        return f"an object with keys {', '.join(list(document)[:5])}: not a known kind of annotations"
    if _any_key(document, {"caption", "captions", "sentence", "sentences", "conversations", "text", "question"}):
        return "looks like captions or conversations"
    if _any_key(document, {"segment", "start_frame", "start", "timestamps", "bbox", "boxes"}):
        return "looks like temporal or spatial localization"
    if any(isinstance(entry, dict) and isinstance(entry.get("label"), list | dict) for entry in document):
        return "looks like multi-label annotations"
    if document and all(isinstance(value, str) for value in document):
        return "looks like a class list, not annotations of videos"
    return "not a known kind of annotations" if document else "an empty list"


def _any_key(entries, keys: set[str]) -> bool:
    return any(isinstance(entry, dict) and keys & set(entry) for entry in entries)


_LIST_SEPARATORS = {
    "\t": "tab",
    "::": "::",
    ";": "semicolon",
    ",": "comma",
    " ": "space",
}  # in order of preference if several fit equally well
_SUFFIX_INSIDE = re.compile(rf"({'|'.join(map(re.escape, MEDIA_SUFFIXES))})(\s|$)", re.IGNORECASE)
_NUMBER_FIRST = re.compile(r"\d+[ ,;\t]")


def read_list(path: Path, text: str) -> tuple[dict[str, list], str]:
    """Read `path label` lines into (columns "path" and "label", name of the format)."""
    if re.search(r"_test_split\d\.txt$", path.name):
        raise AnnotationFormatError(
            "looks like a split of HMDB51: its numbers say train or test, the class is in the file's name"
        )
    if text.startswith(("<", "version https://git-lfs")):
        raise AnnotationFormatError("a web page or a Git LFS pointer, not the file that was meant")
    if re.match(r"#\s*\d+\n", text):
        raise AnnotationFormatError("looks like a list of proposals (temporal localization)")
    numbered = [(number, line.strip(" ")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    lines = [line for _, line in numbered]
    # A thousand lines determine the separator; trying all separators on all of Kinetics takes seconds.
    best = max(_LIST_SEPARATORS, key=lambda s: sum(isinstance(_fit(line, s), tuple) for line in lines[:1000]))
    fits = [_fit(line, best) for line in lines]
    rows = [fit for fit in fits if isinstance(fit, tuple)]
    if not rows and _are_names(lines):
        return {"path": lines, "label": [None] * len(lines)}, "list of paths without labels"
    if 2 * len(rows) < len(lines):
        raise _format_error(lines)
    paths, labels = zip(*rows, strict=True)
    if is_class_list(paths, labels):
        raise AnnotationFormatError("looks like a class list, not annotations of videos")
    if len(rows) == len(lines) > 2 and not is_whole(labels[0]) and all(map(is_whole, labels[1:])):
        raise AnnotationFormatError("looks like a header: give path_column and label_column", *numbered[0])
    for (number, line), fit in zip(numbered, fits, strict=True):
        if isinstance(fit, str):
            header = "" if line != lines[0] else "; if it is a header, give path_column and label_column"
            raise AnnotationFormatError(f"{fit}, and other lines are 'path{best}label'{header}", number, line)
    return {"path": list(paths), "label": list(labels)}, f"list separated by {_LIST_SEPARATORS[best]}"


def _fit(line: str, separator: str) -> tuple[str, str] | str:
    """Split a line into (path, label); return the reason as a str if it does not fit.

    A path may contain the separator: the media suffix marks the end of the path.
    """
    if separator == "::" or ('"' not in line and separator * 2 not in line):  # as csv splits it, but faster
        cells = line.split(separator)
    else:
        cells = next(csv.reader([line], delimiter=separator, skipinitialspace=True))
    *front, label = [cell.strip() for cell in cells]
    if not front:
        return "one column"
    if len(front) > 1:
        if not is_media(front[-1]) or any(map(is_media, front[:-1])):
            several = is_media(front[0]) and all(map(is_whole, [*front[1:], label]))
            return "looks like multi-label rows" if several else f"{len(cells)} columns"
        front = [line.rpartition(separator)[0].rstrip()]
    name = front[0]
    if not name:
        return "no path"
    if _SUFFIX_INSIDE.search(label):
        return "a path where the label should be"
    if is_several(label):
        return "looks like multi-label rows"
    if label[:1] == "0" and label != "0" and is_whole(label) and not is_media(name):
        return "a number with leading zeros is no class"  # a time, as in AVA
    # Without this check, any text with two words per line would fit.
    if label and not is_whole(label) and not is_media(name) and not re.search(r"[\d/]", name):
        return "neither path nor label looks like one"
    return name, label


def _are_names(lines: list[str]) -> bool:
    """Return whether the lines of one column are paths, or distinct bare numbers without leading zeros."""
    if all(map(is_media, lines)):
        return not all(map(_NUMBER_FIRST.match, lines))
    plain = all(str(int(line)) == line if is_whole(line) else is_media(line) for line in lines)
    return plain and len(set(lines)) == len(lines)


def _format_error(lines: list[str]) -> AnnotationFormatError:
    """Diagnose a file in which most lines are not `path label`."""
    for separator in (r"\s+", r"[\s,;]+"):
        rows = [re.split(separator, line.replace('"', "")) for line in lines]
        if all(len(row) > 1 for row in rows):
            break
    widths = {len(row) for row in rows}
    if all(len(row) > 2 and all(map(is_whole, row[1:])) for row in rows):
        if is_media(rows[0][0]) or not widths <= {3, 4}:
            return AnnotationFormatError("looks like multi-label rows", 1, lines[0])
        what = "folder, frames, label" if widths == {3} else "folder, first frame, frames, label"
        return AnnotationFormatError(
            f"looks like a frame-folder list ({what}); only video and image files are read", 1, lines[0]
        )
    if all(len(row) > 1 and is_media(row[-1]) for row in rows):
        return AnnotationFormatError("label before path; the path comes first", 1, lines[0])
    if all(is_media(row[0]) and is_several(row[-1]) for row in rows):
        return AnnotationFormatError("looks like multi-label rows", 1, lines[0])
    if all(is_media(row[0]) and len(row) > 2 for row in rows):
        return AnnotationFormatError("looks like captions, or a table without a header", 1, lines[0])
    if widths == {8} or widths == {7}:
        return AnnotationFormatError("looks like boxes in time (such as AVA)", 1, lines[0])
    if widths == {2} and all(row[1].startswith("0") for row in rows):
        return AnnotationFormatError(
            "numbers with leading zeros are no classes; looks like times (such as AVA)", 1, lines[0]
        )
    if not any(re.search(r"[\t;/\\.]", line) for line in lines):
        return AnnotationFormatError("looks like a class list, not annotations of videos", 1, lines[0])
    return AnnotationFormatError("not a known kind of annotations", 1, lines[0])
