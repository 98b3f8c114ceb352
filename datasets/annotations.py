"""Annotation files, of whatever format, as one kind of table. They come from outside: data, never code."""

import csv
import json
from pathlib import Path

import pandas as pd

from .annotation_json import read_json
from .annotation_list import read_list
from .annotation_misfit import UNDERSTOOD, Misfit
from .annotation_table import find_header, read_table


def read_annotations(
    path: str | Path,
    path_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
) -> pd.DataFrame:
    """Read an annotation file; its format is told by its content.

    Understood:
      Kinetics csv       header with youtube_id, time_start, time_end and, except in test files, label
      SSv2 json          a list of {id, template, ...}, or of {id} in test files; brackets in templates are removed
      csv with a header  separated by comma, tab, semicolon or space; columns are found by their usual names, or named
      list               path and label, separated by space, comma, tab, semicolon or ::, no header; or paths alone

    path_column, label_column, split_column: names in the header, where the usual ones are not meant.

    Returns one row per video in the order of the file: `path` (str, as written) or `id` (str); `label`: int64 where all
    are whole numbers, else str, None in test files; and where given `start`, `end` (seconds) and `split` (validate,
    validation and dev are called val, training train, testing test; other names stay). `.attrs["format"]` says what was
    recognised, `.attrs["dropped"]` how many rows without a label were left out of a file that has labels.

    Raises ValueError, with the file's name and what it looks like, for what is none of these (frame-folder lists,
    multi-label rows, class lists, captions, localisation), and with line number and line where one line doesn't fit.
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
    except Misfit as e:
        raise ValueError(f"{path}{e}. {UNDERSTOOD}") from e
    except csv.Error as e:
        raise ValueError(f"{path}: not a list or a table ({e}). {UNDERSTOOD}") from e
    return _tidy(path, pd.DataFrame(rows), name)


def _read(path: Path, text: str, columns: dict[str, str | None]) -> tuple[dict[str, list], str]:
    """Columns of strings (label: None where there is none), and the name of the format."""
    if (document := _json(path, text)) is not None:
        return read_json(document)
    if (header := find_header(text, columns)) is not None:
        return read_table(text, header)
    return read_list(path, text)


def _json(path: Path, text: str) -> list | dict | None:
    """The document, or None for a list whose first name has brackets."""
    if path.suffix.lower() != ".json" and text.lstrip()[0] not in "[{":
        return None
    try:
        document = json.loads(text)
    except json.JSONDecodeError as e:
        if path.suffix.lower() == ".json" or text.lstrip()[0] == "{":
            raise Misfit(f"not JSON that can be read ({e.msg}); JSON lines, perhaps", e.lineno) from e
        return None
    return document if isinstance(document, list | dict) else None


_SPLITS = {"validate": "val", "validation": "val", "dev": "val", "training": "train", "testing": "test"}


def _tidy(path: Path, table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The right types, rows without a label dropped, and the checks that need the whole file."""
    dropped, labelled = 0, table["label"].notna() & (table["label"] != "")
    if labelled.any():
        dropped = int((~labelled).sum())
        table = table[labelled].reset_index(drop=True)
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
    """The same clip twice in one split with different labels is a list of several labels per video."""
    clip = [c for c in ("path", "id", "start", "end", "split") if c in table]
    once = table.drop_duplicates([*clip, "label"])
    twice = once[once.duplicated(clip, keep=False)]
    if len(twice):
        what = twice.iloc[0, 0]
        labels = twice.loc[twice.iloc[:, 0] == what, "label"].tolist()
        raise ValueError(f"{path}: {what} has the labels {labels}: multi-label rows are not supported. {UNDERSTOOD}")
