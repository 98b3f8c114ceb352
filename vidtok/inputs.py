"""Find and open input files: local files, files at addresses, archive members and frame folders; file versions.

Addresses (`https://`, `s3://`, `gs://`, ...) are read through fsspec, whose configuration holds the credentials. Byte
ranges are requested as needed; no file is downloaded as a whole. As a `Path`, an address has one slash less:
`s3:/bucket/clip.mp4`. `vidtok.virtual_files` reads archive members and frame folders.
"""

import io
import os
import re
import time
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import lru_cache
from glob import glob, has_magic
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from vidtok.errors import UserError, VideoError
from vidtok.names import FRAMES, IMAGE_SUFFIXES, VIDEO_SUFFIXES
from vidtok.virtual_files import (
    ARCHIVES,
    COMPRESSED,
    FileVersion,
    Pieces,
    as_frames,
    find_members,
    is_archive,
    is_virtual,
    members,
    open_virtual,
    split_path,
    virtual_version,
)

Result = TypeVar("Result")

HEAD = 4096  # leading bytes of a file, from which its type is detected
ADDRESS = re.compile(r"^(https?|s3|gs|gcs|az|abfs|memory):/{1,2}(?=[^/])")
ATTEMPTS = 5  # per request, with pauses of 1, 2, 4 and 8 seconds
RANGE = 1 << 22  # bytes per request
SECONDS = 10  # for which the metadata of a remote file are cached


def validate_no_archive(path: str | os.PathLike) -> None:
    """Raise VideoError if the path is that of an archive, not of a video."""
    if is_archive(path):
        raise VideoError(os.fspath(path), f"an archive of {len(members(path))} files: give ARCHIVE/NAME of one of them")
    if os.fspath(path).lower().endswith(COMPRESSED):
        raise VideoError(os.fspath(path), "a compressed archive: unpack it, or make it a .tar or .zip")


def open_binary(path: str | os.PathLike) -> BinaryIO:
    """Open a local or remote file, an archive member or a folder of frames as a seekable binary file.

    Raises:
        OSError: the file can't be opened.
        VideoError: the address, archive member or folder of frames can't be opened, see `open_virtual`.
    """
    try:
        return open(path, "rb")
    except (FileNotFoundError, NotADirectoryError):
        if (url := as_address(path)) is not None:
            return io.BufferedReader(_RemoteFile(url, _remote_version(url).size), RANGE)
        if (file := open_virtual(path)) is None:
            raise
        return file


def exists(path: str | os.PathLike) -> bool:
    """Return whether a file, folder, address, archive member or folder of frames exists."""
    if (url := as_address(path)) is not None:
        system, name = file_system(url)
        return request(url, lambda: system.exists(name))
    return os.path.exists(path) or is_virtual(path)


def as_address(path: str | os.PathLike) -> str | None:
    """Convert a path to the address it stands for, such as `s3://bucket/clip.mp4`; None for a local path."""
    text = os.fspath(path)
    match = ADDRESS.match(text)
    return None if match is None else f"{match[1]}://{text[match.end() :]}"


def file_system(url: str) -> tuple[Any, str]:
    """Return (fsspec file system, path in it) of an address.

    Raises:
        UserError: a package that the protocol needs isn't installed.
    """
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(url)
    except (ImportError, ValueError) as e:
        why = " ".join(str(e).split())
        raise UserError(f"{url}: {url.split(':')[0]} needs a package: pip install 'vidtok[remote]' ({why})") from e


def request(url: str, request: Callable[[], Result]) -> Result:
    """Call `request` and return its result; retry failures with growing pauses.

    Raises:
        VideoError: the last attempt failed, the file is missing, or the server refuses access.
    """
    for attempt in range(ATTEMPTS):
        try:
            return request()
        except Exception as e:  # fsspec passes on the exceptions of the libraries that it uses
            # For http, fsspec turns every failure into FileNotFoundError.
            fault = e.__cause__ if "aiohttp" in type(e.__cause__).__module__ else e
            status = getattr(fault, "status", 0)
            is_missing = isinstance(fault, FileNotFoundError) or status in (404, 410)
            is_refused = isinstance(fault, PermissionError) or (400 <= status < 500 and status != 429)
            if is_missing or is_refused or "credentials" in str(fault).lower() or attempt == ATTEMPTS - 1:
                why = "no such file" if is_missing else " ".join(str(fault).split()) or type(fault).__name__
                raise VideoError(url, why) from e
            time.sleep(2**attempt)
    raise AssertionError


class _RemoteFile(Pieces):
    """Remote file, read by byte ranges."""

    def __init__(self, url: str, size: int):
        super().__init__(size)
        self._url, (self._system, self._name) = url, file_system(url)

    def _read(self, place: int, count: int) -> bytes:
        data = request(self._url, lambda: self._system.cat_file(self._name, start=place, end=place + count))
        if len(data) > count:
            raise VideoError(self._url, "its server sends whole files, not ranges of bytes: download it first")
        return data


def _remote_version(url: str) -> FileVersion:
    return _ask_version(url, int(time.monotonic() / SECONDS))


@lru_cache(maxsize=4096)
def _ask_version(url: str, period: int) -> FileVersion:
    """Request the version of a remote file. `period` numbers the time span, so that `lru_cache` entries expire."""
    system, name = file_system(url)
    info = request(url, lambda: system.info(name))
    if info.get("type") == "directory" or info.get("size") is None:
        raise VideoError(url, "not a file of a known size")
    marks = [str(info.get(key)) for key in ("ETag", "etag", "LastModified", "last_modified", "mtime", "created")]
    return FileVersion(url, info["size"], zlib.crc32(" ".join(marks).encode()), 0)


def _find_remote(url: str, suffixes: tuple[str, ...]) -> list[tuple[Path, Path]]:
    """List the files at an address, as `find_files` does.

    An http address is always one file, since http has no folders. So is an address that can't be looked up; reading it
    then raises the error.

    Raises:
        VideoError: a folder or pattern can't be listed.
    """
    system, name = file_system(url)
    if url.startswith("http"):
        return [(Path(url), Path(name.split("?")[0].rpartition("/")[2]))]
    if has_magic(name):
        root = "/".join(_fixed_parts(Path(name)))
        names = request(url, lambda: system.glob(name))
    elif _is_folder(url, system, name):
        root = name.rstrip("/")
        listed = [entry for entry in request(url, lambda: system.find(name)) if entry.lower().endswith(suffixes)]
        names = [entry for entry in listed if not any(p.startswith(".") for p in entry.removeprefix(root).split("/"))]
    else:
        return [(Path(url), Path(name.rpartition("/")[2]))]
    root = root.strip("/")
    below = {entry: entry.strip("/").removeprefix(root).strip("/") for entry in sorted(names)}
    return [(Path(system.unstrip_protocol(entry)), Path(rest)) for entry, rest in below.items()]


def _is_folder(url: str, system: Any, name: str) -> bool:
    try:
        return request(url, lambda: system.isdir(name))
    except VideoError:
        return False


def find_videos(inputs: Iterable[str], frame_folders: float | None = None) -> list[tuple[Path, Path]]:
    """Find videos as `find_files` does. In folders, images are left out unless `frame_folders` is given."""
    return find_files(inputs, VIDEO_SUFFIXES, frame_folders)


def find_files(
    inputs: Iterable[str], suffixes: tuple[str, ...], frame_folders: float | None = None
) -> list[tuple[Path, Path]]:
    """Find files by name, in folders and archives, and by glob patterns.

    A file given by name is taken whatever its suffix. A folder is searched as by `walk_files`, for files with one of
    `suffixes`. No file is listed twice, even under different names or links.

    Args:
        inputs: files, folders, archives, addresses and patterns.
        suffixes: suffixes to search for, in lower case.
        frame_folders: frames per second; a folder with images is then one video. None, folders of images are no videos.

    Returns:
        [(file, its path below the folder it was found in)]: inputs in their order, the files of a folder sorted.

    Raises:
        UserError: an input doesn't exist or matches nothing.
    """
    found: dict[str, tuple[Path, Path]] = {}
    suffixes = suffixes if frame_folders is None else (*suffixes, *IMAGE_SUFFIXES)
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            files = [(f, f.relative_to(path)) for f in sorted(map(Path, walk_files(path, suffixes)))]
            nothing = f"{text}: no {'/'.join(suffixes[:3])} file in this folder"
        elif os.path.isfile(path):
            files = [(f, f.relative_to(path) if f != path else Path(path.name)) for f in _unfold(path, suffixes)]
            nothing = f"{text}: no {'/'.join(suffixes[:3])} file in this archive"
        elif (url := as_address(text)) is not None:
            files, nothing = _find_remote(url, suffixes), f"{text}: no {'/'.join(suffixes[:3])} file there"
        elif os.path.lexists(path) or split_path(path) or FRAMES.search(text):
            # An unreadable input fails when it is read, and doesn't end the run.
            files, nothing = [(path, Path(path.parent.name if FRAMES.search(text) else path.name))], ""
        elif has_magic(text):
            root = Path(*_fixed_parts(path))
            matches = [_unfold(f, suffixes) for f in _match(path, root)]
            files = [(f, f.relative_to(root)) for found_here in matches for f in found_here]
            nothing = f"{text}: no file matches"
        else:
            files, nothing = [], f"{text}: no such file or folder"
        if not files:
            raise UserError(nothing)
        if frame_folders is not None:
            files = [_in_frames(file, below, frame_folders) for file, below in files]
        for file, below in files:
            is_here = as_address(file) is None
            found.setdefault(os.path.realpath(file), (file.absolute() if is_here else file, below))
    # Relative paths, as the user wrote them, are easier to read.
    here = Path.cwd()
    return [(f.relative_to(here) if f.is_relative_to(here) else f, below) for f, below in found.values()]


def _in_frames(file: Path, below: Path, fps: float) -> tuple[Path, Path]:
    """Return the folder of an image as a video, and its path below the input; other files unchanged."""
    if (video := Path(as_frames(file, fps))) == file:
        return file, below
    return video, below.parent if below.parent.name else Path(file.absolute().parent.name)


def _unfold(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """List the members of an archive with one of `suffixes`; for any other or unreadable file, the file itself."""
    if {*ARCHIVES} & {*suffixes} or path.suffix.lower() not in ARCHIVES or not is_archive(path):
        return [path]
    try:
        return find_members(path, suffixes)
    except VideoError:
        return [path]


def walk_files(root: str | os.PathLike, suffixes: tuple[str, ...]) -> list[str]:
    """List the files below a folder whose names end in one of `suffixes`, in any case.

    Links to files and folders are followed. Each real file is listed once: by its path without links if that lies below
    the folder too, else by the first link. Hidden files and folders are left out. A broken link with a matching name is
    listed, so that reading it reports the error.

    Everything else that is left out causes a warning: other broken links, folders that can't be read, and matching
    files that are not regular (a FIFO, a socket, a device).

    Args:
        root: the folder.
        suffixes: suffixes in lower case; "" matches every file.

    Returns:
        Paths that begin with `root`, in no particular order.
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


_LITTER = ("thumbs.db", "desktop.ini")  # files that Windows creates in folders; those of macOS are hidden


def _match(pattern: Path, root: Path) -> list[Path]:
    """List the files that a glob pattern matches, sorted. root: the folders before the first wildcard."""
    if "**" in pattern.parts:  # `glob` follows a link cycle until the path is too long
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
    """Yield the parts of a pattern before the first wildcard."""
    for part in pattern.parts[:-1]:
        if has_magic(part):
            return
        yield part


def file_version(path: str | Path) -> FileVersion:
    """Return the version of a file, of an archive member, or of the images of a folder of frames.

    Raises:
        VideoError: no such file.
    """
    try:
        status = os.stat(path)
    except OSError as e:
        if (url := as_address(path)) is not None:
            return _remote_version(url)
        # NotADirectoryError: a parent of the path is a file, which may be an archive.
        if isinstance(e, FileNotFoundError | NotADirectoryError) and (found := virtual_version(path)) is not None:
            return found
        raise VideoError(path, "no such file" if isinstance(e, FileNotFoundError) else e.strerror or str(e)) from e
    return FileVersion(os.path.realpath(path), status.st_size, status.st_mtime_ns, status.st_ino)


def check_unchanged(path: str | Path, version: FileVersion) -> None:
    """Raise VideoError if the file at `path` has another version than `version`."""
    if file_version(path) != version:
        raise VideoError(path, "the file changed while it was read: read it again")


def read_head(path: Path) -> bytes:
    """Check that a path can be read as a video file; return its first `HEAD` bytes.

    Raises:
        VideoError: no such file, not a regular file, an empty file, or an archive.
        OSError: the file can't be opened.
    """
    if not path.is_file() and path.exists():
        raise VideoError(path, "not a file")
    if file_version(path).size == 0:
        raise VideoError(path, "the file is empty (0 bytes)")
    if path.name.lower().endswith((*ARCHIVES, *COMPRESSED)):
        validate_no_archive(path)
    with open_binary(path) as file:
        return file.read(HEAD)
