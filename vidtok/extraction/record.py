"""The record: the features of one video, or of one clip of it, and all that is needed to know what they are.

Schema "vidtok.features/1". Every container holds the same fields; `npz`, `parquet` and `webdataset` beside this
module say where. Nothing is pickled, and nothing depends on the device.

    id          what the dataset calls the video; for plain files the path below the folder they were found in
    label       name of its class, or null; split: "train", "val", ... or null
    features    the array, laid out by `feature`:
                ids        unsigned integers [t, h, w], in the smallest type that holds the codebook
                codes      int8 [C, t, h, w], -1 and +1 (codebooks without signs: floats)
                latents    floats [C, t, h, w]: what the quantizer was given
                hidden     floats [C, t, h, w]: the encoder's features; with "pool": "mean" [C], their mean
                embedding  floats [C]: a trained head's features before its last layer
    timestamps  float64 [frames]: seconds from the first frame of the video, of the frames that were coded
    meta        the fields of `RecordMeta`

The one interface to all containers: what extraction needs of a writer, and what reading back needs of a reader.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, Protocol

import numpy as np

SCHEMA = "vidtok.features/1"
FEATURES = ("ids", "codes", "latents", "hidden", "embedding")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all records of one folder have in common; `settings.json` holds it.

    Attributes:
        feature: one of `FEATURES`.
        model: name of the tokenizer; weight_hash: of its weights (`VideoTokenizer.weight_hash`).
        precision: of the networks, "fp32" or "bf16".
        bits: log2 of the codebook size.
        stride: pixels per token in (time, height, width); the first frame has tokens of its own.
        dtype: of the array as stored, NumPy's name.
        pool: "mean" or None, a grid. head: the trained head as "name, weights hash", or None.
        resize: short side that was asked for in pixels, or None, native. crop: "center", "three" or None, all of it.
        resample: frames per second that were asked for, or None, native. max_frames: where videos are cut, or None.
        sampler: the clips that were asked for, or None, the whole video.
        tile: side of the spatial tiles in pixels, or None, whole frames.
        frame_folders: frames per second of the folders of numbered images that are videos, or None.
        pixels: reader and version of its resizing (`vidtok.datasets.decode.RESIZE_VERSION`), which determine pixels.
    """

    feature: str
    model: str
    weight_hash: str
    precision: str
    bits: float
    stride: tuple[int, int, int]
    dtype: str
    pool: str | None = None
    head: str | None = None
    resize: int | None = None
    crop: str | None = None
    resample: float | None = None
    max_frames: int | None = None
    sampler: str | None = None
    tile: int | None = None
    frame_folders: float | None = None
    pixels: str = "pyav/1"


@dataclass(frozen=True, kw_only=True)
class RecordMeta(Settings):
    """The settings, and what is of this video alone.

    Attributes:
        fps: of the coded frames (of a clip, their mean rate); frames: how many there are, padding not counted.
        size: (height, width) of the coded frames, padding not counted.
        coded_size: (height, width) with the padding at the right and the bottom, multiples of the stride.
        native_size, native_fps: of the source.
        source: file name of the video, without its folder, or "" where it is no file; of a folder of frames, its name.
        source_bytes: the file's size; of a folder of frames, that of all images.
        reader: what decoded it ("pyav", ...). reader_version: of its package, or "".
        bytes_per_token: of the array, before compression; None where it is pooled.
        missing: seconds, as in the timestamps, of frames of a damaged video that could not be decoded and are left out;
            suspect: of frames that may be predicted from those; damage: all of it in words, or "". See
            `vidtok.datasets.damage.Damage`.
        clip, clips: number of this clip (crops of one clip follow each other) and how many there are, or None.
    """

    fps: float
    frames: int
    size: tuple[int, int]
    coded_size: tuple[int, int]
    native_size: tuple[int, int]
    native_fps: float
    source: str
    source_bytes: int | None
    reader: str
    bytes_per_token: float | None
    clip: int | None = None
    clips: int | None = None
    reader_version: str = ""
    missing: tuple[float, ...] = ()
    suspect: tuple[float, ...] = ()
    damage: str = ""


@dataclass(frozen=True)
class Record:
    """One video or clip. features: the array as the module says. timestamps: float64 [frames], seconds."""

    id: str
    label: str | None
    split: str | None
    features: np.ndarray
    timestamps: np.ndarray
    meta: RecordMeta


def settings_of(description: dict) -> Settings:
    """Those in a `describe`, or in settings.json. Raises KeyError or TypeError where they are not all there."""
    return Settings(**_tuples({f.name: description[f.name] for f in fields(Settings) if f.name in description}))


def _tuples(description: dict) -> dict[str, Any]:
    """Lists as tuples: JSON knows none."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in description.items()}


def differences(ours: Settings, theirs: Settings) -> str:
    """ "size 64, not 128; ...": each setting that differs, or ""."""
    wanted, found = asdict(ours), asdict(theirs)
    return "; ".join(f"{name} {found[name]}, not {wanted[name]}" for name in wanted if wanted[name] != found[name])


def id_type(bits: float) -> np.dtype:
    """The smallest unsigned integer type that holds ids of a codebook of 2^bits codes."""
    return np.min_scalar_type(round(2**bits) - 1)


def describe(record: Record) -> dict:
    """All of a record but its arrays, as JSON takes it."""
    names = {"schema": SCHEMA, "id": record.id, "label": record.label, "split": record.split}
    return names | asdict(record.meta)


def parse_description(text: str) -> dict:
    """JSON of `describe`. Raises ValueError or KeyError where it is none, or of another schema."""
    description = json.loads(text)
    if (schema := description["schema"]) != SCHEMA:
        raise ValueError(f"its schema is {schema!r}, and this vidtok reads {SCHEMA!r}")
    if description.get("crop") == "centre":  # as earlier versions spelled it
        description["crop"] = "center"
    return description


def make_record(description: dict, features: np.ndarray, timestamps: np.ndarray) -> Record:
    """The inverse of `describe`, checked. Raises ValueError, KeyError or TypeError where it is none."""
    values = _tuples(description)
    del values["schema"]
    id, label, split = (values.pop(name) for name in ("id", "label", "split"))
    record = Record(id, label, split, features, timestamps, RecordMeta(**values))
    check_record(record)
    return record


def check_record(record: Record) -> None:
    """Raises ValueError where the array, the times and the sizes don't belong together."""
    meta, array, times = record.meta, record.features, record.timestamps
    if meta.feature not in FEATURES:
        raise ValueError(f"feature is one of {', '.join(FEATURES)}, not {meta.feature!r}")
    if array.dtype != np.dtype(meta.dtype) or 0 in array.shape:
        raise ValueError(f"{meta.feature} are {meta.dtype}, not {array.dtype} {list(array.shape)}")
    if times.dtype != np.float64 or times.shape != (meta.frames,):
        raise ValueError(f"{times.dtype} {list(times.shape)} timestamps for {meta.frames} frames")
    outside = meta.clip is not None and meta.clips and not 0 <= meta.clip < meta.clips
    if outside or (meta.clip is None) != (meta.clips is None):
        raise ValueError(f"no clip {meta.clip} of {meta.clips}")
    if meta.feature == "embedding" or meta.pool is not None:
        if array.ndim != 1:
            raise ValueError(f"pooled features are [C], not {list(array.shape)}")
        return
    if array.ndim != (3 if meta.feature == "ids" else 4):
        raise ValueError(f"{meta.feature} of shape {list(array.shape)} are no grid")
    _check_grid(array.shape[-3:], meta)
    if meta.feature == "ids" and (array.dtype.kind not in "iu" or array.max() >= round(2**meta.bits)):
        raise ValueError(f"ids lie in 0 .. 2^{meta.bits:g} - 1, not {array.min()} .. {array.max()} ({array.dtype})")


def _check_grid(grid: tuple[int, int, int], meta: RecordMeta) -> None:
    (t, h, w), (s_t, s_h, s_w) = grid, meta.stride
    if tuple(meta.coded_size) != (s_h * h, s_w * w):
        raise ValueError(f"a grid of {h} x {w} tokens doesn't make frames of {meta.coded_size}")
    padding = (meta.coded_size[0] - meta.size[0], meta.coded_size[1] - meta.size[1])
    if not (0 <= padding[0] < s_h and 0 <= padding[1] < s_w):
        raise ValueError(f"frames of {meta.size} are not coded as {meta.coded_size}")
    if meta.frames < 1 or -(-(meta.frames - 1) // s_t) != t - 1:
        raise ValueError(f"{meta.frames} frames don't make {t} latents")


class Entry(NamedTuple):
    """What is known of a record without its array. clip: its number, or None. The others: see `RecordMeta`."""

    id: str
    label: str | None
    split: str | None
    clip: int | None
    source_bytes: int | None
    frames: int
    coded_size: tuple[int, int]


class RefusedName(ValueError):
    """The file system doesn't take the name of a video's file: the fault of this video alone. `str()` is one line."""


class Writer(Protocol):
    """Takes the records of one video at a time; belongs to one process, and several may write to one folder.

    Attributes:
        written: bytes of the files that it has completed.
    """

    written: int

    def find(self, id: str) -> Entry | None:
        """The first record of a video that is complete in the folder and was verified, whoever wrote it; or None."""
        ...

    def write(self, records: Sequence[Record]) -> list[str]:
        """Takes all records of one video; returns the ids of the videos that are complete on disk by now.

        Raises:
            RefusedName: for these records alone.
            OSError: where the disk is full, ...; what is complete stays complete.
        """
        ...

    def close(self) -> list[str]:
        """Completes what is in the making, and returns ids as `write` does."""
        ...

    def abandon(self) -> None:
        """Removes what is in the making."""
        ...


class Reader(Protocol):
    """Records of a folder, or of one file, in the order of the files; a record that is there twice is given once.

    Attributes:
        settings: what all records have in common.
        entries: one per record; reading them doesn't read the arrays.
    """

    settings: Settings
    entries: list[Entry]

    def read(self, index: int) -> Record:
        """The record of entries[index]. Raises ValueError, naming the file, where it is damaged."""
        ...

    def __len__(self) -> int: ...


def entry_of(description: dict) -> Entry:
    """Of `vidtok.extraction.record.describe`."""
    values = {name: description[name] for name in Entry._fields}
    return Entry(**values | {"coded_size": tuple(values["coded_size"])})
