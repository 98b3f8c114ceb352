"""Read annotation files of several formats into one kind of table.

`read_annotations` detects the format from the content: csv with a header (Kinetics' own, or any with named columns),
lists of `path label` lines without a header (in the dialects of common training codes), and Something-Something-v2
json. Files of other kinds (captions, boxes, class lists, frame folders) raise an error that names the kind.

The reader of a format returns ({"path" or "id", "label", "split", "start", "end": list}, name of the format), with a
label of None if the file has none, or raises `AnnotationFormatError`.
"""

import csv
import json
from pathlib import Path

import pandas as pd

from vidtok.datasets.annotations.formats import read_json, read_list
from vidtok.datasets.annotations.table import AnnotationFormatError, find_header, read_table, tidy_split
from vidtok.inputs import open_binary
from vidtok.names import escape_bytes
from vidtok.remote import as_text, without_query

JSON_LINES = (".jsonl", ".ndjson")
SUFFIXES = (".csv", ".tsv", ".json", ".txt", *JSON_LINES)  # of annotation files, as opposed to videos

EXPECTED = "give a folder of videos or an annotation file"
UNDERSTOOD = (
    "Formats understood: Kinetics csv (label,youtube_id,time_start,time_end,split); Something-Something-v2 json "
    "([{id, template}] or [{id}]); csv with a header (path, label, split, start, end), or json or JSON lines with "
    "these keys; list of 'path label' or 'path,label' lines"
)


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
      json table         a list of objects with the same names as keys; or JSON lines, an object per line, as in the
                         metadata.jsonl of Hugging Face
      list               path and label, separated by space, comma, tab, semicolon or ::, no header; or paths alone

    Args:
        path: the file, on this machine, at an address or in an archive; text in UTF-8. Names of videos may hold other
            bytes, which `vidtok.names.escape_bytes` escapes.
        path_column, label_column, split_column: column names in the header, or keys; None, the usual names.

    Returns:
        One row per video in the order of the file. Columns: `path` (str, as written) or `id` (str); `label`, int64 if
        all labels are whole numbers (3 or 3.0), else str, None in test files; and, if present, `start` and `end` of a
        segment (seconds; NaN for a whole video) and `split` ("train", "val", "test" for their usual names in any case;
        other names are kept). `.attrs["format"]` is the name of the detected format. `.attrs["dropped"]` is the number
        of rows dropped because they have no label in a file that has labels.

    Raises:
        ValueError: the file is of an unsupported kind (frame-folder list, multi-label rows, class list, captions,
            localization), which the message names; or a line does not fit, which the message names.
    """
    source, not_utf8 = as_text(path), None
    with open_binary(path) as file:
        data = file.read()
    try:
        data.decode()
    except UnicodeDecodeError as e:
        not_utf8 = f"{source}: not a text file in UTF-8 ({e.reason} at byte {e.start}): {EXPECTED}. {UNDERSTOOD}"
    text = escape_bytes(data).replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        raise ValueError(f"{source}: not a text file (byte 0 in it): {EXPECTED}. {UNDERSTOOD}")
    if not text.strip():
        raise ValueError(f"{source}: the file is empty")
    try:
        columns = {"path": path_column, "label": label_column, "split": split_column}
        rows, name = _read(Path(without_query(path)), text, columns)
    except AnnotationFormatError as e:
        raise ValueError(not_utf8 or f"{source}{e}. {UNDERSTOOD}") from e
    except csv.Error as e:
        raise ValueError(not_utf8 or f"{source}: not a list or a table ({e}). {UNDERSTOOD}") from e
    if not_utf8 and any("%x" in str(value) for kind in rows if kind != "path" for value in rows[kind]):
        raise ValueError(not_utf8)
    return _tidy(source, pd.DataFrame(rows), name)


def _read(path: Path, text: str, columns: dict[str, str | None]) -> tuple[dict[str, list], str]:
    """Parse the columns as strings (label: None if absent); return them with the name of the format."""
    if (document := _json(path, text)) is not None:
        return read_json(document, columns)
    if (header := find_header(text, columns)) is not None:
        return read_table(text, header)
    return read_list(path, text)


def _json(path: Path, text: str) -> list | dict | None:
    """Parse json or JSON lines; return None for a list whose first name starts with a bracket."""
    suffix = path.suffix.lower()
    if suffix not in (".json", *JSON_LINES) and text.lstrip()[0] not in "[{":
        return None
    try:
        document = json.loads(text)
    except json.JSONDecodeError as e:
        if suffix in JSON_LINES or (e.msg == "Extra data" and text.lstrip()[0] == "{"):
            return _json_lines(text)
        if suffix == ".json" or text.lstrip()[0] == "{":
            raise AnnotationFormatError(f"not JSON that can be read ({e.msg})", e.lineno) from e
        return None
    if suffix in JSON_LINES and isinstance(document, dict):
        return [document]
    return document if isinstance(document, list | dict) else None


def _json_lines(text: str) -> list:
    """Parse one object per line, as in the metadata.jsonl of Hugging Face."""
    entries = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as e:
            raise AnnotationFormatError(f"not JSON that can be read ({e.msg})", number, line) from e
        if not isinstance(entry, dict):
            raise AnnotationFormatError("not an object, and JSON lines are objects", number, line)
        entries.append(entry)
    return entries


def _tidy(source: str, table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Convert the columns to their types, drop rows without a label, and check the file as a whole."""
    dropped, labeled = 0, table["label"].notna() & (table["label"] != "")
    numbers = table["label"].astype(str).str.fullmatch(r"-?\d{1,9}(\.0*)?")
    if numbers.any() and (numbers | ~labeled | table["label"].isin(["nan", "NaN"])).all():  # NaN made them floats
        labeled = numbers
    if labeled.any():
        dropped = int((~labeled).sum())
        table = table[labeled].reset_index(drop=True)
        if numbers[labeled].all():
            table["label"] = table["label"].astype("float64").astype("int64")
        elif table["label"].str.fullmatch(r"-?\d*\.\d+([eE][-+]?\d+)?").all():
            raise ValueError(f"{source}: labels such as {table['label'].iloc[0]} are scores, not classes. {UNDERSTOOD}")
    else:
        table["label"] = None
    for time in {"start", "end"} & set(table):
        if (table[time].astype("float64") % 1 == 0).all():
            table[time] = table[time].astype("int64")
    if "split" in table:
        table["split"] = table["split"].map(tidy_split)
    _check_one_label(source, table)
    order = [c for c in ("path", "id", "label", "start", "end", "split") if c in table]
    table = table[order]
    table.attrs.update(format=name, dropped=dropped)
    return table


def _check_one_label(source: str, table: pd.DataFrame) -> None:
    """Raise ValueError if a clip occurs twice in one split with different labels (a multi-label file)."""
    clip = [c for c in ("path", "id", "start", "end", "split") if c in table]
    once = table.drop_duplicates([*clip, "label"])
    twice = once[once.duplicated(clip, keep=False)]
    if len(twice):
        what = twice.iloc[0, 0]
        labels = twice.loc[twice.iloc[:, 0] == what, "label"].tolist()
        raise ValueError(f"{source}: {what} has the labels {labels}: multi-label rows are not supported. {UNDERSTOOD}")
