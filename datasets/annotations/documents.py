"""Annotations in JSON: those of Something-Something-v2, and tables as lists of objects."""

from functools import partial

from vidtok.datasets.annotations.table import Header, add_row, check_times, known_columns
from vidtok.datasets.annotations.words import AnnotationFormatError


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
        add_row(columns, [str(cell).strip() for cell in row], header, partial(AnnotationFormatError, number=number))
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
