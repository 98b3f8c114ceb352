"""What IN... and -o mean: the files to work on and where each one's result goes.

Results as JSON files.
"""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

from vidtok.errors import UserError

MOVIES = (".mp4", ".mov", ".mkv", ".gif", ".png")  # what a `VideoWriter` writes


@dataclass(frozen=True)
class Job:
    source: Path
    target: Path


def find_videos(inputs: Iterable[str]) -> list[tuple[Path, Path]]:
    """`find_files` for videos. Images are taken where they are named, not out of folders."""
    from vidtok.datasets.decode import VIDEO_SUFFIXES

    return find_files(inputs, VIDEO_SUFFIXES)


def find_files(inputs: Iterable[str], suffixes: tuple[str, ...]) -> list[tuple[Path, Path]]:
    """(file, its path below the folder it was found in) of files, folders and glob patterns.

    A file that is named is taken whatever its suffix; a folder, searched recursively, gives those with one of
    `suffixes`. Nothing is taken twice.

    Raises:
        UserError: for an input that doesn't exist or matches nothing.
    """
    found: dict[Path, Path] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            files = [(f, f.relative_to(path)) for f in _walk(path, suffixes)]
            nothing = f"{text}: no {'/'.join(suffixes[:3])} file in this folder"
        elif path.exists():
            files, nothing = [(path, Path(path.name))], ""
        elif has_magic(text):
            root = Path(*_fixed_parts(path))
            files = [(f, f.relative_to(root)) for f in map(Path, sorted(glob(text, recursive=True))) if f.is_file()]
            nothing = f"{text}: no file matches"
        else:
            files, nothing = [], f"{text}: no such file or folder"
        if not files:
            raise UserError(nothing)
        for file, below in files:
            found.setdefault(file.absolute(), below)
    # The paths as the user wrote them read better than absolute ones.
    here = Path.cwd()
    return [(f.relative_to(here) if f.is_relative_to(here) else f, below) for f, below in found.items()]


def plan_jobs(files: list[tuple[Path, Path]], output: str, suffix: str, suffixes: tuple[str, ...]) -> list[Job]:
    """Where the result of each of `find_files` goes.

    Args:
        output: a folder, which gets the tree below each input folder; or, for one input, a file with one of `suffixes`.
        suffix: of the files in a folder.

    Raises:
        UserError: where two results would get one name, or a result would replace an input.
    """
    from vidtok.datasets.decode import IMAGE_SUFFIXES, VIDEO_SUFFIXES

    out = Path(output)
    ending = out.suffix.lower()
    one_file = ending in (".npz", *suffixes, *VIDEO_SUFFIXES, *IMAGE_SUFFIXES) and not out.is_dir()
    if (one_file and ending not in suffixes) or (out.is_file() and not one_file):
        raise UserError(f"-o {output}: give a folder, or a file in {', '.join(suffixes)}")
    if one_file and len(files) > 1:
        raise UserError(f"-o {output} is one file, and there are {len(files)} inputs: give a folder")
    jobs = [Job(file, out if one_file else out / below.with_suffix(suffix)) for file, below in files]
    owners: dict[Path, Path] = {}
    sources = {file.resolve() for file, _ in files}
    for job in jobs:
        if (other := owners.setdefault(job.target, job.source)) != job.source:
            raise UserError(f"{other} and {job.source} would both become {job.target}")
        if job.target.resolve() in sources:
            raise UserError(f"{job.target} is one of the inputs: give another -o")
    return jobs


def _walk(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    return sorted(
        Path(where, name)
        for where, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(suffixes) and not name.startswith(".")
    )


def _fixed_parts(pattern: Path) -> Iterable[str]:
    """The folders before the first wildcard."""
    for part in pattern.parts[:-1]:
        if has_magic(part):
            return
        yield part


def validate_output(path: str | None, force: bool) -> None:
    """Raises UserError where a result would be overwritten unasked, or can't be written: before the work, not after
    it."""
    if path is None:
        return
    if Path(path).exists() and not force:
        raise UserError(f"{path} exists: --force overwrites it")
    folder = next(parent for parent in Path(path).absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{path} can't be written: {folder} is no folder that takes new files")


def write_json(path: str | os.PathLike, value: dict) -> None:
    """Writes a JSON file; it appears complete or not at all. Missing folders are made. JSON has no infinity and no NaN:
    those become the strings "inf", "-inf" and "nan"."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
