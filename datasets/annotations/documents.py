"""Annotations in JSON: those of Something-Something-v2."""

from vidtok.datasets.annotations.words import AnnotationFormatError


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
