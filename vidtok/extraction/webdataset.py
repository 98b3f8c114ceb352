"""The webdataset container: tar files that the `webdataset` package reads.

    KEY.npz    one record, a whole video or one clip: the arrays and `meta` of `vidtok.extraction.npz`
    KEY.json   the same `meta`, which can be read without the arrays

KEY is the shard's name and a number. `webdataset.WebDataset(files).decode()` yields {"__key__", "npz", "json"}. Every
member of an npz has a checksum. A tar that doesn't end in two empty blocks is incomplete.
"""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import BinaryIO

from vidtok.extraction.npz import damage_named, npz_of, parse_npz
from vidtok.extraction.record import Entry, Record, Settings, describe, entry_of, parse_description, settings_of


class TarShard:
    """`vidtok.extraction.containers.Shard` of tar files."""

    def __init__(self, file: BinaryIO, name: str):
        self._file, self._name, self._count = file, name, 0
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    @property
    def size(self) -> int:
        return self._file.tell()

    def add(self, record: Record) -> None:
        for suffix, data in (("npz", npz_of(record)), ("json", json.dumps(describe(record)).encode())):
            member = tarfile.TarInfo(f"{self._name}-{self._count:06d}.{suffix}")
            member.size = len(data)
            self._tar.addfile(member, io.BytesIO(data))
        self._count += 1

    def finish(self) -> None:
        self._tar.close()


class TarFormat:
    """`vidtok.extraction.containers.Format` of tar files."""

    suffix = ".tar"

    def __init__(self) -> None:
        self._offsets: dict[Path, list[int]] = {}  # of the npz members

    def create(self, file: BinaryIO, name: str) -> TarShard:
        return TarShard(file, name)

    def index(self, path: Path, verify: bool) -> tuple[Settings, list[Entry]]:
        with damage_named(path), open(path, "rb") as file:
            file.seek(-min(1024, os.path.getsize(path)), os.SEEK_END)
            if file.read().strip(b"\0") or os.path.getsize(path) % tarfile.RECORDSIZE:
                raise ValueError("it is cut off")
            file.seek(0)
            descriptions, self._offsets[path] = [], []
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if member.name.endswith(".json"):
                        descriptions.append(parse_description(_content(tar, member).decode()))
                        continue
                    self._offsets[path].append(member.offset)
                    if verify:
                        parse_npz(io.BytesIO(_content(tar, member)))
            if not descriptions or len(descriptions) != len(self._offsets[path]):
                raise ValueError(f"{len(self._offsets[path])} records with {len(descriptions)} descriptions")
            return settings_of(descriptions[0]), [entry_of(description) for description in descriptions]

    def read(self, path: Path, row: int) -> Record:
        if path not in self._offsets:
            self.index(path, verify=False)
        with damage_named(path), open(path, "rb") as file:
            file.seek(self._offsets[path][row])
            with tarfile.open(fileobj=file, mode="r:") as tar:
                return parse_npz(io.BytesIO(_content(tar, tar.next())))[0]


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo | None) -> bytes:
    """Read a member of a tar.

    Raises:
        ValueError: it is not a file.
    """
    file = None if member is None else tar.extractfile(member)
    if file is None:
        raise ValueError("it holds something else than files")
    return file.read()
