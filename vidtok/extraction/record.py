"""Records: the features of one video, or of one clip of it, with the metadata that describes them.

The schema is "vidtok.features/1". Every container holds the same fields; `npz` and `parquet` beside this module
document where. Nothing is pickled, and nothing depends on the device.

    id          name of the video in its dataset; for plain files the path below the folder they were found in
    label       name of its class, or null; split: "train", "val", ... or null
    features    the array, whose layout depends on `feature`:
                ids        unsigned integers [t, h, w], in the smallest type that holds the codebook
                codes      int8 [C, t, h, w], -1 and +1 (codebooks without signs: floats)
                latents    floats [C, t, h, w]: the input of the quantizer
                hidden     floats [C, t, h, w]: the encoder's features; with "pool": "mean" [C], their mean
                embedding  floats [C]: a trained head's features before its last layer
    timestamps  float64 [frames]: time of each coded frame, in seconds from the first frame of the video
    meta        the fields of `RecordMeta`

`Writer` and `Reader` are the interfaces that all containers implement.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import IO, Any, NamedTuple, Protocol

import numpy as np

SCHEMA = "vidtok.features/1"
FEATURES = ("ids", "codes", "latents", "hidden", "embedding")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that all records of one folder share; `settings.json` holds them.

    Attributes:
        feature: one of `FEATURES`.
        model: name of the tokenizer. weight_hash: of its weights (`VideoTokenizer.weight_hash`).
        precision: of the networks, "fp32" or "bf16".
        bits: log2 of the codebook size.
        stride: pixels per token in (time, height, width); the first frame has tokens of its own.
        dtype: of the stored array, as NumPy names it.
        pool: "mean", or None for the whole grid. head: the trained head as "name, weights hash", or None.
        resize: requested short side in pixels; None, native. crop: "center", "three", or None for no crop.
        resample: requested frames per second; None, native. max_frames: frames after which videos are cut, or None.
        sampler: the requested clips; None, the whole video.
        tile: side of the spatial tiles in pixels; None, whole frames.
        frame_folders: frame rate given to folders of numbered images, each of which is a video; None, none is.
        pixels: reader and version of its resizing (`vidtok.datasets.decode.RESIZE_VERSION`), which determine pixels.
        layer: of hidden features, the encoder's layer that they come from: "middle", or None for the one before the
            latents.
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
    layer: str | None = None


@dataclass(frozen=True, kw_only=True)
class RecordMeta(Settings):
    """Settings with the metadata of one video or clip.

    Attributes:
        fps: frame rate of the coded frames (of a clip, their mean rate). frames: number of them, without padding.
        size: (height, width) of the coded frames in pixels, without padding.
        coded_size: (height, width) with the padding at the right and the bottom, multiples of the stride.
        native_size, native_fps: of the source.
        source: name of the video's file, or of its folder of frames, without the path; "" if it has no file.
        source_bytes: size of the file; for a folder of frames, of all images.
        reader: video reader that decoded it ("pyav", ...). reader_version: of its package, or "".
        bytes_per_token: of the array, before compression; None if it is pooled.
        missing: times, in seconds as in the timestamps, of the frames of a damaged video that could not be decoded and
            are left out. suspect: times of frames that may be predicted from those. damage: both as text, or "". See
            `vidtok.datasets.damage.Damage`.
        clip, clips: number of this clip (crops of one clip are numbered consecutively) and of all clips, or None.
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
    """One video or clip. features: laid out as in the module's docstring. timestamps: float64 [frames], seconds."""

    id: str
    label: str | None
    split: str | None
    features: np.ndarray
    timestamps: np.ndarray
    meta: RecordMeta


MEMORY = 1 << 26  # bytes of features of a video that are held in memory


class RecordSpool(Sequence[Record]):
    """Records of the clips of one video, in the order of clips; they may be added in any order.

    Features beyond `MEMORY` bytes are in a temporary file (in the folder TMPDIR), and are read when a record is taken.
    A pickle of it is a list of records.
    """

    def __init__(self) -> None:
        self._records: dict[int, Record] = {}  # by clip; those in the file with zeros that take no memory
        self._offsets: dict[int, int] = {}  # by clip, of features in the file
        self._bytes = 0
        self._file: IO[bytes] | None = None

    def append(self, record: Record) -> None:
        """Add the record of a clip."""
        clip, features = record.meta.clip, record.features
        assert clip is not None  # whole videos have one record
        self._bytes += features.nbytes
        if self._bytes > MEMORY:
            self._file = self._file or tempfile.TemporaryFile()  # noqa: SIM115 - closed with the spool
            self._offsets[clip] = self._file.seek(0, os.SEEK_END)
            self._file.write(features.tobytes())
            record = replace(record, features=np.broadcast_to(np.zeros((), features.dtype), features.shape))
        self._records[clip] = record

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, clip):
        record, offset = self._records[clip], self._offsets.get(clip)
        if offset is None:
            return record
        assert self._file is not None  # offsets are of features in the file
        self._file.seek(offset)
        stub = record.features
        features = np.frombuffer(self._file.read(stub.nbytes), stub.dtype).reshape(stub.shape)
        return replace(record, features=features)

    def __iter__(self):
        return (self[clip] for clip in range(len(self)))

    def __reduce__(self):
        return list, ([*self],)


def settings_of(description: dict) -> Settings:
    """Return the settings in a description (see `describe`) or in settings.json.

    Raises:
        KeyError, TypeError: a setting is missing.
    """
    return Settings(**_tuples({f.name: description[f.name] for f in fields(Settings) if f.name in description}))


def _tuples(description: dict) -> dict[str, Any]:
    """Convert lists to tuples, which JSON doesn't have."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in description.items()}


def differences(ours: Settings, theirs: Settings) -> str:
    """Describe each setting that differs, as in "size 64, not 128; ..."; return "" if all are equal."""
    wanted, found = asdict(ours), asdict(theirs)
    return "; ".join(f"{name} {found[name]}, not {wanted[name]}" for name in wanted if wanted[name] != found[name])


def id_type(bits: float) -> np.dtype:
    """Return the smallest unsigned integer type that holds the ids of a codebook of 2^bits codes."""
    return np.min_scalar_type(round(2**bits) - 1)


def describe(record: Record) -> dict:
    """Return everything of a record except its arrays, as a dict for JSON."""
    names = {"schema": SCHEMA, "id": record.id, "label": record.label, "split": record.split}
    return names | asdict(record.meta)


def parse_description(text: str) -> dict:
    """Parse the JSON of a description (see `describe`).

    Raises:
        ValueError, KeyError: it is not a description or has another schema.
    """
    description = json.loads(text)
    if (schema := description["schema"]) != SCHEMA:
        raise ValueError(f"its schema is {schema!r}, and this vidtok reads {SCHEMA!r}")
    if description.get("crop") == "centre":  # as earlier versions spelled it
        description["crop"] = "center"
    return description


def record_of(description: dict, features: np.ndarray, timestamps: np.ndarray) -> Record:
    """Make a record of its description (see `describe`) and its arrays, and check it.

    Raises:
        ValueError, KeyError, TypeError: the description is invalid or doesn't fit the arrays.
    """
    values = _tuples(description)
    del values["schema"]
    id, label, split = (values.pop(name) for name in ("id", "label", "split"))
    record = Record(id, label, split, features, timestamps, RecordMeta(**values))
    check_record(record)
    return record


def check_record(record: Record) -> None:
    """Check that the array, the timestamps and the sizes of a record fit each other.

    Raises:
        ValueError: they don't.
    """
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
    """Index entry of a record: what is known of it without its arrays. For the fields see `RecordMeta`."""

    id: str
    label: str | None
    split: str | None
    clip: int | None
    source_bytes: int | None
    frames: int
    coded_size: tuple[int, int]


class RefusedName(ValueError):
    """File name of a video that the file system refuses; only this video fails. `str()` is one line."""


class Writer(Protocol):
    """Writer of records in a container, one video at a time.

    It belongs to one process; several processes with a writer each may fill one folder.

    Attributes:
        written: bytes of the files that it has completed.
    """

    written: int

    def find(self, id: str) -> Entry | None:
        """Return the first record of a video that is complete in the folder and verified, or None.

        Any process may have written it.
        """
        ...

    def write(self, records: Sequence[Record]) -> list[str]:
        """Write all records of one video.

        Returns:
            The ids of the videos that are complete on disk since the last call; with shards often none, or many.

        Raises:
            RefusedName: the file system refuses the name of this video; the writer can go on.
            OSError: the disk is full, for example. Videos that are complete stay complete.
        """
        ...

    def place(self, id: str) -> str:
        """Return the path below the folder to write a video to; "" in containers whose files hold many videos."""
        ...

    def adopt(self, entry: Entry, file: str, size: int) -> None:
        """Register a video that another process has written for this one.

        Args:
            entry: of its first record.
            file: path of the complete file below the folder. size: bytes to count as written.
        """
        ...

    def close(self) -> list[str]:
        """Complete the current shard, if there is one, and return ids as `write` does."""
        ...

    def abandon(self) -> None:
        """Remove the current, incomplete shard, if there is one."""
        ...


class Reader(Protocol):
    """Reader of the records of a folder, or of one file, in the order of the files. Duplicates are left out.

    Attributes:
        settings: shared by all records.
        entries: one per record; they are read without the arrays.
    """

    settings: Settings
    entries: list[Entry]

    def read(self, index: int) -> Record:
        """Read the record of entries[index].

        Raises:
            ValueError: the file is damaged; the message names it.
        """
        ...

    def __len__(self) -> int: ...


def entry_of(description: dict) -> Entry:
    """Return the index entry of a description (see `describe`)."""
    values = {name: description[name] for name in Entry._fields}
    return Entry(**values | {"coded_size": tuple(values["coded_size"])})
