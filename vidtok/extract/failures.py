"""failures.csv: which videos have no features, and why. Columns: id, path, split (of the annotations), reason."""

import csv
import os
from collections.abc import Callable
from pathlib import Path

from vidtok.extract.claims import Claims

FILE = "failures.csv"
COLUMNS = ("id", "path", "split", "reason")
LOCK = f"\0{FILE}"  # no video's id


def read_failures(features: Path, split: str | None) -> list[dict[str, str]]:
    """[{name, reason}] of a split (None, all), of the folder or one of its files that `vidtok extract` wrote."""
    file = (features if features.is_dir() else features.parent) / FILE
    if not file.exists():
        return []
    with open(file, newline="") as rows:  # of a run that was killed: several rows of a video, or one cut short
        found = {row["id"]: row for row in csv.DictReader(rows) if row.get("reason") is not None}
    kept = [row for row in found.values() if split is None or row.get("split") == split]
    return [{"name": row["id"], "reason": row["reason"]} for row in kept]


class Failures:
    """Rows are added at once, so that a killed run has them; at the end those that were done after all are left out."""

    def __init__(self, folder: Path, claims: Claims):
        self._path, self._claims = folder / FILE, claims

    def add(self, id: str, path: str, split: str, reason: str) -> None:
        self._claims.wait(LOCK)
        try:
            with open(self._path, "a+b") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(size - 1, 0))
                cut_short = file.read(1) not in (b"", b"\n")  # the last row, by a full disk
            with open(self._path, "a", newline="") as file:
                file.write("\r\n" if cut_short else "")
                csv.writer(file).writerows([*([] if size else [COLUMNS]), [id, path, split, reason]])
        finally:
            self._claims.release(LOCK)

    def tidy(self, is_done: Callable[[str], bool]) -> None:
        """Leaves the last row of each video, and none where is_done(id)."""
        self._claims.wait(LOCK)
        try:
            if not self._path.exists():
                return
            with open(self._path, newline="") as file:
                # A row that was cut short is of a video that is done again.
                last = {row[0]: row for row in csv.reader(file) if len(row) == len(COLUMNS)}
            last.pop(COLUMNS[0], None)
            rows = [row for id, row in last.items() if not is_done(id)]
            if not rows:
                self._path.unlink()
                return
            part = self._path.with_name(f".{FILE}.part")
            with open(part, "w", newline="") as file:
                csv.writer(file).writerows([COLUMNS, *rows])
            os.replace(part, self._path)
        finally:
            self._claims.release(LOCK)
