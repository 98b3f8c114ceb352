"""Find and open input files, also inside tar files (shards of WebDataset) and zip files; versions of their contents.

The path of a member is that of the archive, and the name in it: `shards/0001.tar/clip.mp4`. Members of tar files, and
of zip files that store them without compression, are read where they lie; others are unpacked in memory, up to
`MAX_UNPACKED` bytes.
"""

import io
import os
import re
import shutil
import tarfile
import warnings
import zipfile
import zlib
from collections import deque
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import lru_cache
from glob import glob, has_magic
from pathlib import Path
from typing import BinaryIO, NamedTuple

from vidtok.errors import UserError, VideoError
from vidtok.names import VIDEO_SUFFIXES

ARCHIVES = (".tar", ".zip")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")
_INSIDE = re.compile(r"\.(?:tar|zip)(?=/)", re.IGNORECASE)
MAX_UNPACKED = 1 << 32  # bytes of a compressed member, which are held in memory
HEAD = 4096  # bytes of a file by which it is told what it is
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
    return os.fspath(path).lower().endswith(ARCHIVES) and os.path.isfile(path)


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


def find_members(archive: str | os.PathLike, suffixes: tuple[str, ...]) -> list[Path]:
    """List the paths of the members of an archive whose names end in one of `suffixes`, in any case."""
    return [Path(archive, name) for name in members(archive) if name.lower().endswith(suffixes)]


def find_videos(inputs: Iterable[str]) -> list[tuple[Path, Path]]:
    """Find videos as `find_files` does. Images count where they are named, not in folders."""
    return find_files(inputs, VIDEO_SUFFIXES)


def find_files(inputs: Iterable[str], suffixes: tuple[str, ...]) -> list[tuple[Path, Path]]:
    """Find the files that are named, or lie in folders and archives, or match glob patterns.

    A file that is named is taken whatever its suffix; a folder, searched as in `walk_files`, gives those with one of
    `suffixes`. Nothing is taken twice, under whatever name or link.

    Returns:
        [(file, its path below the folder it was found in)], inputs in their order, files of a folder sorted.

    Raises:
        UserError: an input doesn't exist or matches nothing.
    """
    found: dict[str, tuple[Path, Path]] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            files = [(f, f.relative_to(path)) for f in sorted(map(Path, walk_files(path, suffixes)))]
            nothing = f"{text}: no {'/'.join(suffixes[:3])} file in this folder"
        elif os.path.isfile(path):
            files = [(f, f.relative_to(path) if f != path else Path(path.name)) for f in _unfold(path, suffixes)]
            nothing = f"{text}: no {'/'.join(suffixes[:3])} file in this archive"
        elif "://" in text:
            files, nothing = [], f"{text}: addresses are not read: download the videos first"
        elif os.path.lexists(path) or split_path(path):
            # What can't be read is a failure of its own, and doesn't end the run.
            files, nothing = [(path, Path(path.name))], ""
        elif has_magic(text):
            root = Path(*_fixed_parts(path))
            matches = [_unfold(f, suffixes) for f in _match(path, root)]
            files = [(f, f.relative_to(root)) for found_here in matches for f in found_here]
            nothing = f"{text}: no file matches"
        else:
            files, nothing = [], f"{text}: no such file or folder"
        if not files:
            raise UserError(nothing)
        for file, below in files:
            found.setdefault(os.path.realpath(file), (file.absolute(), below))
    # The paths as the user wrote them read better than absolute ones.
    here = Path.cwd()
    return [(f.relative_to(here) if f.is_relative_to(here) else f, below) for f, below in found.values()]


def _unfold(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """List an archive's members with one of `suffixes`; for another file, or an unreadable archive, the file itself."""
    if {*ARCHIVES} & {*suffixes} or not is_archive(path):
        return [path]
    try:
        return find_members(path, suffixes)
    except VideoError:
        return [path]


def walk_files(root: str | os.PathLike, suffixes: tuple[str, ...]) -> list[str]:
    """List the files below a folder whose names end in one of `suffixes` in any case. Every search follows this rule.

    Links to files and folders are followed. Each real file is listed once: by its path without links if that lies below
    the folder too, else by the first link. Hidden files and folders are left out. A link that leads nowhere is listed,
    so that whoever reads it reports it.

    Warn of all else that is left out: other broken links, folders that can't be read, and files of these names that
    are not regular (a FIFO, a socket, a device).

    Args:
        root: the folder.
        suffixes: in lower case; "" fits every file.

    Returns:
        Paths that begin with `root`, in no order.
    """
    found: dict[str, str] = {}  # by real path
    searched: set[str] = set()  # real paths of folders
    folders, links = deque([os.fspath(root)]), deque[str]()
    while folders or links:
        if not folders:  # links come last, so that a file's own path is found first
            path = links.popleft()
            if os.path.isdir(path):
                folders.append(path)
            else:
                found.setdefault(os.path.realpath(path), path)
            continue
        folder = folders.popleft()
        real_folder = os.path.realpath(folder)
        if real_folder in searched:
            continue
        searched.add(real_folder)
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            warnings.warn(f"{folder}: {error.strerror}, left out", stacklevel=2)
            continue
        for entry in entries:
            fits = entry.name.lower().endswith(suffixes)
            if entry.name.startswith(".") or entry.name.lower() in _LITTER:
                continue
            if entry.is_symlink():
                if os.path.isdir(entry.path) or (fits and os.path.isfile(entry.path)):
                    links.append(entry.path)
                elif not os.path.exists(entry.path):
                    if fits:
                        found.setdefault(os.path.join(real_folder, entry.name), entry.path)
                    else:
                        warnings.warn(f"{entry.path}: a link that leads nowhere, left out", stacklevel=2)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif fits and entry.is_file(follow_symlinks=False):
                found.setdefault(os.path.join(real_folder, entry.name), entry.path)
            elif fits and os.path.exists(entry.path):
                warnings.warn(f"{entry.path}: not a regular file, left out", stacklevel=2)
    return [*found.values()]


_LITTER = ("thumbs.db", "desktop.ini")  # files that Windows leaves in folders; those of macOS are hidden


def _match(pattern: Path, root: Path) -> list[Path]:
    """List the files that a glob pattern matches, in order. root: its folders before the first wildcard."""
    if "**" in pattern.parts:  # `glob` would follow a link into a loop until its paths get too long
        steps = pattern.parts[len(root.parts) :]
        return sorted(f for f in map(Path, walk_files(root, ("",))) if _fits(f.relative_to(root).parts, steps))
    files = [Path(f) for f in sorted(glob(str(pattern))) if os.path.isfile(f) or not os.path.exists(f)]
    return [file for file in files if file.name.lower() not in _LITTER]


def _fits(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _fits(parts, pattern[1:]) or (bool(parts) and _fits(parts[1:], pattern))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _fixed_parts(pattern: Path) -> Iterable[str]:
    """Yield the folders before the first wildcard."""
    for part in pattern.parts[:-1]:
        if has_magic(part):
            return
        yield part


class FileVersion(NamedTuple):
    """Version of a file's contents, to key a cache by: an overwritten or replaced file has another.

    Attributes:
        path: real path. size: in bytes. modified: time of modification in ns. inode: number of the file.
    """

    path: str
    size: int
    modified: int
    inode: int


def file_version(path: str | Path) -> FileVersion:
    """Return the version of a file, or of a member of an archive.

    Raises:
        VideoError: no such file.
    """
    try:
        status = os.stat(path)
    except OSError as e:
        if isinstance(e, NotADirectoryError) and (found := find_member(path)) is not None:
            archive, member = found
            status = os.stat(archive)
            return FileVersion(os.path.realpath(path), member.size, status.st_mtime_ns, status.st_ino)
        raise VideoError(path, "no such file" if isinstance(e, FileNotFoundError) else e.strerror or str(e)) from e
    return FileVersion(os.path.realpath(path), status.st_size, status.st_mtime_ns, status.st_ino)


def check_unchanged(path: str | Path, version: FileVersion) -> None:
    """Raise VideoError if the file at `path` is no longer the one of `version`."""
    if file_version(path) != version:
        raise VideoError(path, "the file changed while it was read: read it again")


def read_head(path: Path) -> bytes:
    """Check a file that is to be read as video; return its first `HEAD` bytes.

    Raises:
        VideoError: no such file, no regular file, an empty one, or an archive.
        OSError: the file can't be opened.
    """
    if not path.is_file() and path.exists():
        raise VideoError(path, "not a file")
    if file_version(path).size == 0:
        raise VideoError(path, "the file is empty (0 bytes)")
    validate_no_archive(path)
    with open_binary(path) as file:
        return file.read(HEAD)
