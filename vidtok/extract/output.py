"""The folder that a run fills: what is still to do in it, and what becomes of it."""

import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

from vidtok.extract.claims import Claims
from vidtok.extract.container import Entry, Writer
from vidtok.extract.failures import Failures
from vidtok.extract.meter import Meter
from vidtok.extract.open import open_writer
from vidtok.extract.plan import Item
from vidtok.extract.record import Record, Settings
from vidtok.extract.settings import hold_folder

PATIENCE = 0.2  # seconds between two looks at what another process is at


class Output:
    """Gives out the videos that nobody has done or is doing, and takes their records.

    Every process that fills the folder has one of these. A video is claimed when it is given out; the claim ends when
    its records are complete on disk, or with the process. force: give out what is complete, too.

    Raises:
        ValueError: where the folder was begun with other settings, see `hold_folder`.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: Settings,
        container: str,
        items: Iterable[Item],
        meter: Meter,
        force: bool = False,
    ):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._claims = Claims(folder)
        hold_folder(folder, settings, container, self._claims)
        self._writer: Writer = open_writer(folder, container)
        self._failures = Failures(folder, self._claims)
        self._todo, self._meter, self._force = deque(items), meter, force
        self._elsewhere: deque[Item] = deque()  # another process is at these
        self.errors: list[tuple[Item, str]] = []

    def next(self) -> Item | None:
        """The next video to do, or None where there is none for now."""
        while self._todo:
            item = self._todo.popleft()
            with self._meter.stage("write"):
                if not self._claims.take(item.id):
                    self._elsewhere.append(item)
                    continue
                entry = None if self._force else self._writer.find(item.id)
                if entry is None:
                    return item
                self._claims.release(item.id)
            if (why := another(item, entry)) is not None:
                self._note(item, why)
            else:
                self._meter.skipped += 1
        return None

    def take(self, item: Item, records: Sequence[Record]) -> None:
        """Raises OSError where the disk is full, ..."""
        with self._meter.stage("write"):
            complete = self._writer.write(records)
        self._release(complete)
        self._meter.done += 1
        self._meter.records += len(records)
        self._meter.tokens += sum(record.features.size for record in records if record.meta.feature == "ids")

    def fail(self, item: Item, reason: str) -> None:
        self._note(item, reason)
        self._claims.release(item.id)

    def flush(self) -> bool:
        """Completes what was taken, and looks again at what other processes were at; whether there is any of that."""
        with self._meter.stage("write"):
            self._release(self._writer.close())
        if not self._elsewhere:
            return False
        time.sleep(PATIENCE)
        self._todo, self._elsewhere = self._elsewhere, self._todo
        return True

    def close(self) -> None:
        """Completes what was taken; failures.csv lists what is missing now."""
        self._release(self._writer.close())
        failed = {item.id for item, _ in self.errors}  # what is there under such a name may be of another file
        self._failures.tidy(lambda id: id not in failed and self._writer.find(id) is not None)
        self._claims.close()

    def abandon(self) -> None:
        """Ends after an error of the disk: what was not complete is left out."""
        self._writer.abandon()
        self._claims.close()

    def _note(self, item: Item, reason: str) -> None:
        self._failures.add(item.id, item.path or "", item.split or "", reason)
        self.errors.append((item, reason))
        self._meter.failed += 1

    def _release(self, ids: Iterable[str]) -> None:
        self._meter.bytes = self._writer.written
        for id in ids:
            self._claims.release(id)


def another(item: Item, entry: Entry) -> str | None:
    """Why what is there is not of this item, or None."""
    if item.path is not None and Path(item.path).exists() and Path(item.path).stat().st_size != entry.source_bytes:
        return f"under its name there are features of another file, of {entry.source_bytes} bytes: give another folder"
    if (item.label, item.split) != (entry.label, entry.split):
        return f"its features are there with label {entry.label} and split {entry.split}: give another folder"
    return None
