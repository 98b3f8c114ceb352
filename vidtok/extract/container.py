"""The one interface to all containers: what extraction needs of a writer, and what reading back needs of a reader."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from vidtok.extract.record import Record, Settings


class Entry(NamedTuple):
    """What is known of a record without its array. clip: its number, or None. The others: see `RecordMeta`."""

    id: str
    label: str | None
    split: str | None
    clip: int | None
    source_bytes: int | None
    frames: int
    coded_size: tuple[int, int]


class Writer(Protocol):
    """Takes the records of one video at a time; belongs to one process, and several may write to one folder.

    Attributes:
        written: bytes of the files that it has completed.
    """

    written: int

    def find(self, id: str) -> Entry | None:
        """The first record of a video that is complete in the folder and was verified, whoever wrote it; or None."""
        ...

    def write(self, records: Sequence[Record]) -> list[str]:
        """Takes all records of one video; returns the ids of the videos that are complete on disk by now.

        Raises:
            OSError: where the disk is full, ...; what is complete stays complete.
        """
        ...

    def close(self) -> list[str]:
        """Completes what is in the making, and returns ids as `write` does."""
        ...

    def abandon(self) -> None:
        """Removes what is in the making."""
        ...


class Reader(Protocol):
    """Records of a folder, or of one file, in the order of the files; a record that is there twice is given once.

    Attributes:
        settings: what all records have in common.
        entries: one per record; reading them doesn't read the arrays.
    """

    settings: Settings
    entries: list[Entry]

    def read(self, index: int) -> Record:
        """The record of entries[index]. Raises ValueError, naming the file, where it is damaged."""
        ...

    def __len__(self) -> int: ...


def entry_of(description: dict) -> Entry:
    """Of `vidtok.extract.record.describe`."""
    values = {name: description[name] for name in Entry._fields}
    return Entry(**values | {"coded_size": tuple(values["coded_size"])})
