"""Read annotation files of several formats into one kind of table.

`read_annotations` detects the format from the content: csv with a header (Kinetics' own, or any with named columns),
lists of `path label` lines without a header (in the dialects of common training codes), and Something-Something-v2
json. Files of other kinds (captions, boxes, class lists, frame folders) raise an error that names the kind.
"""

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from vidtok.datasets.container import MEDIA_SUFFIXES

UNDERSTOOD = (
    "Formats understood: Kinetics csv (label,youtube_id,time_start,time_end,split); Something-Something-v2 json "
    "([{id, template}] or [{id}]); csv with a header (path, label, split); list of 'path label' or 'path,label' lines"
)


class AnnotationFormatError(Exception):
    """The reason why a file, or the line `line` with the 1-based `number`, fits none of the formats.

    `str()` is written to follow the name of the file.
    """

    def __init__(self, why: str, number: int | None = None, line: str | None = None):
        shown = "" if line is None else f": {line if len(line) <= 200 else line[:200] + '...'!r}"
        super().__init__(f"{'' if number is None else f', line {number}'}{shown}: {why}")


def is_whole(word: str) -> bool:
    return re.fullmatch(r"-?\d+", word) is not None


def is_media(word: str) -> bool:
    return word.lower().endswith(MEDIA_SUFFIXES)


def is_several(label: str) -> bool:
    """Return whether a label holds several classes: [1, 2] or 1,2 or a;b or a|b."""
    parts = label.split(",")
    numbers = len(parts) > 1 and all(part.strip().isdigit() for part in parts)
    return numbers or (label.startswith("[") and label.endswith("]")) or ";" in label or "|" in label


def is_class_list(names: Sequence[str], labels: Sequence[str | None]) -> bool:
    """Return whether one column holds 0..n-1 or 1..n, and the other n distinct words, most of them without digits."""
    for numbers, words in (([name.rstrip(":.)") for name in names], labels), (labels, names)):
        if not all(numbers) or not all(words) or not all(map(is_whole, numbers)) or len(set(words)) < len(words):
            continue
        if any(is_whole(word) or is_media(word) or "/" in word for word in words):
            continue
        first = min(map(int, numbers), default=-1)
        counts = first in (0, 1) and set(map(int, numbers)) == set(range(first, first + len(numbers)))
        if counts and 2 * sum(re.search(r"\d", word) is None for word in words) > len(words):
            return True
    return False


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


_LIST_SEPARATORS = {
    "\t": "tab",
    "::": "::",
    ";": "semicolon",
    ",": "comma",
    " ": "space",
}  # in order of preference where several fit equally well
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
    if separator == "::":
        cells = line.split("::")
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


def read_json(document: list | dict) -> tuple[dict[str, list], str]:
    """Read [{id, template, ...}] or [{id}] into (columns "id" and "label", name of the format)."""
    if isinstance(document, dict) or not document or not all(isinstance(entry, dict) for entry in document):
        raise AnnotationFormatError(_looks_like(document))
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


def read_annotations(
    path: str | Path,
    path_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
) -> pd.DataFrame:
    """Read an annotation file; detect its format from its content.

    Supported formats:
      Kinetics csv       header with youtube_id, time_start, time_end and, except in test files, label
      SSv2 json          a list of {id, template, ...}, or of {id} in test files; brackets in templates are removed
      csv with a header  separated by comma, tab, semicolon or space; columns are found by their usual names, or named
      list               path and label, separated by space, comma, tab, semicolon or ::, no header; or paths alone

    Args:
        path: the file, text in UTF-8.
        path_column, label_column, split_column: column names in the header; None, the usual names.

    Returns:
        One row per video in the order of the file. Columns: `path` (str, as written) or `id` (str); `label`, int64 if
        all labels are whole numbers, else str, None in test files; and, if present, `start` and `end` (seconds) and
        `split` ("validate", "validation" and "dev" become "val", "training" becomes "train", "testing" becomes "test";
        other names are kept). `.attrs["format"]` is the name of the detected format. `.attrs["dropped"]` is the number
        of rows dropped because they have no label in a file that has labels.

    Raises:
        ValueError: the file is of an unsupported kind (frame-folder list, multi-label rows, class list, captions,
            localization); the message names the kind. Or one line does not fit; the message names the line.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: not a text file in UTF-8 ({e.reason} at byte {e.start}). {UNDERSTOOD}") from e
    if "\0" in text:
        raise ValueError(f"{path}: not a text file (byte 0 in it). {UNDERSTOOD}")
    if not text.strip():
        raise ValueError(f"{path}: the file is empty")
    try:
        rows, name = _read(path, text, {"path": path_column, "label": label_column, "split": split_column})
    except AnnotationFormatError as e:
        raise ValueError(f"{path}{e}. {UNDERSTOOD}") from e
    except csv.Error as e:
        raise ValueError(f"{path}: not a list or a table ({e}). {UNDERSTOOD}") from e
    return _tidy(path, pd.DataFrame(rows), name)


def _read(path: Path, text: str, columns: dict[str, str | None]) -> tuple[dict[str, list], str]:
    """Read the columns as strings (label: None if absent), and the name of the format."""
    if (document := _json(path, text)) is not None:
        return read_json(document)
    if (header := find_header(text, columns)) is not None:
        return read_table(text, header)
    return read_list(path, text)


def _json(path: Path, text: str) -> list | dict | None:
    """Parse json; return None for a list whose first name starts with a bracket."""
    if path.suffix.lower() != ".json" and text.lstrip()[0] not in "[{":
        return None
    try:
        document = json.loads(text)
    except json.JSONDecodeError as e:
        if path.suffix.lower() == ".json" or text.lstrip()[0] == "{":
            raise AnnotationFormatError(f"not JSON that can be read ({e.msg}); JSON lines, perhaps", e.lineno) from e
        return None
    return document if isinstance(document, list | dict) else None


_SPLITS = {"validate": "val", "validation": "val", "dev": "val", "training": "train", "testing": "test"}


def _tidy(path: Path, table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Convert the columns to their types, drop rows without a label, and check the file as a whole."""
    dropped, labeled = 0, table["label"].notna() & (table["label"] != "")
    if labeled.any():
        dropped = int((~labeled).sum())
        table = table[labeled].reset_index(drop=True)
        if table["label"].str.fullmatch(r"-?\d{1,9}").all():
            table["label"] = table["label"].astype("int64")
        elif table["label"].str.fullmatch(r"-?\d*\.\d+([eE][-+]?\d+)?").all():
            raise ValueError(f"{path}: labels such as {table['label'].iloc[0]} are scores, not classes. {UNDERSTOOD}")
    else:
        table["label"] = None
    for time in {"start", "end"} & set(table):
        if (table[time] % 1 == 0).all():
            table[time] = table[time].astype("int64")
    if "split" in table:
        table["split"] = [_SPLITS.get(split.lower(), split) for split in table["split"]]
    _check_one_label(path, table)
    order = [c for c in ("path", "id", "label", "start", "end", "split") if c in table]
    table = table[order]
    table.attrs.update(format=name, dropped=dropped)
    return table


def _check_one_label(path: Path, table: pd.DataFrame) -> None:
    """Raise ValueError if a clip occurs twice in one split with different labels (a multi-label file)."""
    clip = [c for c in ("path", "id", "start", "end", "split") if c in table]
    once = table.drop_duplicates([*clip, "label"])
    twice = once[once.duplicated(clip, keep=False)]
    if len(twice):
        what = twice.iloc[0, 0]
        labels = twice.loc[twice.iloc[:, 0] == what, "label"].tolist()
        raise ValueError(f"{path}: {what} has the labels {labels}: multi-label rows are not supported. {UNDERSTOOD}")
