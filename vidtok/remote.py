"""Files at addresses (`https://`, `s3://`, `gs://`, ...): read by ranges of bytes, tried again after failures.

Addresses are read through fsspec, whose configuration holds the credentials. No file is downloaded as a whole. As a
`Path`, an address has one slash less: `s3:/bucket/clip.mp4`.
"""

import io
import os
import re
import time
import zlib
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from vidtok.errors import UserError, VideoError

Result = TypeVar("Result")

ADDRESS = re.compile(r"^(https?|s3|gs|gcs|az|abfs|memory):/{1,2}(?=[^/])")
_QUERY = re.compile(r"^(https?:/[^?]*)\?[^/]*$")
ATTEMPTS = 5  # per request, with pauses of 1, 2, 4 and 8 seconds
RANGE = 1 << 22  # bytes per request
SECONDS = 10  # for which the metadata of a remote file are cached
NO_FILE, NO_BUCKET, NO_SIZE = "no such file", "no such bucket", "not a file of a known size"


class FileVersion(NamedTuple):
    """Version of a file's contents, as a cache key: a file that is overwritten or replaced has a new version.

    Attributes:
        path: real path, or address.
        size: size in bytes.
        modified: modification time in ns; of a remote file a checksum of what its server says, 0 for nothing.
        inode: inode number.
    """

    path: str
    size: int
    modified: int
    inode: int


class Pieces(io.RawIOBase):
    """Read-only, seekable file of `size` bytes; a subclass defines `_read`."""

    def __init__(self, size: int):
        self._size, self._place = size, 0

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
        count = min(len(buffer), self._size - self._place)
        data = self._read(self._place, count) if count > 0 else b""
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def readall(self) -> bytes:
        """Read the rest of the file, `RANGE` bytes at a time; `io` would read 8 KB at a time."""
        return b"".join(iter(lambda: self.read(RANGE), b""))

    def _read(self, place: int, count: int) -> bytes:
        """Read at least one and up to `count` bytes at position `place`."""
        raise NotImplementedError


class RemoteFile(Pieces):
    """Part of a remote file, read by byte ranges.

    Args:
        url: the address.
        size: number of bytes of the part.
        start: position of its first byte in the remote file.
    """

    def __init__(self, url: str, size: int, start: int = 0):
        super().__init__(size)
        self._url, self._start, (self._system, self._name) = url, start, file_system(url)

    def _read(self, place: int, count: int) -> bytes:
        start = self._start + place
        data = request(self._url, lambda: self._system.cat_file(self._name, start=start, end=start + count))
        if len(data) > count:
            raise VideoError(self._url, "its server sends whole files, not ranges of bytes: download it first")
        return data


def open_remote(url: str, part: tuple[int, int] | None = None) -> BinaryIO:
    """Open a remote file, or the part (start, size) of it in bytes, as a seekable binary file.

    Raises:
        VideoError: the file can't be opened, now or while it is read.
    """
    start, size = part or (0, remote_version(url).size)
    return io.BufferedReader(RemoteFile(url, size, start), RANGE)


def as_address(path: str | os.PathLike) -> str | None:
    """Convert a path to the address it stands for, such as `s3://bucket/clip.mp4`; None for a local path."""
    text = os.fspath(path)
    match = ADDRESS.match(text)
    return None if match is None else f"{match[1]}://{text[match.end() :]}"


def as_text(path: str | os.PathLike) -> str:
    """Return a path as it is shown: an address with both of its slashes."""
    return as_address(path) or os.fspath(path)


def without_query(path: str | os.PathLike) -> str:
    """Remove the query of an http address: `https://host/clips.zip?key=1` becomes `https://host/clips.zip`."""
    return _QUERY.sub(r"\1", os.fspath(path))


def join(root: str | os.PathLike, name: str) -> str:
    """Return the path or address of a file that is named relative to `root`, or by an absolute path or address."""
    path = name if ADDRESS.match(name) else str(Path(root) / name)
    return as_address(path) or path


def cache_folder(name: str) -> Path:
    """Return the folder `name` for what is kept of remote files: below VIDTOK_CACHE, or ~/.cache/vidtok without it."""
    return Path(os.environ.get("VIDTOK_CACHE") or Path.home() / ".cache/vidtok") / name


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
                is_bucket = "bucket does not exist" in str(fault) or "/" not in url.partition("://")[2].strip("/")
                missing = NO_BUCKET if is_bucket else NO_FILE
                why = missing if is_missing else " ".join(str(fault).split()) or type(fault).__name__
                raise VideoError(url, why) from e
            time.sleep(2**attempt)
    raise AssertionError


def remote_version(url: str) -> FileVersion:
    """Return the version of a remote file, at most `SECONDS` old.

    Raises:
        VideoError: no such file, or it can't be looked up.
    """
    return _ask_version(url, int(time.monotonic() / SECONDS))


@lru_cache(maxsize=4096)
def _ask_version(url: str, period: int) -> FileVersion:
    """Request the version of a remote file. `period` numbers the time span, so that `lru_cache` entries expire."""
    system, name = file_system(url)
    info = request(url, lambda: system.info(name))
    if info.get("type") == "directory" or info.get("size") is None:
        raise VideoError(url, NO_SIZE)
    return FileVersion(url, info["size"], modification(info), 0)


def modification(info: dict[str, Any]) -> int:
    """Return `FileVersion.modified` of a remote file from fsspec's info about it."""
    # The tag of the contents comes first: servers round times differently in a listing and for one file.
    names = ("ETag", "etag", "LastModified", "Last-Modified", "last_modified", "mtime", "created")
    mark = next((str(info[name]) for name in names if info.get(name)), "")
    return zlib.crc32(mark.encode())  # 0 of no mark


def is_remote_file(url: str) -> bool:
    """Return whether there is a file at an address.

    Raises:
        VideoError: it can't be looked up.
    """
    try:
        remote_version(url)
    except VideoError as e:
        if e.reason not in (NO_FILE, NO_BUCKET, NO_SIZE):
            raise
        return False
    return True


def is_remote_folder(url: str) -> bool:
    """Return whether there is a folder at an address; False for http, which has none, and after failures."""
    system, name = file_system(url)
    try:
        return not url.startswith("http") and request(url, lambda: system.isdir(name))
    except VideoError:
        return False


def list_remote(url: str) -> dict[str, dict[str, Any]]:
    """List what lies directly in a folder at an address as {name: fsspec's info}; {} for http.

    Raises:
        VideoError: the folder can't be listed.
    """
    if url.startswith("http"):
        return {}
    system, name = file_system(url)
    found = request(url, partial(system.ls, name, detail=True))
    return {info["name"].rstrip("/").rpartition("/")[2]: info for info in found}
