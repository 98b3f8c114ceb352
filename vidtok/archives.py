"""Members of tar and zip files, on this machine or at an address, as input files.

The path of a member is the archive's path followed by the member's name: `shards/0001.tar/clip.mp4`. Members of tar
files and uncompressed members of zip files are read in place. Compressed members are unpacked in memory, up to
`MAX_UNPACKED` bytes.

The index of a remote tar file is read from its headers, and that of a zip file from its directory. It is kept in
indexes/ below VIDTOK_CACHE, or below ~/.cache/vidtok if that is not set.
"""

import hashlib
import io
import json
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
from vidtok.remote import (
    FileVersion,
    Pieces,
    RemoteFile,
    as_address,
    cache_folder,
    is_remote_file,
    open_remote,
    remote_version,
    without_query,
)

ARCHIVES = (".tar", ".zip")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")
INSIDE = re.compile(r"\.(?:tar|zip)(?:\?[^/]*)?(?=/)", re.IGNORECASE)
MAX_UNPACKED = 1 << 32  # bytes of a compressed member, which is held in memory
_LOCAL_HEADER = 30  # bytes of a local header in a zip file, before the member's name
# Bytes unpacked per call. zipfile reads this many compressed bytes and unpacks all of them, whatever size the header
# states; they may expand a thousandfold.
_BLOCK = 4096
_READ_AHEAD = 1 << 17  # bytes per request for the headers of a remote archive
_INDEXES = 1000  # kept on this machine


class Member(NamedTuple):
    """File in an archive.

    Attributes:
        size: size in bytes, unpacked.
        offset: position in the archive of its bytes or, in a zip file, of the local header before them; None if they
            are compressed.
        fault: why it can't be read; "" if it can.
    """

    size: int
    offset: int | None
    fault: str = ""


def is_archive(path: str | os.PathLike) -> bool:
    """Return whether a path is that of a tar or zip file.

    Raises:
        VideoError: an address can't be looked up.
    """
    if not without_query(path).lower().endswith(ARCHIVES):
        return False
    return is_remote_file(url) if (url := as_address(path)) is not None else os.path.isfile(path)


def split_path(path: str | os.PathLike) -> tuple[str, str] | None:
    """Split the path of a member into (archive, name in the archive); None for other paths.

    Raises:
        VideoError: an address can't be looked up.
    """
    text = os.fspath(path)
    for match in INSIDE.finditer(text):
        if is_archive(text[: match.end()]):
            return text[: match.end()], text[match.end() + 1 :]
    return None


def archive_version(archive: str | os.PathLike) -> FileVersion:
    """Return the version of an archive.

    Raises:
        OSError, VideoError: no such file, or it can't be looked up.
    """
    if (url := as_address(archive)) is not None:
        return remote_version(url)
    status = os.stat(archive)
    return FileVersion(os.path.realpath(archive), status.st_size, status.st_mtime_ns, status.st_ino)


def members(archive: str | os.PathLike) -> dict[str, Member]:
    """List the files in an archive by name, in their order in the archive.

    Hidden files, and names that are no legal path or lead out of the archive, are left out. In a truncated archive, the
    members before the break are listed.

    Raises:
        VideoError: the archive can't be read.
    """
    path = as_address(archive) or os.fspath(archive)
    try:
        version = archive_version(archive)
        return _members(path, version.size, version.modified)
    except (OSError, tarfile.TarError, zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as e:
        raise VideoError(path, f"not an archive that can be read ({e})") from e


@lru_cache(maxsize=64)
def _members(archive: str, size: int, modified: int) -> dict[str, Member]:
    if as_address(archive) is None or not modified:  # the server doesn't tell whether the file is still the same
        return _read_index(archive, size)
    key = hashlib.sha256(f"{archive} {size} {modified}".encode("utf-8", "surrogateescape")).hexdigest()
    file = cache_folder("indexes") / f"{key[:32]}.json"
    try:
        return {name: Member(*values) for name, values in json.loads(file.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):  # none, or a damaged one
        index = _read_index(archive, size)
    _keep(file, index)
    return index


def _keep(file: Path, index: dict[str, Member]) -> None:
    """Write an index to the cache, and remove the oldest ones."""
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(index))
        os.replace(part, file)
        for old in sorted(file.parent.iterdir(), key=os.path.getmtime)[:-_INDEXES]:
            old.unlink(missing_ok=True)
    except OSError:  # the disk is full, for example: the index is read again next time
        part.unlink(missing_ok=True)


def _read_index(archive: str, size: int) -> dict[str, Member]:
    read = _tar_members if without_query(archive).lower().endswith(".tar") else _zip_members
    with _open_archive(archive, size) as file:
        found = read(file, size)
    return {name: member for name, member in found.items() if not _is_left_out(name)}


def _open_archive(archive: str, size: int) -> BinaryIO:
    url = as_address(archive)
    return open(archive, "rb") if url is None else io.BufferedReader(RemoteFile(url, size), _READ_AHEAD)


def _is_left_out(name: str) -> bool:
    parts = name.split("/")
    return "\0" in name or any(part.startswith(".") or part in ("", "__MACOSX") for part in parts)


def _tar_members(file: BinaryIO, size: int) -> dict[str, Member]:
    found = {}
    with tarfile.open(fileobj=file, mode="r:") as tar:
        try:
            for entry in tar:
                if entry.isreg() and not entry.issparse():
                    fault = "" if entry.offset_data + entry.size <= size else "the archive is truncated"
                    found[entry.name.removeprefix("./")] = Member(entry.size, entry.offset_data, fault)
        except tarfile.ReadError:  # truncated
            pass
    return found


def _zip_members(file: BinaryIO, size: int) -> dict[str, Member]:
    found = {}
    with zipfile.ZipFile(file) as whole:
        for entry in whole.infolist():
            if entry.filename.endswith("/"):  # is_dir() fails for an empty name
                continue
            offset = entry.header_offset if entry.compress_type == zipfile.ZIP_STORED else None
            fault = "it is encrypted" if entry.flag_bits & 1 else ""
            if offset is not None and offset + _LOCAL_HEADER + entry.file_size > size:
                fault = "the archive is truncated"
            elif offset is None and entry.file_size > MAX_UNPACKED:
                fault = (
                    f"it is compressed, and states {entry.file_size} bytes: at most {MAX_UNPACKED} are unpacked in "
                    "memory; unpack the archive, or store its files without compression"
                )
            found[entry.filename] = Member(entry.file_size, offset, fault)
    return found


def find_member(path: str | os.PathLike) -> tuple[str, Member] | None:
    """Return (archive, member) of the path of a member; None for other paths.

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


def find_members(archive: str | os.PathLike, suffixes: tuple[str, ...]) -> list[Path]:
    """List the paths of the members of an archive whose names end in one of `suffixes`, in any case."""
    return [Path(archive, name) for name in members(archive) if name.lower().endswith(suffixes)]


class _Slice(Pieces):
    """Bytes of a file on this machine from `start` on."""

    def __init__(self, path: str, size: int, start: int):
        super().__init__(size)
        self._file, self._start = open(path, "rb"), start  # noqa: SIM115

    def _read(self, place: int, count: int) -> bytes:
        self._file.seek(self._start + place)
        return self._file.read(count)

    def close(self) -> None:
        self._file.close()
        super().close()


def _open_slice(archive: str, start: int, size: int) -> BinaryIO:
    if (url := as_address(archive)) is not None:
        return open_remote(url, (start, size))
    return io.BufferedReader(_Slice(archive, size, start), 1 << 18)


def open_member(path: str | os.PathLike) -> BinaryIO | None:
    """Open a member of an archive as a seekable binary file; None for other paths.

    Raises:
        VideoError: it can't be opened or unpacked, or is a compressed member larger than `MAX_UNPACKED`.
    """
    if (found := find_member(path)) is None:
        return None
    archive, member = found
    if member.offset is not None:
        start = member.offset
        if without_query(archive).lower().endswith(".zip"):
            with _open_slice(archive, start, _LOCAL_HEADER) as file:
                head = file.read()
            lengths = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
            start += _LOCAL_HEADER + lengths
            if start + member.size > archive_version(archive).size:
                raise VideoError(os.fspath(path), "the archive is truncated")
        return _open_slice(archive, start, member.size)
    _, name = split_path(path) or ("", "")
    try:
        data = io.BytesIO()
        size = archive_version(archive).size
        with _open_archive(archive, size) as file, zipfile.ZipFile(file) as whole, whole.open(name) as packed:
            shutil.copyfileobj(packed, data, _BLOCK)  # stops at the size that the header states
        data.seek(0)
        return data
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, zlib.error, EOFError, MemoryError) as e:
        raise VideoError(os.fspath(path), f"it can't be unpacked ({e})") from e
