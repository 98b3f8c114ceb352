"""Name the result files of a command, write files atomically, and send them to an address."""

import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vidtok.errors import UserError
from vidtok.inputs import walk_files
from vidtok.names import IMAGE_SUFFIXES, VIDEO_SUFFIXES, result_names
from vidtok.remote import ADDRESS, as_address, cache_folder, file_system, is_remote_file, request

MOVIES = (".mp4", ".mov", ".mkv", ".gif", ".png")  # suffixes of the formats of `VideoWriter`


@dataclass(frozen=True)
class Job:
    """One result to write.

    Attributes:
        source: the input file.
        target: the output file.
    """

    source: Path
    target: Path


def plan_jobs(files: list[tuple[Path, Path]], output: str, suffix: str, suffixes: tuple[str, ...]) -> list[Job]:
    """Assign an output file to each result of `vidtok.inputs.find_files`.

    The names in a folder are those of `vidtok.names.result_names`.

    Args:
        files: from `vidtok.inputs.find_files`.
        output: a folder, which mirrors the tree below each input folder; or, for one input, a file with one of
            `suffixes`.
        suffix: suffix of the files in a folder.
        suffixes: legal suffixes of one output file.

    Raises:
        UserError: two results would have the same name, a result would overwrite an input, or `output` is illegal, such
            as an address.
    """
    validate_local(output)
    out = Path(output)
    ending = out.suffix.lower()
    one_file = ending in (".npz", *suffixes, *VIDEO_SUFFIXES, *IMAGE_SUFFIXES) and not out.is_dir()
    if (one_file and ending not in suffixes) or (out.is_file() and not one_file):
        raise UserError(f"-o {output}: give a folder{', or a file in ' * bool(suffixes)}{', '.join(suffixes)}")
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


SECONDS = 5  # between two uploads
FIRST = "settings.json"  # uploaded first, since it describes the other files


class RemoteFolder:
    """Output folder at an address, with a local copy that a run writes to.

    On entering, the context manager downloads the files at the address. On leaving, also after an error, it uploads new
    files. A file is uploaded as a whole, after it is complete. The copy is kept, so that the next run uploads what a
    killed run has not. Processes on one machine may share an address. Several machines may not, because videos are
    locked in the local copy. As a path (`os.PathLike`) it is that copy.

    Args:
        url: the address.

    Attributes:
        url: the address.
        copy: the local folder, outputs/HASH below VIDTOK_CACHE, or below ~/.cache/vidtok if that is not set.

    Raises:
        UserError: nothing is written to addresses of this kind.
        VideoError: the address can't be read or written.
    """

    def __init__(self, url: str):
        validate_writable(url)
        if url.lower().endswith(".npz"):
            raise UserError(f"{url}: one .npz file is written to a path only: give a folder")
        self.url, (self._system, name) = url, file_system(url)
        self._name = name.rstrip("/")
        self.copy = cache_folder("outputs") / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
        self._sent: dict[str, tuple[int, int]] = {}  # {path below the folder: (size, modification time in ns)}
        self._looked = -math.inf

    def fetch(self, wanted: Callable[[str], bool] = lambda below: True) -> Path:
        """Download changed files to the copy and return it. The copy is emptied if the address has no results.

        wanted: called with the path of each file below the address; whether to download it.
        """
        self._system.invalidate_cache()  # other processes may have written to the address
        found = request(self.url, lambda: self._system.find(self._name, detail=True))
        root = self._name.strip("/")
        sizes = {entry.strip("/").removeprefix(root).strip("/"): info["size"] for entry, info in found.items()}
        if FIRST not in sizes:
            shutil.rmtree(self.copy, ignore_errors=True)
        self.copy.mkdir(parents=True, exist_ok=True)
        for below, size in sizes.items():
            path = self.copy / below
            if ".." in path.parts or not wanted(below):
                continue
            if below == FIRST or not path.is_file() or path.stat().st_size != size:
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as part:
                    source, target = f"{self._name}/{below}", str(part)
                    request(self.url, partial(self._system.get_file, source, target))
            self._sent[below] = self._mark(path)
        return self.copy

    def send(self) -> None:
        """Upload new and changed files, and remove deleted ones from the address."""
        paths = {Path(path).relative_to(self.copy).as_posix(): Path(path) for path in walk_files(self.copy, ("",))}
        for below in sorted(paths, key=lambda below: (below != FIRST, below)):
            if (mark := self._mark(paths[below])) != self._sent.get(below):
                request(self.url, partial(self._system.put_file, str(paths[below]), f"{self._name}/{below}"))
                self._sent[below] = mark
        for below in self._sent.keys() - paths.keys():
            request(self.url, partial(self._system.rm_file, f"{self._name}/{below}"))
            del self._sent[below]
        self._looked = time.monotonic()

    def reporting(self, progress: Callable[[Any], None]) -> Callable[[Any], None]:
        """Wrap a progress callback so that it also uploads new files, every `SECONDS` seconds."""

        def report(stats: Any) -> None:
            if time.monotonic() >= self._looked + SECONDS:
                self.send()
            progress(stats)

        return report

    def __enter__(self) -> "RemoteFolder":
        self.fetch()
        return self

    def __exit__(self, *exc: object) -> None:
        self.send()

    def __fspath__(self) -> str:
        return str(self.copy)

    @staticmethod
    def _mark(path: Path) -> tuple[int, int]:
        status = path.stat()
        return status.st_size, status.st_mtime_ns


def validate_local(output: str | os.PathLike) -> None:
    """Raise UserError if an output is an address."""
    if (url := as_address(output)) is not None:
        raise UserError(f"{url}: only extract, encode, compress and check write to addresses: give a path")


def validate_writable(url: str) -> None:
    """Raise UserError for an address of a kind that nothing is written to."""
    if url.startswith("http"):
        raise UserError(f"{url}: nothing is written to addresses of http: give a path or another address (s3, gs)")


def validate_output(path: str | None, force: bool, remote: bool = False) -> None:
    """Raise UserError if `path` exists and `force` is not set, or if its folder is not writable.

    remote: whether an address is legal. It is written by `replacing`.
    """
    if path is None:
        return
    url = as_address(path)
    if url is not None:
        if not remote:
            validate_local(path)
        validate_writable(url)
    if (Path(path).exists() if url is None else is_remote_file(url)) and not force:
        raise UserError(f"{url or path} exists: --force overwrites it")
    if url is not None:
        return
    folder = next(parent for parent in Path(path).absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{path} can't be written: {folder} is no folder that takes new files")


def write_json(path: str | os.PathLike, value: Mapping) -> None:
    """Write a JSON file atomically, and create missing folders.

    JSON has no infinity and no NaN: they are written as the strings "inf", "-inf" and "nan".
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def temporary_path(path: str | os.PathLike, suffix: str = "", locked: bool = False) -> Path:
    """Return a temporary path beside `path` for an atomic write: write to it, then rename it to `path`.

    The name is hidden, and short even if that of `path` is long: most file systems limit names to 255 bytes.

    Args:
        suffix: suffix of the temporary file, for writers that choose the format by it.
        locked: whether a lock keeps other processes from writing `path`. The name is then always the same, so that the
            next write replaces what a killed process left.
    """
    path = Path(path)
    name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    return path.with_name(f".{name}{'' if locked else f'.{os.getpid()}'}.part{suffix}")


@contextmanager
def replacing(path: str | os.PathLike, locked: bool = False) -> Iterator[Path]:
    """Yield the `temporary_path` to write to; rename it to `path` after the block, or delete it after an error.

    For an address, yield a path in a temporary folder, and upload the file after the block.
    """
    if ADDRESS.match(os.fspath(path)):
        with _uploading(str(as_address(path))) as part:
            yield part
        return
    part = temporary_path(path, locked=locked)
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _uploading(url: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder, "part")
        yield part
        system, name = file_system(url)
        request(url, partial(system.put_file, str(part), name))


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
