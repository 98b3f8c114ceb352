"""Virtual input files: members of archives (`vidtok.archives`), and folders of numbered images as one video.

`DIR/@25` is the video whose frames are the numbered images in DIR, at 25 frames per second; DIR may be in an archive or
at an address. Images are neither copied nor decoded here. The virtual file is a QuickTime file: an index that is made
in memory, followed by the bytes of the images.
"""

import io
import os
import struct
import zlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from typing import BinaryIO, NamedTuple

from PIL import Image

from vidtok.archives import archive_version, find_member, members, open_member, split_path
from vidtok.errors import VideoError
from vidtok.names import FRAMES, IMAGE_SUFFIXES, order_frames
from vidtok.remote import FileVersion, Pieces, as_address, is_remote_folder, list_remote, modification, open_remote


def open_virtual(path: str | os.PathLike) -> BinaryIO | None:
    """Open a member of an archive or a folder of frames as a seekable binary file; None for other paths.

    Raises:
        VideoError: it can't be opened or unpacked, or is a compressed member larger than `MAX_UNPACKED`.
    """
    version = virtual_version(path)
    if version is not None and (place := split_frames(path)) is not None:
        index = _frame_index(*place, version)
        return io.BufferedReader(FrameFile(index, _image_opener(place[0])), 1 << 18)
    return open_member(path)


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
        return FileVersion(as_address(path) or os.path.realpath(path), size, modified, names)
    if (found := find_member(path)) is None:
        return None
    archive = archive_version(found[0])
    return archive._replace(path=as_address(path) or os.path.realpath(path), size=found[1].size)


def is_virtual(path: str | os.PathLike) -> bool:
    """Return whether a path is that of an archive member or of a folder of frames."""
    if (place := split_frames(path)) is not None:
        url = as_address(place[0])
        is_folder = os.path.isdir(place[0]) if url is None else is_remote_folder(url)
        return is_folder or split_path(f"{place[0]}/") is not None
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
    """Return {name: (size in bytes, modification time in ns)} of the images in a folder, see `FileVersion`.

    The folder may be in an archive or at an address.
    """
    if (place := split_path(f"{folder}/")) is not None:
        modified = archive_version(place[0]).modified
        inside = {os.path.split(name): member.size for name, member in members(place[0]).items()}
        found = {name: (size, modified) for (below, name), size in inside.items() if below == place[1].rstrip("/")}
    elif (url := as_address(folder)) is not None:
        files = {name: info for name, info in list_remote(url).items() if info["type"] == "file"}
        found = {name: (info["size"], modification(info)) for name, info in files.items()}
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
        url = as_address(path)
        return open_member(path) or (open(path, "rb") if url is None else open_remote(url))

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
