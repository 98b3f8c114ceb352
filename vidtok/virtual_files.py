"""Virtual input files: members of archives, and folders of numbered images that are read as one video.

The path of a member is the archive's path followed by the member's name: `shards/0001.tar/clip.mp4`. Members of tar
files and uncompressed members of zip files are read in place. Compressed members are unpacked in memory, up to
`MAX_UNPACKED` bytes.

`DIR/@25` is the video whose frames are the numbered images in DIR, at 25 frames per second; DIR may be in an archive.
Images are neither copied nor decoded here. The virtual file is a QuickTime file: an index that is made in memory,
followed by the bytes of the images.
"""

import io
import os
import re
import shutil
import struct
import tarfile
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image

from vidtok.errors import VideoError
from vidtok.names import FRAMES, IMAGE_SUFFIXES, order_frames

ARCHIVES = (".tar", ".zip")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")
_INSIDE = re.compile(r"\.(?:tar|zip)(?=/)", re.IGNORECASE)
MAX_UNPACKED = 1 << 32  # bytes of a compressed member, which is held in memory
_LOCAL_HEADER = 30  # bytes of a local header in a zip file, before the member's name
# Bytes unpacked per call. zipfile reads this many compressed bytes and unpacks all of them, whatever size the header
# states; they may expand a thousandfold.
_BLOCK = 4096


class FileVersion(NamedTuple):
    """Version of a file's contents, as a cache key: a file that is overwritten or replaced has a new version.

    Attributes:
        path: real path.
        size: size in bytes.
        modified: modification time in ns.
        inode: inode number.
    """

    path: str
    size: int
    modified: int
    inode: int


class Member(NamedTuple):
    """File in an archive.

    Attributes:
        size: size in bytes, unpacked.
        offset: position of its bytes in the archive; None if they are compressed.
        fault: why it can't be read; "" if it can.
    """

    size: int
    offset: int | None
    fault: str = ""


def is_archive(path: str | os.PathLike) -> bool:
    """Return whether a path is that of a tar or zip file."""
    return os.fspath(path).lower().endswith(ARCHIVES) and os.path.isfile(path)


def split_path(path: str | os.PathLike) -> tuple[str, str] | None:
    """Split the path of a member into (archive, name in the archive); None for other paths."""
    text = os.fspath(path)
    for match in _INSIDE.finditer(text):
        if os.path.isfile(text[: match.end()]):
            return text[: match.end()], text[match.end() + 1 :]
    return None


def members(archive: str | os.PathLike) -> dict[str, Member]:
    """List the files in an archive by name, in their order in the archive.

    Hidden files, and names that are no legal path or lead out of the archive, are left out. In a truncated archive, the
    members before the break are listed.

    Raises:
        VideoError: the archive can't be read.
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

    def _read(self, place: int, count: int) -> bytes:
        """Read at least one and up to `count` bytes at position `place`."""
        raise NotImplementedError


class _Slice(Pieces):
    """Uncompressed member of an archive, read in place."""

    def __init__(self, archive: str, member: Member):
        super().__init__(member.size)
        self._file, self._start = open(archive, "rb"), member.offset or 0  # noqa: SIM115

    def _read(self, place: int, count: int) -> bytes:
        self._file.seek(self._start + place)
        return self._file.read(count)

    def close(self) -> None:
        self._file.close()
        super().close()


def find_members(archive: str | os.PathLike, suffixes: tuple[str, ...]) -> list[Path]:
    """List the paths of the members of an archive whose names end in one of `suffixes`, in any case."""
    return [Path(archive, name) for name in members(archive) if name.lower().endswith(suffixes)]


def open_virtual(path: str | os.PathLike) -> BinaryIO | None:
    """Open a member of an archive or a folder of frames as a seekable binary file; None for other paths.

    Raises:
        VideoError: it can't be opened or unpacked, or is a compressed member larger than `MAX_UNPACKED`.
    """
    version = virtual_version(path)
    if version is not None and (place := split_frames(path)) is not None:
        index = _frame_index(*place, version)
        return io.BufferedReader(FrameFile(index, _image_opener(place[0])), 1 << 18)
    if (found := find_member(path)) is None:
        return None
    archive, member = found
    if member.offset is not None:
        return io.BufferedReader(_Slice(archive, member), 1 << 18)
    _, name = split_path(path) or ("", "")
    try:
        data = io.BytesIO()
        with zipfile.ZipFile(archive) as whole, whole.open(name) as packed:
            shutil.copyfileobj(packed, data, _BLOCK)  # stops at the size that the header states
        data.seek(0)
        return data
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, zlib.error, EOFError, MemoryError) as e:
        raise VideoError(os.fspath(path), f"it can't be unpacked ({e})") from e


def virtual_version(path: str | os.PathLike) -> FileVersion | None:
    """Return the version of an archive member, or of the images of a folder of frames; None for other paths."""
    if (place := split_frames(path)) is not None:
        try:
            images = _list_images(place[0])
        except OSError as e:
            raise VideoError(place[0], e.strerror or str(e)) from e
        if not images:
            raise VideoError(place[0], f"no images ({', '.join(IMAGE_SUFFIXES)}) in this folder")
        size, modified = sum(size for size, _ in images.values()), max(time for _, time in images.values())
        names = zlib.crc32("\0".join(images).encode("utf-8", "surrogateescape"))
        return FileVersion(os.path.realpath(path), size, modified, names)
    if (found := find_member(path)) is None:
        return None
    status = os.stat(found[0])
    return FileVersion(os.path.realpath(path), found[1].size, status.st_mtime_ns, status.st_ino)


def is_virtual(path: str | os.PathLike) -> bool:
    """Return whether a path is that of an archive member or of a folder of frames."""
    if (place := split_frames(path)) is not None:
        return os.path.isdir(place[0]) or split_path(f"{place[0]}/") is not None
    inside = split_path(path)
    return inside is not None and inside[1] in members(inside[0])


def split_frames(path: str | os.PathLike) -> tuple[str, float] | None:
    """Split the path of a folder of frames, DIR/@FPS, into (folder, frames per second); None for other paths."""
    match = FRAMES.search(os.fspath(path))
    return None if match is None else (os.fspath(path)[: match.start()], float(match[1]))


def as_frames(path: str | os.PathLike, fps: float) -> str:
    """Return the path `DIR/@FPS` of the video that an image is a frame of; other paths unchanged."""
    text = os.fspath(path)
    if not text.lower().endswith(IMAGE_SUFFIXES):
        return text
    return os.path.join(os.path.dirname(text) or ".", f"@{fps:.10g}")


def _list_images(folder: str) -> dict[str, tuple[int, int]]:
    """Return {name: (size in bytes, modification time in ns)} of the images in a folder, which may be in an archive."""
    if (place := split_path(f"{folder}/")) is not None:
        modified = os.stat(place[0]).st_mtime_ns
        inside = {os.path.split(name): member.size for name, member in members(place[0]).items()}
        found = {name: (size, modified) for (below, name), size in inside.items() if below == place[1].rstrip("/")}
    else:
        with os.scandir(folder) as listing:
            entries = {entry.name: entry for entry in listing if not entry.name.startswith(".")}
            stats = {name: entries[name].stat() for name in entries if name.lower().endswith(IMAGE_SUFFIXES)}
        found = {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}
    return {name: found[name] for name in sorted(found) if name.lower().endswith(IMAGE_SUFFIXES)}


@lru_cache(maxsize=64)
def _frame_index(folder: str, fps: float, version: FileVersion) -> "FrameIndex":
    """Return the cached index of a folder of frames. `version` is the cache key: that of the images."""
    if not 0.001 <= fps <= 1000:
        raise VideoError(folder, f"{fps:g} frames per second: give a rate from 0.001 to 1000")
    found = _list_images(folder)
    names = order_frames(folder, found)
    return index_frames(folder, fps, names, [found[name][0] for name in names], _image_opener(folder))


def _image_opener(folder: str) -> Callable[[str], BinaryIO]:
    def open_image(name: str) -> BinaryIO:
        path = os.path.join(folder, name)
        return open_virtual(path) or open(path, "rb")

    return open_image


# QuickTime's codes of the image formats that it supports.
_CODECS = {"JPEG": b"jpeg", "MPO": b"jpeg", "PNG": b"png ", "TIFF": b"tiff"}
_SIDE = 1 << 16  # pixels; QuickTime stores smaller sides only
_MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)  # upright


class FrameIndex(NamedTuple):
    """Byte layout of a virtual video of images.

    Attributes:
        header: bytes before the first image.
        names: names of the images, in order.
        ends: position after the last byte of each image.
    """

    header: bytes
    names: Sequence[str]
    ends: Sequence[int]


def index_frames(
    path: str, fps: float, names: Sequence[str], sizes: Sequence[int], open_image: Callable[[str], BinaryIO]
) -> FrameIndex:
    """Make the index of a video of images; this reads the header of each image.

    Args:
        path: the folder, for errors.
        fps: frames per second.
        names: names of the images, in order.
        sizes: sizes of the images in bytes.
        open_image: function that opens an image by its name.

    Raises:
        VideoError: an image can't be read, or differs from the first one in format or size.
    """
    found: dict[tuple[str, tuple[int, int]], str] = {}
    for name in names:
        try:
            with open_image(name) as file, Image.open(file) as image:
                found.setdefault((str(image.format).replace("MPO", "JPEG"), image.size), name)
        except (OSError, SyntaxError, ValueError, VideoError, Image.DecompressionBombError) as error:
            raise VideoError(path, f"{name} is not an image that can be read") from error
        if len(found) > 1:
            texts = [f"{name} ({kind}, {width}x{height})" for (kind, (width, height)), name in found.items()]
            raise VideoError(path, f"{texts[1]} is unlike {texts[0]}: frames have one format and one size")
    ((kind, size),) = found
    if kind not in _CODECS or max(size) >= _SIDE:
        limit = "JPEG, PNG or TIFF of up to 65535 pixels a side"
        raise VideoError(path, f"{names[0]} is {kind}, {size[0]}x{size[1]}: frames are {limit}")
    header = _movie_header(_CODECS[kind], size, Fraction(fps).limit_denominator(1001), sizes)
    return FrameIndex(header, names, [*accumulate(sizes, initial=len(header))][1:])


def _movie_header(codec: bytes, size: tuple[int, int], rate: Fraction, sizes: Sequence[int]) -> bytes:
    """Return all bytes of a QuickTime file before its frames, which are contiguous. size: (width, height) in pixels."""
    count, (ticks, step) = len(sizes), (rate.numerator, rate.denominator)
    duration, (width, height) = count * step, size
    entry = struct.pack(
        ">6xH16xHHIII H32xHh", 1, width, height, 72 << 16, 72 << 16, 0, 1, 24, -1
    )  # version, vendor and quality are zero
    tables = [
        _atom(b"stsd", struct.pack(">II", 0, 1), _atom(codec, entry)),
        _atom(b"stts", struct.pack(">IIII", 0, 1, count, step)),
        _atom(b"stsc", struct.pack(">IIIII", 0, 1, 1, count, 1)),
        _atom(b"stsz", struct.pack(">III", 0, 0, count), struct.pack(f">{count}I", *sizes)),
    ]
    start = _atom(b"ftyp", b"qt  ", bytes(4), b"qt  ")

    def movie(offset: int) -> bytes:
        table = _atom(b"stbl", *tables, _atom(b"stco", struct.pack(">III", 0, 1, offset)))
        source = _atom(b"dinf", _atom(b"dref", struct.pack(">II", 0, 1), _atom(b"url ", struct.pack(">I", 1))))
        media = _atom(
            b"mdia",
            _atom(b"mdhd", struct.pack(">12xII4x", ticks, duration)),
            _atom(b"hdlr", b"\0\0\0\0mhlrvide", bytes(13)),
            _atom(b"minf", _atom(b"vmhd", struct.pack(">I8x", 1)), source, table),
        )
        track = struct.pack(">I8xI4xI16x", 7, 1, duration) + _MATRIX + struct.pack(">II", width << 16, height << 16)
        head = struct.pack(">12xIIIH10x", ticks, duration, 1 << 16, 1 << 8) + _MATRIX + struct.pack(">24xI", 2)
        return _atom(b"moov", _atom(b"mvhd", head), _atom(b"trak", _atom(b"tkhd", track), media))

    data = struct.pack(">I4sQ", 1, b"mdat", 16 + sum(sizes))
    return start + movie(len(start) + len(movie(0)) + len(data)) + data


def _atom(kind: bytes, *parts: bytes) -> bytes:
    return struct.pack(">I4s", 8 + sum(map(len, parts)), kind) + b"".join(parts)


class FrameFile(Pieces):
    """Virtual video file of images, of which one is open at a time.

    Args:
        index: from `index_frames`.
        open_image: function that opens an image by its name.
    """

    def __init__(self, index: FrameIndex, open_image: Callable[[str], BinaryIO]):
        super().__init__(index.ends[-1])
        self._index, self._open_image = index, open_image
        self._current: tuple[int, BinaryIO] | None = None  # number of the open image

    def _read(self, place: int, count: int) -> bytes:
        header, ends = self._index.header, self._index.ends
        if place < len(header):
            return header[place : place + count]
        number = bisect_right(ends, place)
        if self._current is None or self._current[0] != number:
            self._close_image()
            self._current = number, self._open_image(self._index.names[number])
        file = self._current[1]
        file.seek(place - (ends[number - 1] if number else len(header)))
        return file.read(min(count, ends[number] - place))

    def close(self) -> None:
        self._close_image()
        super().close()

    def _close_image(self) -> None:
        if self._current is not None:
            self._current[1].close()
        self._current = None
