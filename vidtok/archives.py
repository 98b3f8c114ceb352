"""Videos inside tar files (also shards of WebDataset) and zip files, read in place.

The path of a member is that of the archive, and the name in it: `shards/0001.tar/clip.mp4`. Members of tar files, and
of zip files that store them without compression, are read where they lie; others are unpacked in memory, up to
`MAX_UNPACKED` bytes.
"""

import io
import os
import re
import shutil
import tarfile
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

from vidtok.errors import VideoError

SUFFIXES = (".tar", ".zip")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")
_INSIDE = re.compile(r"\.(?:tar|zip)(?=/)", re.IGNORECASE)
MAX_UNPACKED = 1 << 32  # bytes of a compressed member, which are held in memory
_LOCAL_HEADER = 30  # bytes of it in a zip file, before the name of the member
# Bytes that are unpacked at once. zipfile takes as many compressed ones and unpacks all of them, whatever size is
# stated, and they may hold thousands of times their number.
_BLOCK = 4096


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
        size: in bytes, unpacked.
        offset: of its bytes in the archive; None, they are compressed.
        fault: why it can't be read, or "".
    """

    size: int
    offset: int | None
    fault: str = ""


def is_archive(path: str | os.PathLike) -> bool:
    """Return whether a path is that of a tar or zip file."""
    return os.fspath(path).lower().endswith(SUFFIXES) and os.path.isfile(path)


def validate_no_archive(path: str | os.PathLike) -> None:
    """Raise VideoError for an archive in place of a video."""
    if is_archive(path):
        raise VideoError(os.fspath(path), f"an archive of {len(members(path))} files: give ARCHIVE/NAME of one of them")
    if os.fspath(path).lower().endswith(COMPRESSED):
        raise VideoError(os.fspath(path), "a compressed archive: unpack it, or make it a .tar or .zip")


def split_path(path: str | os.PathLike) -> tuple[str, str] | None:
    """Split the path of a member into (archive, name in it); None for other paths."""
    text = os.fspath(path)
    for match in _INSIDE.finditer(text):
        if os.path.isfile(text[: match.end()]):
            return text[: match.end()], text[match.end() + 1 :]
    return None


def members(archive: str | os.PathLike) -> dict[str, Member]:
    """List the files in an archive by name, in its order.

    Hidden files are left out, and names that lead out of the archive or that no path can have.

    Raises:
        VideoError: the archive can't be read at all. One that is truncated gives what is before the break.
    """
    try:
        status = os.stat(archive)
        return _members(os.fspath(archive), status.st_size, status.st_mtime_ns)
    except (OSError, tarfile.TarError, zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as e:
        raise VideoError(os.fspath(archive), f"not an archive that can be read ({e})") from e


@lru_cache(maxsize=64)
def _members(archive: str, size: int, modified: int) -> dict[str, Member]:
    found = _tar_members(archive, size) if archive.lower().endswith(".tar") else _zip_members(archive, size)
    return {name: member for name, member in found.items() if not _is_left_out(name)}


def _is_left_out(name: str) -> bool:
    parts = name.split("/")
    return "\0" in name or any(part.startswith(".") or part in ("", "__MACOSX") for part in parts)


def _tar_members(archive: str, size: int) -> dict[str, Member]:
    found = {}
    with tarfile.open(archive, "r:") as tar:
        try:
            for entry in tar:
                if entry.isreg() and not entry.issparse():
                    fault = "" if entry.offset_data + entry.size <= size else "the archive is truncated"
                    found[entry.name.removeprefix("./")] = Member(entry.size, entry.offset_data, fault)
        except tarfile.ReadError:  # truncated
            pass
    return found


def _zip_members(archive: str, size: int) -> dict[str, Member]:
    found = {}
    with zipfile.ZipFile(archive) as whole, open(archive, "rb") as file:
        for entry in whole.infolist():
            if entry.filename.endswith("/"):  # is_dir() fails for an empty name
                continue
            offset = None
            if entry.compress_type == zipfile.ZIP_STORED:
                file.seek(entry.header_offset)
                head = file.read(_LOCAL_HEADER)
                lengths = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
                offset = entry.header_offset + _LOCAL_HEADER + lengths
            fault = "it is encrypted" if entry.flag_bits & 1 else ""
            if offset is not None and offset + entry.file_size > size:
                fault = "the archive is truncated"
            elif offset is None and entry.file_size > MAX_UNPACKED:
                fault = (
                    f"it is compressed, and states {entry.file_size} bytes: at most {MAX_UNPACKED} are unpacked in "
                    "memory; unpack the archive, or store its files without compression"
                )
            found[entry.filename] = Member(entry.file_size, offset, fault)
    return found


def find_member(path: str | os.PathLike) -> tuple[str, Member] | None:
    """Return (archive, member) of a path that leads into an archive; None for other paths.

    Raises:
        VideoError: no such member, or one that can't be read.
    """
    place = split_path(path)
    if place is None:
        return None
    member = members(place[0]).get(place[1])
    if member is None:
        raise VideoError(os.fspath(path), "no such file in the archive")
    if member.fault:
        raise VideoError(os.fspath(path), member.fault)
    return place[0], member


class _Slice(io.RawIOBase):
    """The bytes of a member, where they lie."""

    def __init__(self, archive: str, member: Member):
        self._file, self._start, self._size = open(archive, "rb"), member.offset or 0, member.size  # noqa: SIM115
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("a place before the beginning")
        self._place = base + offset
        return self._place

    def readinto(self, buffer) -> int:
        self._file.seek(self._start + self._place)
        data = self._file.read(max(min(len(buffer), self._size - self._place), 0))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def open_binary(path: str | os.PathLike) -> BinaryIO:
    """Open a file, or a member of an archive, for reading. The result is seekable.

    Raises:
        OSError: the file can't be opened.
        VideoError: the member can't be opened or unpacked, or is compressed and larger than `MAX_UNPACKED`.
    """
    try:
        return open(path, "rb")
    except NotADirectoryError:
        if (found := find_member(path)) is None:
            raise
    archive, member = found
    if member.offset is not None:
        return io.BufferedReader(_Slice(archive, member), 1 << 18)
    _, name = split_path(path) or ("", "")
    try:
        data = io.BytesIO()
        with zipfile.ZipFile(archive) as whole, whole.open(name) as packed:
            shutil.copyfileobj(packed, data, _BLOCK)  # ends at the stated size
        data.seek(0)
        return data
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, zlib.error, EOFError, MemoryError) as e:
        raise VideoError(os.fspath(path), f"it can't be unpacked ({e})") from e


def exists(path: str | os.PathLike) -> bool:
    """Return whether a path is that of a file or folder, or of a member of an archive."""
    if os.path.exists(path):
        return True
    place = split_path(path)
    return place is not None and place[1] in members(place[0])


def find_media(archive: str | os.PathLike, suffixes: tuple[str, ...]) -> list[Path]:
    """List the paths of the members of an archive whose names end in one of `suffixes`, in any case."""
    return [Path(archive, name) for name in members(archive) if name.lower().endswith(suffixes)]
