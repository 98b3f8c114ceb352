"""Find the input files of a command, name its results, and write files atomically.

Also the version of a file's contents, to key caches by.
"""

import hashlib
import json
import math
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import glob, has_magic
from pathlib import Path
from typing import NamedTuple

from vidtok import archives
from vidtok.errors import UserError, VideoError
from vidtok.names import IMAGE_SUFFIXES, VIDEO_SUFFIXES, result_names

MOVIES = (".mp4", ".mov", ".mkv", ".gif", ".png")  # what a `VideoWriter` writes


@dataclass(frozen=True)
class Job:
    source: Path
    target: Path


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
        elif os.path.lexists(path) or archives.split_path(path):
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
    if {*archives.SUFFIXES} & {*suffixes} or not archives.is_archive(path):
        return [path]
    try:
        return archives.find_media(path, suffixes)
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


def plan_jobs(files: list[tuple[Path, Path]], output: str, suffix: str, suffixes: tuple[str, ...]) -> list[Job]:
    """Assign an output file to each result of `find_files`.

    The names in a folder are those of `vidtok.names.result_names`.

    Args:
        files: what `find_files` returned.
        output: a folder, which gets the tree below each input folder; or, for one input, a file with one of `suffixes`.
        suffix: suffix of the files in a folder.
        suffixes: legal suffixes of one output file.

    Raises:
        UserError: two results would get one name, a result would replace an input, or `output` is no legal file.
    """
    out = Path(output)
    ending = out.suffix.lower()
    one_file = ending in (".npz", *suffixes, *VIDEO_SUFFIXES, *IMAGE_SUFFIXES) and not out.is_dir()
    if (one_file and ending not in suffixes) or (out.is_file() and not one_file):
        raise UserError(f"-o {output}: give a folder, or a file in {', '.join(suffixes)}")
    if one_file and len(files) > 1:
        raise UserError(f"-o {output} is one file, and there are {len(files)} inputs: give a folder")
    names = result_names(((below.as_posix(), file) for file, below in files), suffix)
    jobs = [Job(file, out if one_file else out / names[below.as_posix()]) for file, below in files]
    owners: dict[Path, Path] = {}
    sources = {file.resolve() for file, _ in files}
    for job in jobs:
        if (other := owners.setdefault(job.target, job.source)) != job.source:
            raise UserError(f"{other} and {job.source} would both become {job.target}")
        if job.target.resolve() in sources:
            raise UserError(f"{job.target} is one of the inputs: give another -o")
    return jobs


def _fixed_parts(pattern: Path) -> Iterable[str]:
    """Yield the folders before the first wildcard."""
    for part in pattern.parts[:-1]:
        if has_magic(part):
            return
        yield part


def validate_output(path: str | None, force: bool) -> None:
    """Raise UserError if a result exists and isn't to be overwritten, or its folder can't be written."""
    if path is None:
        return
    if Path(path).exists() and not force:
        raise UserError(f"{path} exists: --force overwrites it")
    folder = next(parent for parent in Path(path).absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{path} can't be written: {folder} is no folder that takes new files")


def write_json(path: str | os.PathLike, value: Mapping) -> None:
    """Write a JSON file atomically; missing folders are made.

    JSON has no infinity and no NaN: they become the strings "inf", "-inf" and "nan".
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def temporary_path(path: str | os.PathLike, suffix: str = "", locked: bool = False) -> Path:
    """Name a file to be written beside `path` and renamed to it, so that `path` is complete or not there at all.

    The name is hidden and short, however long that of `path` is: file systems limit names, most to 255 bytes.

    Args:
        suffix: of the temporary file, for writers that choose the format by it.
        locked: a lock keeps other processes from writing `path`. The name is always the same then, so that the next
            write replaces what a killed process left.
    """
    path = Path(path)
    name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    return path.with_name(f".{name}{'' if locked else f'.{os.getpid()}'}.part{suffix}")


@contextmanager
def replacing(path: str | os.PathLike, locked: bool = False) -> Iterator[Path]:
    """Yield the `temporary_path` to write to; rename it to `path` after the block, or remove it after an error."""
    part = temporary_path(path, locked=locked)
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


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
    """Return the version of a file, or of a member of an archive (`vidtok.archives`).

    Raises:
        VideoError: no such file.
    """
    try:
        status = os.stat(path)
    except OSError as e:
        if isinstance(e, NotADirectoryError) and (found := archives.find_member(path)) is not None:
            archive, member = found
            status = os.stat(archive)
            return FileVersion(os.path.realpath(path), member.size, status.st_mtime_ns, status.st_ino)
        raise VideoError(path, "no such file" if isinstance(e, FileNotFoundError) else e.strerror or str(e)) from e
    return FileVersion(os.path.realpath(path), status.st_size, status.st_mtime_ns, status.st_ino)


def check_unchanged(path: str | Path, version: FileVersion) -> None:
    """Raise VideoError if the file at `path` is no longer the one of `version`."""
    if file_version(path) != version:
        raise VideoError(path, "the file changed while it was read: read it again")
