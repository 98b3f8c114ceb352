"""A folder of npz files, one per video, in the tree of their ids."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from vidtok.datasets.container import MEDIA_SUFFIXES
from vidtok.extract.container import Entry, entry_of
from vidtok.extract.npz import read_description, read_npz, write_npz
from vidtok.extract.record import Record, describe, differences, settings_of


def npz_name(id: str) -> str:
    """Path of a video's file below the folder: its id with .npz in place of a video's suffix.

    Parts that would lead out of the folder ("/", "..") are left out.
    """
    parts = [part for part in PurePosixPath(id.replace("\\", "/")).parts if part not in ("/", ".", "..")]
    path = PurePosixPath(*parts)
    stem = path.name[: -len(path.suffix)] if path.suffix.lower() in MEDIA_SUFFIXES else path.name
    return str(path.with_name(f"{stem}.npz"))


class NpzWriter:
    """See `vidtok.extract.container.Writer`. A file that is damaged counts as none and is written anew."""

    def __init__(self, folder: Path):
        self.folder, self.written = folder, 0

    def path_of(self, id: str) -> Path:
        return self.folder / npz_name(id)

    def find(self, id: str) -> Entry | None:
        try:
            return entry_of(describe(read_npz(self.path_of(id))[0]))
        except (FileNotFoundError, ValueError):
            return None

    def write(self, records: Sequence[Record]) -> list[str]:
        path = self.path_of(records[0].id)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_npz(path, records)
        self.written += path.stat().st_size
        return [records[0].id]

    def close(self) -> list[str]:
        return []

    def abandon(self) -> None:
        pass


class NpzReader:
    """See `vidtok.extract.container.Reader`."""

    def __init__(self, files: Sequence[Path]):
        self.entries: list[Entry] = []
        self._places: list[tuple[Path, int]] = []
        for file in files:
            description = read_description(file)
            settings = settings_of(description)
            if not self.entries:
                self.settings = settings
            elif other := differences(self.settings, settings):
                raise ValueError(f"{file} is of other settings than {files[0]}: {other}")
            for i in range(description["clips"] or 1):
                clip = None if description["clips"] is None else i
                self.entries.append(entry_of(description | {"clip": clip}))
                self._places.append((file, i))

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, index: int) -> Record:
        path, clip = self._places[index]
        return read_npz(path)[clip]
