"""Header of a compressed video: its fields, their legal values, and its JSON."""

import json
import math
from dataclasses import asdict, dataclass, fields
from fractions import Fraction

MAX_HEADER = 1 << 16  # bytes
MAX_SIDE = 1 << 15  # pixels
MAX_BITS = 60  # bits of a token
MAX_CHUNK_TOKENS = 1 << 22  # 32 latents of 4K video
MAX_CHUNK_FRAMES = 1 << 16
MAX_TIME_BASE = (1 << 31) - 1  # largest numerator and denominator, as in FFmpeg
MIN_FPS, MAX_FPS = 1e-6, 1e9
MAX_ASPECT = 1 << 16  # largest numerator and denominator of the sample aspect ratio


@dataclass(frozen=True, kw_only=True)
class Header:
    """Properties of a compressed video, stored before its first chunk.

    Attributes:
        model: name of the tokenizer; weight_hash: hash of its weights (`VideoTokenizer.weight_hash`).
        precision: precision of the encoder, "fp32" or "bf16".
        bits: bits per token; levels: bits per encoder channel with residual LFQ, else 1.
        stride: pixels per token in (time, height, width).
        entropy: name of the entropy model, see `vidtok.codec.entropy`.
        prior: hash of the prior that was used (`vidtok.codec.prior`); None (not stored): an entropy model without one.
        chunk_latents: latent frames of every chunk but the last.
        size: (height, width) of the frames in pixels. Encoding pads them to whole tokens at the right and the bottom by
            repeating pixels; decoding crops the padding.
        fps: mean frames per second. time_base: seconds per tick as (numerator, denominator).
        tile: side in pixels of the spatial tiles that were encoded; None, whole frames.
        source: properties of the source video: name, size, fps and, if the file states them, color matrix, range,
            primaries and transfer; decoded frames are RGB. "aspect" (numerator, denominator) is the width of a pixel
            over its height, if it isn't 1. With audio in the file, "audio" has its codec, its rate in Hz and its number
            of channels.
    """

    model: str
    weight_hash: str
    precision: str
    bits: int
    levels: int
    stride: tuple[int, int, int]
    entropy: str
    chunk_latents: int
    size: tuple[int, int]
    fps: float
    time_base: tuple[int, int]
    tile: int | None
    source: dict
    prior: str | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Number of rows and columns of tokens."""
        return -(-self.size[0] // self.stride[1]), -(-self.size[1] // self.stride[2])

    @property
    def sar(self) -> Fraction:
        """Width of a pixel over its height, as players show it; 1 if `source` has none that is legal."""
        aspect = self.source.get("aspect")
        if not isinstance(aspect, list) or not _are_counts(tuple(aspect), 2, MAX_ASPECT):
            return Fraction(1)
        return Fraction(*aspect)

    @property
    def max_tokens_bytes(self) -> int:
        """Upper bound of the bytes of one chunk's tokens: no probability is below 2^-16, so a bit costs at most 16."""
        return 2 * self.chunk_latents * math.prod(self.grid) * self.bits + 64

    def frames_of(self, chunk: int, latents: int) -> int:
        """Return the number of frames of a chunk that isn't padded."""
        return self.stride[0] * latents - (self.stride[0] - 1 if chunk == 0 else 0)


def pack_header(header: Header) -> bytes:
    """Return the JSON of a header. Raises ValueError if `parse_header` would reject it."""
    values = {name: value for name, value in asdict(header).items() if (name, value) != ("prior", None)}
    data = json.dumps(values, allow_nan=False, separators=(",", ":")).encode()
    parse_header(data)  # so that every file that is written can be read
    return data


def parse_header(data: bytes) -> Header:
    """Check every field of a header. Raises ValueError that names the first illegal one."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is no JSON") from error
    names = [field.name for field in fields(Header)]
    if isinstance(values, dict) and values.get("entropy") != "prior":
        values = {"prior": None} | values
    if not isinstance(values, dict) or sorted(values) != sorted(names) or len(data) > MAX_HEADER:
        raise ValueError(f"its fields must be {', '.join(names)}")
    for name in ("stride", "size", "time_base"):
        if isinstance(values[name], list):
            values[name] = tuple(values[name])
    header = Header(**values)
    legal = {
        "model": _is_text(header.model),
        "weight_hash": _is_text(header.weight_hash),
        "precision": header.precision in ("fp32", "bf16"),
        "bits": _is_count(header.bits, MAX_BITS),
        "levels": _is_count(header.levels, MAX_BITS)
        and _is_count(header.bits, MAX_BITS)
        and header.bits % header.levels == 0,
        "stride": _are_counts(header.stride, 3, 256),
        "entropy": _is_text(header.entropy),
        "chunk_latents": _is_count(header.chunk_latents, MAX_CHUNK_FRAMES),
        "size": _are_counts(header.size, 2, MAX_SIDE),
        "fps": type(header.fps) in (int, float) and MIN_FPS <= header.fps <= MAX_FPS,
        "time_base": _are_counts(header.time_base, 2, MAX_TIME_BASE),
        "tile": header.tile is None or _is_count(header.tile, MAX_SIDE),
        "source": isinstance(header.source, dict) and isinstance(header.source.get("audio", {}), dict),
        "prior": _is_text(header.prior) if header.entropy == "prior" else header.prior is None,
    }
    if wrong := [name for name, fine in legal.items() if not fine]:
        raise ValueError(f"{wrong[0]} can't be {str(values[wrong[0]])[:40]}")
    if header.chunk_latents * math.prod(header.grid) > MAX_CHUNK_TOKENS:
        raise ValueError(f"a chunk can't have more than {MAX_CHUNK_TOKENS} tokens")
    if header.chunk_latents * header.stride[0] > MAX_CHUNK_FRAMES:
        raise ValueError(f"a chunk can't have more than {MAX_CHUNK_FRAMES} frames")
    return header


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 256


def _is_count(value: object, most: int) -> bool:
    return type(value) is int and 1 <= value <= most


def _are_counts(value: object, number: int, most: int) -> bool:
    return isinstance(value, tuple) and len(value) == number and all(_is_count(item, most) for item in value)
