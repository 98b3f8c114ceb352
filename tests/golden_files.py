"""Read what the jobs of `golden.py` have written, and compare it field by field."""

import json
import math
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from io import BytesIO
from pathlib import Path

import numpy as np
import torch


@dataclass(frozen=True)
class Rules:
    """What is compared of a file, and under which name.

    Attributes:
        renamed: table -> [(regular expression, replacement)]: of "fields" ("file:key.key") and of text "values".
        ignored: matches whole keys that are left out.
        skipped: glob patterns of files that are left out.
    """

    renamed: Mapping[str, Sequence[tuple[str, str]]]
    ignored: re.Pattern
    skipped: Sequence[str]

    def rename(self, table: str, text: str) -> str:
        for pattern, new in self.renamed[table]:
            text = re.sub(pattern, new, text)
        return text

    def is_ignored(self, key: str) -> bool:
        return any(self.ignored.fullmatch(part) for part in key.split("."))


def read_job(folder: Path, name: str, stdout: bool, rules: Rules) -> dict[str, dict[str, object]]:
    """Everything that the job of that name left in the folder of a version: kind -> field -> array, number or text.

    stdout: with the lines that it printed.
    """
    found: dict[str, dict[str, object]] = {}
    paths = sorted(path for path in (folder / name).rglob("*") if path.is_file())
    for path in [*paths, *([folder / "logs" / f"{name}.out"] if stdout else [])]:
        file = path.relative_to(folder).as_posix()
        if any(fnmatch(file, pattern) for pattern in rules.skipped):
            continue
        for kind, key, value in read_file(path):
            # The names of TensorBoard's files hold times.
            place, _, key = rules.rename("fields", f"{path.parent.name if kind == 'losses' else file}:{key}").partition(
                ":"
            )
            if not rules.is_ignored(key):
                value = rules.rename("values", value) if isinstance(value, str) else value
                found.setdefault(kind, {})[f"{place}:{key}"] = value
    return found


def read_file(path: Path) -> Iterator[tuple[str, str, object]]:
    """(kind of content, key, value), nothing of files of other kinds."""
    suffix = path.suffix
    if path.name.startswith("events.out.tfevents"):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(path), {"scalars": 0, "images": 1}).Reload()
        for tag in events.Tags()["scalars"]:
            scalars = events.Scalars(tag)
            yield "losses", tag, np.array([(scalar.step, scalar.value) for scalar in scalars])
    elif suffix == ".safetensors":
        from safetensors.torch import load_file

        yield from (("weights", key, to_numpy(tensor)) for key, tensor in load_file(path).items())
    elif suffix == ".pt":
        for key, value in flatten(torch.load(path, map_location="cpu", weights_only=True)):
            yield "weights", key, to_numpy(value) if isinstance(value, torch.Tensor) else value
    elif suffix == ".npz":
        yield from read_npz(path)
    elif suffix == ".tar":
        with tarfile.open(path) as tar:
            for member in tar:
                data, key = tar.extractfile(member).read(), member.name
                values = read_npz(BytesIO(data)) if key.endswith(".npz") else read_json(data.decode())
                yield from (("records", f"{key}.{inner}", value) for _, inner, value in values)
    elif suffix == ".parquet":
        import pyarrow.parquet as pq

        for i, row in enumerate(pq.read_table(path).to_pylist()):
            yield from (("records", f"{i}.meta.{key}", value) for _, key, value in read_json(row.pop("meta")))
            yield from (("records", f"{i}.{k}", np.array(v) if isinstance(v, list) else v) for k, v in row.items())
    elif suffix == ".json":
        yield from read_json(path.read_text())
    elif suffix == ".yaml":
        from omegaconf import OmegaConf

        settings = OmegaConf.to_container(OmegaConf.load(path))
        yield from (("settings", key, value) for key, value in flatten(settings))
    elif suffix in (".csv", ".out"):
        for i, line in enumerate(path.read_text().splitlines()):
            if line.startswith("{"):
                yield from (("result", f"{i}.{key}", value) for _, key, value in read_json(line))
            else:
                yield "result", str(i), line
    elif suffix in (".mp4", ".png", ".gif"):
        import av

        with av.open(str(path)) as container:
            for i, frame in enumerate(container.decode(video=0)):
                yield "videos" if suffix == ".mp4" else "pictures", str(i), frame.to_ndarray(format="rgb24")


def read_npz(file: Path | BytesIO) -> Iterator[tuple[str, str, object]]:
    with np.load(file) as arrays:
        for key, value in arrays.items():
            if key == "meta":
                yield from (("records", f"meta.{inner}", found) for _, inner, found in read_json(str(value)))
            else:
                yield "records", key, value


def read_json(text: str) -> Iterator[tuple[str, str, object]]:
    for key, value in flatten(json.loads(text)):
        yield "settings" if key.startswith("config.") else "result", key, value


def flatten(value: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict | list | tuple) and value:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flatten(item, f"{prefix}{'.' if prefix else ''}{key}")
    else:
        yield prefix, value


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def difference(a: object, b: object) -> float:
    """0 for what is identical to the bit, else the largest difference; infinite where there is none to be had."""
    if not all(isinstance(x, int | float | np.ndarray) and not isinstance(x, bool) for x in (a, b)):
        return 0.0 if type(a) is type(b) and a == b else math.inf
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype.kind not in "fiub" or b.dtype.kind not in "fiub":
        return 0.0 if a.dtype == b.dtype and a.tolist() == b.tolist() else math.inf
    if a.dtype == b.dtype and a.tobytes() == b.tobytes():
        return 0.0
    gap = np.abs(a.astype(np.float64) - b.astype(np.float64))[~((a == b) | (np.isnan(a) & np.isnan(b)))]
    worst = float(gap.max(initial=0.0))
    return math.inf if math.isnan(worst) else worst or 5e-324  # of another type, or -0.0


def compare(old: dict[str, object], new: dict[str, object]) -> tuple[float, str, int]:
    """(largest difference, the field that has it, number of fields that differ)."""
    missing = object()
    found = {key: difference(old.get(key, missing), new.get(key, missing)) for key in {**old, **new}}
    worst = max(found, key=found.get)
    shown = "".join(f", {short(fields.get(worst, 'missing'))}" for fields in (old, new))
    return found[worst], f"{worst}{shown}", sum(value > 0 for value in found.values())


def short(value: object) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else str(value)[:40]


def tolerance_of(item: str, given: Sequence[str]) -> float:
    """The value of the last ITEM=VALUE whose pattern the item matches, or 0."""
    pairs = [text.rpartition("=") for text in given]
    return next((float(value) for pattern, _, value in reversed(pairs) if fnmatch(item, pattern)), 0.0)


Row = tuple[str, str, str, bool]  # item, outcome, details, whether it is bad


def compare_job(name: str, old: dict, new: dict, tolerances: Sequence[str]) -> list[Row]:
    """The items of one job, as `read_job` found them in the two folders."""
    if not old and not new:
        return [(name, "FAILED", "it wrote nothing", True)]
    rows = []
    for kind in sorted({*old, *new}):
        item, a, b = f"{name} {kind}", old.get(kind, {}), new.get(kind, {})
        worst, where, count = compare(a, b)
        if worst == 0:
            rows.append((item, "identical", f"{len(a)} fields", False))
        else:
            allowed = worst <= tolerance_of(item, tolerances)
            outcome = f"{worst:.3g}{' (tolerated)' if allowed else ''}"
            rows.append((item, outcome, f"{count} of {len({**a, **b})} fields: {where}", not allowed))
    return rows


def print_rows(rows: Sequence[Row]) -> None:
    width, middle = (max(len(row[i]) for row in rows) for i in (0, 1))
    for item, outcome, details, _ in rows:
        print(f"{item:{width}}  {outcome:{middle}}  {details}".rstrip())
