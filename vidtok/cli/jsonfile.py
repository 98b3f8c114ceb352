"""Results as JSON files."""

import json
import math
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
