"""Token files: the tokens of one video and all that is needed to turn them back into it.

A token file is a NumPy `.npz` (a zip with a checksum for each entry), readable without vidtok:

    ids         [t, h, w] unsigned integers, in the smallest type that holds the codebook (uint32 for 18 bits)
    timestamps  [frames] float64, seconds from the first frame, of the frames that were coded
    meta        one string: a JSON object with the fields of `TokenMeta`, "schema": "vidtok.tokens/1" and
                "bytes_per_token" (of `ids` before compression)

Nothing in it is pickled. Nothing in it depends on the device.
"""

import json
import os
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

SCHEMA = "vidtok.tokens/1"


@dataclass(frozen=True)
class TokenMeta:
    """Where tokens come from.

    Attributes:
        model: name of the tokenizer; weight_hash: of its weights (`VideoTokenizer.weight_hash`).
        precision: of the encoder, "fp32" or "bf16".
        bits: log2 of the codebook size.
        stride: pixels per token in (time, height, width); the first frame has tokens of its own.
        fps: of the coded frames; frames: how many there are, padding not counted.
        size: (height, width) of the coded frames, padding not counted.
        coded_size: (height, width) with the padding at the right and the bottom, multiples of the stride.
        native_size, native_fps: of the source.
        resize: short side that was asked for in pixels, or None: native.
        tile: side of the spatial tiles in pixels, or None: whole frames.
        source: file name of the video, without its folder.
        reader: what decoded it ("pyav", ...).
    """

    model: str
    weight_hash: str
    precision: str
    bits: float
    stride: tuple[int, int, int]
    fps: float
    frames: int
    size: tuple[int, int]
    coded_size: tuple[int, int]
    native_size: tuple[int, int]
    native_fps: float
    resize: int | None
    tile: int | None
    source: str
    reader: str


@dataclass(frozen=True)
class Tokens:
    """ids: int64 [t, h, w]. timestamps: float64 [frames], seconds."""

    ids: np.ndarray
    timestamps: np.ndarray
    meta: TokenMeta


def id_type(bits: float) -> np.dtype:
    """The smallest unsigned integer type that holds ids of a codebook of 2^bits codes."""
    return np.min_scalar_type(round(2**bits) - 1)


def write_tokens(path: str | os.PathLike, ids: np.ndarray, timestamps: np.ndarray, meta: TokenMeta) -> None:
    """Writes a token file; it appears complete or not at all.

    Args:
        ids: integers [t, h, w], 0 .. 2^bits - 1; timestamps: float [meta.frames], seconds.
    """
    path = Path(path)
    ids = np.asarray(ids)
    timestamps = np.asarray(timestamps, dtype=np.float64)
    _check(ids, timestamps, meta)
    kind = id_type(meta.bits)
    text = json.dumps({"schema": SCHEMA, **asdict(meta), "bytes_per_token": kind.itemsize})
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            np.savez_compressed(file, ids=ids.astype(kind), timestamps=timestamps, meta=np.array(text))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_tokens(path: str | os.PathLike) -> Tokens:
    """Reads a token file.

    Raises:
        ValueError: naming the file, where it is no token file, damaged, or of another schema.
        FileNotFoundError: where there is none.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            fields = json.loads(str(arrays["meta"]))
            schema = fields.pop("schema")
            if schema != SCHEMA:
                raise ValueError(f"its schema is {schema!r}, and this vidtok reads {SCHEMA!r}")
            ids, timestamps = arrays["ids"], arrays["timestamps"]
            fields.pop("bytes_per_token")
            fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
            meta = TokenMeta(**fields)
            _check(ids, timestamps, meta)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except _DAMAGE as error:
        raise ValueError(f"{path}: not a token file that can be read ({_reason(error)})") from error
    return Tokens(ids.astype(np.int64), timestamps, meta)


# What zipfile, zlib, numpy and json raise on bytes that are not what they should be.
_DAMAGE = (
    ValueError, KeyError, TypeError, AttributeError, EOFError, OSError, MemoryError, NotImplementedError, RuntimeError,
    zipfile.BadZipFile, zlib.error, SyntaxError, OverflowError,
)  # fmt: skip


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "allow_pickle" in text:  # numpy takes whatever it doesn't know for a pickle
        return "no .npz"
    return f"no {error}" if isinstance(error, KeyError) else text or type(error).__name__


def _check(ids: np.ndarray, timestamps: np.ndarray, meta: TokenMeta) -> None:
    """Raises ValueError where the grid, the times and the sizes don't belong together."""
    s_t, s_h, s_w = meta.stride
    if ids.ndim != 3 or 0 in ids.shape or ids.dtype.kind not in "iu":
        raise ValueError(f"ids are integers [t, h, w], not {ids.dtype} {list(ids.shape)}")
    if ids.min() < 0 or ids.max() >= round(2**meta.bits):
        raise ValueError(f"ids lie in 0 .. 2^{meta.bits:g} - 1, not {ids.min()} .. {ids.max()}")
    t, h, w = ids.shape
    if tuple(meta.coded_size) != (s_h * h, s_w * w):
        raise ValueError(f"a grid of {h} x {w} tokens doesn't make frames of {meta.coded_size}")
    padding = (meta.coded_size[0] - meta.size[0], meta.coded_size[1] - meta.size[1])
    if not (0 <= padding[0] < s_h and 0 <= padding[1] < s_w):
        raise ValueError(f"frames of {meta.size} are not coded as {meta.coded_size}")
    if meta.frames < 1 or -(-(meta.frames - 1) // s_t) != t - 1:
        raise ValueError(f"{meta.frames} frames don't make {t} latents")
    if timestamps.dtype != np.float64 or timestamps.shape != (meta.frames,):
        raise ValueError(f"{timestamps.dtype} {list(timestamps.shape)} timestamps for {meta.frames} frames")
