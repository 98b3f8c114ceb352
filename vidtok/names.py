"""Suffixes of media files, names of numbered frames, and names of results.

A result is named after its video. A video has the same result name in every run:

    sub/clip.mp4                            sub/clip.npz
    clip.mp4 and clip.webm in one folder    clip.mp4.npz, clip.webm.npz, even if only one of them is an input
    /data/clip.mp4, ../data/clip.mp4        data/clip.npz
    clip-\\xe9.mp4 (not UTF-8)               clip-%xE9.npz
    .clip.mp4, .hidden/clip.mp4             %x2Eclip.npz, %x2Ehidden/clip.npz: readers skip hidden files
    a name of more than 255 bytes           its beginning, and a hash of the whole name
    two names that would still be equal     clip-d18e8a1f.npz: each with a hash

Ids are escaped in the same way (`escape_name`), so that every container, table and console can hold them.
"""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from vidtok.errors import VideoError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv", ".asf",
    ".flv", ".3gp", ".ogv", ".vob", ".y4m", ".h264", ".264", ".hevc", ".265",
)  # fmt: skip
MEDIA_SUFFIXES = VIDEO_SUFFIXES + IMAGE_SUFFIXES
NAME_BYTES = 255  # limit for one file or folder on nearly every file system

# DIR/@25: the images in DIR as a video at 25 frames per second, see `vidtok.virtual_files`.
FRAMES = re.compile(r"[/\\]@(\d+(?:\.\d+)?)$")

_NUMBERED = re.compile(r"(.*?)(\d+)(\.[^.]+)", re.DOTALL)
_SAME = {".jpeg": ".jpg", ".tiff": ".tif"}

# Control characters, and the surrogates that Python decodes non-UTF-8 bytes to.
_ODD = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_ESCAPED = re.compile(r"%x([0-9A-F]{2})")


def escape_name(name: str) -> str:
    """Escape a file name or path so that it is one line of text in any Unicode encoding.

    Control characters and bytes that are not UTF-8 become %x and two hexadecimal digits, such as `%xE9`. If the name
    already contains such an escape, its % becomes %x25. Other names are unchanged.
    """
    return printable(_ESCAPED.sub(r"%x25x\1", name))


def unescape_name(text: str) -> str:
    """Invert `escape_name`."""
    data = _ESCAPED.sub(lambda match: chr(int(match[1], 16) + (0xDC00 if match[1] >= "80" else 0)), text)
    return _bytes(data).decode("utf-8", "surrogateescape")


def without_suffix(path: str) -> str:
    """Return the path of a video without its suffix; for a folder of numbered frames, the folder."""
    return FRAMES.sub("", path) if FRAMES.search(path) else os.path.splitext(path)[0]


def spellings(name: str) -> tuple[str, ...]:
    """Return the possible spellings on disk of a path that an annotation file calls `name`.

    `name` may have Windows separators or the escapes of `escape_name`. On disk, accents may be composed or decomposed
    (macOS decomposes them).
    """
    name = unescape_name(name).replace("\\", "/")
    return name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)


def escape_bytes(data: bytes) -> str:
    """Decode UTF-8; escape invalid bytes as `escape_name` does."""
    return _NOT_UTF8.sub(lambda match: f"%x{ord(match[0]) - 0xDC00:02X}", data.decode("utf-8-sig", "surrogateescape"))


def printable(text: str) -> str:
    """Escape text for a message as `escape_name` does, but leave existing escapes, since messages are not parsed."""

    def escape(match: re.Match) -> str:
        return "".join(f"%x{byte:02X}" for byte in _bytes(match[0]))

    return _ODD.sub(escape, text)


def _bytes(text: str) -> bytes:
    """Encode as UTF-8, including the lone surrogates that Windows allows in names."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def order_frames(path: str, names: Iterable[str]) -> list[str]:
    """Sort the images of a folder by their numbers.

    Args:
        path: the folder, for errors.
        names: names of all images in it, at least one.

    Raises:
        VideoError: an image has no number, images are of several series or formats, or a number is missing.
    """
    numbers: dict[int, str] = {}
    series: dict[tuple[str, str], str] = {}
    for name in sorted(names):
        match = _NUMBERED.fullmatch(name)
        if match is None:
            raise VideoError(path, f"{name} has no number at its end: frames are named as 0001.jpg, 0002.jpg, ...")
        prefix, number, suffix = match[1], int(match[2]), match[3].lower()
        series.setdefault((prefix, _SAME.get(suffix, suffix)), name)
        if len(series) > 1:
            one, another, *_ = series.values()
            raise VideoError(path, f"{one} and {another} are of two series: a folder holds the frames of one video")
        if number in numbers:
            raise VideoError(path, f"{numbers[number]} and {name} are both frame {number}")
        numbers[number] = name
    first, last = min(numbers), max(numbers)
    if absent := last - first + 1 - len(numbers):
        gap = next(number for number in range(first, last) if number not in numbers)
        more = f", and {absent - 1} more" if absent > 1 else ""
        raise VideoError(path, f"frame {gap} is missing{more}: it holds {numbers[first]} to {numbers[last]}")
    return [numbers[number] for number in sorted(numbers)]


def hash_name(name: str, digits: int = 8) -> str:
    """Hash a name to hexadecimal digits."""
    return hashlib.sha256(_bytes(name)).hexdigest()[:digits]


def result_candidates(id: str, suffix: str) -> list[str]:
    """Return the paths, relative to the folder of results, that the result of a video may have.

    Args:
        id: id of the video, such as its path below the folder it was found in. Parts that would lead out of the folder
            of results are dropped.
        suffix: suffix of the result.

    Returns:
        Three paths: with `suffix` in place of the video's suffix, with `suffix` after it, and with a hash of the id.
    """
    return [_result_name(id, suffix, number) for number in range(3)]


def _result_name(id: str, suffix: str, number: int) -> str:
    """Return candidate `number` of `result_candidates`."""
    parts = [part for part in id.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    if parts and re.fullmatch("[A-Za-z]:", parts[0]):  # a drive of Windows
        del parts[0]
    *folders, name = parts or [hash_name(id)]
    stem, ending = os.path.splitext(name)
    if number != 1 and ending.lower() in (*MEDIA_SUFFIXES, ".npz"):
        name = stem
    if number == 2:
        name = f"{name}-{hash_name(id)}"
    return "/".join([*map(_fit, folders), _fit(name, suffix)])


def result_names(videos: Iterable[tuple[str, str | os.PathLike | None]], suffix: str) -> dict[str, str]:
    """Choose distinct names for the results of videos; see the module docstring for the rules.

    Args:
        videos: (id, file or None) of each.
        suffix: suffix of the results.

    Returns:
        {id: path below the folder of results, with "/"}.
    """
    names: dict[str, str] = {}
    twins: dict[str, set[str]] = {}  # by folder
    for id, file in videos:
        folder, name = os.path.split(file or "")
        if file and folder not in twins:
            twins[folder] = _find_twins(folder)
        names[id] = _result_name(id, suffix, int(bool(file) and name in twins[folder]))
    for number in (1, 2):
        shared, folders = Counter(names.values()), _folders(names.values())
        for id, name in names.items():
            if shared[name] > 1 or name in folders:
                names[id] = _result_name(id, suffix, number)
    return names


def _folders(names: Iterable[str]) -> set[str]:
    """Return all folders in the paths `names`."""
    found: set[str] = set()
    for name in names:
        while (name := name.rpartition("/")[0]) and name not in found:
            found.add(name)
    return found


def _find_twins(folder: str) -> set[str]:
    """Find the files in a folder whose results would have the same name.

    These are videos that differ only in the suffix, and images that differ only in the suffix from a video or another
    image.
    """
    try:
        with os.scandir(folder or ".") as listing:
            files = (entry for entry in listing if entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path))
            split = [os.path.splitext(entry.name) for entry in files]
    except OSError:  # missing or not readable, like its videos
        return set()
    videos = Counter(stem for stem, ending in split if ending.lower() in VIDEO_SUFFIXES)
    images = Counter(stem for stem, ending in split if ending.lower() in IMAGE_SUFFIXES)
    return {stem + ending for stem, ending in split if ending.lower() in VIDEO_SUFFIXES and videos[stem] > 1} | {
        stem + ending for stem, ending in split if ending.lower() in IMAGE_SUFFIXES and videos[stem] + images[stem] > 1
    }


def _fit(part: str, suffix: str = "") -> str:
    """Make one part of a path legal on file systems and not hidden."""
    part = printable(part)
    if part.startswith("."):
        part = f"%x2E{part[1:]}"
    if len((part + suffix).encode()) <= NAME_BYTES:
        return part + suffix
    kept = part.encode()[: NAME_BYTES - len(suffix) - 9].decode(errors="ignore")
    return f"{kept}-{hash_name(part)}{suffix}"
