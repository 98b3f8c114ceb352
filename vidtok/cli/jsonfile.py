"""Results as JSON files."""

import json
import os
from pathlib import Path

from vidtok.cli.error import UserError


def refuse_existing(path: str | None, force: bool) -> None:
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
    """Writes a JSON file; it appears complete or not at all. Missing folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(value, indent=2) + "\n")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
