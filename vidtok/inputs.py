"""Find and open input files: local files, files at addresses, archive members and frame folders; file versions.

`vidtok.remote` reads files at addresses, `vidtok.archives` archive members and `vidtok.virtual_files` frame folders.
"""

import os
import warnings
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fnmatch import fnmatchcase
from glob import glob, has_magic
from pathlib import Path
from typing import BinaryIO

from vidtok.archives import ARCHIVES, COMPRESSED, INSIDE, find_members, is_archive, members, split_path
from vidtok.errors import UserError, VideoError
from vidtok.names import FRAMES, IMAGE_SUFFIXES, VIDEO_SUFFIXES
from vidtok.remote import (
    ADDRESS,
    FileVersion,
    as_address,
    file_system,
    is_remote_file,
    is_remote_folder,
    list_remote,
    open_remote,
    remote_version,
    request,
    without_query,
)
from vidtok.virtual_files import as_frames, is_virtual, open_virtual, virtual_version

HEAD = 4096  # leading bytes of a file, from which its type is detected
LISTINGS = 16  # remote archives listed at a time


def validate_no_archive(path: str | os.PathLike) -> None:
    """Raise VideoError if the path is that of an archive, not of a video."""
    if is_archive(path):
        raise VideoError(os.fspath(path), f"an archive of {len(members(path))} files: give ARCHIVE/NAME of one of them")
    if without_query(path).lower().endswith(COMPRESSED):
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
        if (file := open_virtual(path)) is not None:
            return file
        if (url := as_address(path)) is not None:
            return open_remote(url)
        raise


def exists(path: str | os.PathLike) -> bool:
    """Return whether a file, folder, address, archive member or folder of frames exists."""
    if is_virtual(path):
        return True
    if (url := as_address(path)) is not None:
        return is_remote_file(url) or is_remote_folder(url)
    return os.path.exists(path)


def is_file(path: str | os.PathLike) -> bool:
    """Return whether a path is that of a file: on this machine, at an address or in an archive.

    Raises:
        VideoError: an address can't be looked up, or an archive can't be read.
    """
    url = as_address(path)
    return os.path.isfile(path) or is_virtual(path) or (url is not None and is_remote_file(url))


def subfolders(path: str | os.PathLike) -> list[str]:
    """List the names of the folders directly in a folder, an archive, or a folder in one, sorted; [] for other paths.

    Raises:
        VideoError: an address or archive can't be read.
    """
    if (place := split_path(f"{os.fspath(path)}/")) is not None:
        archive, inside = place
        below = [name.removeprefix(inside).split("/") for name in members(archive) if name.startswith(inside)]
        return sorted({parts[0] for parts in below if len(parts) > 1})
    if (url := as_address(path)) is not None:
        return sorted(name for name, info in list_remote(url).items() if info["type"] == "directory")
    return sorted(entry.name for entry in Path(path).iterdir() if entry.is_dir()) if os.path.isdir(path) else []


def _find_remote(url: str, suffixes: tuple[str, ...]) -> list[tuple[Path, Path]]:
    """List the files at an address, and in archives there, as `find_files` does.

    Raises:
        VideoError: a folder or pattern can't be listed.
    """
    files, is_pattern = _list_matches(url.rstrip("/"), suffixes)
    if {*ARCHIVES} & {*suffixes} or not any(_is_named_archive(file) for file, _ in files):
        return files
    with ThreadPoolExecutor(LISTINGS) as pool:
        unfolded = [*pool.map(lambda file: _unfold(file, suffixes) if _is_named_archive(file) else [file], dict(files))]
    found: list[tuple[Path, Path]] = []
    for (file, below), inside in zip(files, unfolded, strict=True):
        for each in inside:
            member = each.relative_to(file)
            found.append((each, below / member if is_pattern or each == file else member))
    return found


def index_archives(paths: Iterable[str | None]) -> None:
    """Read the indexes of the remote archives that paths lead into, which can take longer than one video may.

    Workers find them in the cache. Errors are left to those who read the members.
    """

    def index(archive: str) -> None:
        with suppress(VideoError, UserError):
            members(archive)

    remote = [path for path in paths if path is not None and ADDRESS.match(path)]
    found = {path[: match.end()] for path in remote if (match := INSIDE.search(path))}
    with ThreadPoolExecutor(LISTINGS) as pool:
        deque(pool.map(index, found), maxlen=0)


def _is_named_archive(path: Path) -> bool:
    return without_query(path).lower().endswith(ARCHIVES)


def _list_matches(url: str, suffixes: tuple[str, ...]) -> tuple[list[tuple[Path, Path]], bool]:
    """Return (files at an address, whether it is a pattern).

    An http address is always one file, since http has no folders. So is an address that can't be looked up; reading it
    then raises the error.
    """
    system, name = file_system(url)
    if not url.startswith("http") and has_magic(name):
        root = "/".join(_fixed_parts(Path(name)))
        names = request(url, lambda: system.glob(name))
    elif is_remote_folder(url):
        root = name.rstrip("/")
        listed = [entry for entry in request(url, lambda: system.find(name)) if entry.lower().endswith(suffixes)]
        names = [entry for entry in listed if not any(p.startswith(".") for p in entry.removeprefix(root).split("/"))]
    else:
        plain = FRAMES.sub("", name.split("?")[0] if url.startswith("http") else name)
        return [(Path(url), Path(plain.rpartition("/")[2]))], False
    root = root.strip("/")
    below = {entry: entry.strip("/").removeprefix(root).strip("/") for entry in sorted(names)}
    found = [(Path(system.unstrip_protocol(entry)), Path(rest)) for entry, rest in below.items()]
    return found, has_magic(name)


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
            is_here = ADDRESS.match(str(file)) is None
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
    is_other = path.suffix.lower() not in ARCHIVES and ADDRESS.match(str(path)) is None
    if is_other or {*ARCHIVES} & {*suffixes}:
        return [path]
    try:
        return find_members(path, suffixes) if is_archive(path) else [path]
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
        # NotADirectoryError: a parent of the path is a file, which may be an archive.
        if isinstance(e, FileNotFoundError | NotADirectoryError) and (found := virtual_version(path)) is not None:
            return found
        if (url := as_address(path)) is not None:
            return remote_version(url)
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
    name = without_query(path) if ADDRESS.match(str(path)) else path.name
    if name.lower().endswith((*ARCHIVES, *COMPRESSED)):
        validate_no_archive(path)
    with open_binary(path) as file:
        return file.read(HEAD)
