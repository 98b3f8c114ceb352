"""Clips and what they are encoded to, kept in a folder so that a comparison can go on where it was stopped."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .labelled_clips import ClipSet

FACTS = "depends_on.json"


def hold_to(folder: Path, facts: Mapping) -> None:
    """Notes in a folder what its content depends on. Raises ValueError where it was filled with other facts, or can't
    be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder} can't be made ({error.strerror}): give another run=") from error
    file, text = folder / FACTS, json.dumps(facts, indent=2, sort_keys=True) + "\n"
    if file.exists():
        old, new = json.loads(file.read_text()), json.loads(text)
        if others := [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]:
            raise ValueError(f"{folder} was filled with another {others[0]} ({old.get(others[0])}): give another run=")
    part = _part_of(file)
    part.write_text(text)
    part.replace(file)


class ClipStore:
    """A folder of safetensors files, one for each thing. facts: what they depend on, see `hold_to`."""

    def __init__(self, folder: Path, facts: Mapping):
        self.folder = folder
        hold_to(folder, facts)

    def clips(self, name: str, load: Callable[[], ClipSet]) -> ClipSet:
        """The clips of that name; loaded where they aren't there yet."""
        file, side = self.path(name), self.folder / f"{name}.json"
        if not side.exists():
            found = load()
            _save({"video": found.video}, file)
            keys = ("ids", "classes", "failures", "paths")
            facts = {key: getattr(found, key) for key in keys} | {"labels": found.labels.tolist()}
            part = _part_of(side)
            part.write_text(json.dumps(facts))
            part.replace(side)
            return found
        known = json.loads(side.read_text())
        labels = np.array(known.pop("labels"))
        return ClipSet(load_file(file)["video"], labels, **known)

    def array(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of that name; made where it isn't there yet."""
        if not self.path(name).exists():
            _save({"x": make()}, self.path(name))
        return load_file(self.path(name))["x"]

    def read(self, name: str, index: int) -> Tensor:
        """One clip's part of an array, read from disk."""
        with safe_open(self.path(name), "pt") as file:
            return file.get_slice("x")[index]

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    part = _part_of(path)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)
    part.replace(path)


def _part_of(file: Path) -> Path:
    """What becomes the file when it is whole; several processes may be at it."""
    return file.with_name(f".{file.name}.{os.getpid()}.part")
