"""failures.csv: which videos have no features, and why."""

import csv
import os
from pathlib import Path

from vidtok.extract.claims import Claims

FILE = "failures.csv"
COLUMNS = ("id", "path", "reason")
LOCK = f"\0{FILE}"  # no video's id


class Failures:
    """Rows are added at once, so that a killed run has them; at the end those that were done after all are left out."""

    def __init__(self, folder: Path, claims: Claims):
        self._path, self._claims = folder / FILE, claims

    def add(self, id: str, path: str, reason: str) -> None:
        self._claims.wait(LOCK)
        try:
            begin = not self._path.exists()
            with open(self._path, "a", newline="") as file:
                writer = csv.writer(file)
                if begin:
                    writer.writerow(COLUMNS)
                writer.writerow([id, path, reason])
        finally:
            self._claims.release(LOCK)

    def tidy(self, is_done) -> None:
        """Leaves the last row of each video, and none where is_done(id)."""
        self._claims.wait(LOCK)
        try:
            if not self._path.exists():
                return
            with open(self._path, newline="") as file:
                # A row that a kill cut short is of a video that is done again.
                last = {row["id"]: row for row in csv.DictReader(file) if None not in row.values()}
            rows = [row for id, row in last.items() if not is_done(id)]
            if not rows:
                self._path.unlink()
                return
            part = self._path.with_name(f".{FILE}.part")
            with open(part, "w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
            os.replace(part, self._path)
        finally:
            self._claims.release(LOCK)
