"""Codecs of the comparison: encoders of ffmpeg, and tokenizers with entropy models.

Each codec reports the size of an elementary stream, and decodes frames from that stream alone.

The input of an ffmpeg encoder are RGB frames, which ffmpeg converts to the encoder's pixel format (BT.709, limited
range). Decoded frames are converted back. User data messages (SEI), which hold the settings as text, are removed: the
700 bytes of x264 would be a third of a short clip. A tokenizer's stream are its coded tokens and 28 bytes per chunk;
header, times and index of a `.vtk` file are not counted, as the corresponding parts of an mp4 file aren't.
"""

import io
import json
import math
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import betaln
from torch import Tensor
from torch.nn import functional as F

from vidtok.codec import compress, decompress
from vidtok.codec.entropy import NAMES, entropy_model
from vidtok.codec.prior import find_prior
from vidtok.errors import UserError
from vidtok.extraction.videos import Source, collect_ids, encode_chunks
from vidtok.tokenizer import VideoTokenizer

RANDOM_ACCESS, LOW_DELAY, CAUSAL = "random-access", "low-delay", "causal"
MODES = (RANDOM_ACCESS, LOW_DELAY)
CHUNK_HEADER = 28  # bytes, see `vidtok.codec.container`

_SCALE = "flags=bicubic+accurate_rnd+full_chroma_int"


class FfmpegError(Exception):
    """Error of an ffmpeg run; the message is the last line of its output."""


class Coded(NamedTuple):
    """Result of encoding and decoding a clip.

    Attributes:
        video: decoded frames, uint8 [1, 3, T, H, W].
        bytes: size of the elementary stream. file_bytes: size of the file with header, times and index, or None.
        encode_s, decode_s: wall-clock seconds; for ffmpeg including the start of the process.
    """

    video: Tensor
    bytes: int
    file_bytes: int | None
    encode_s: float
    decode_s: float


class Encoder(NamedTuple):
    """An encoder of ffmpeg.

    Attributes:
        library: its name in ffmpeg. form: ffmpeg's format of its elementary stream. pixels: pixel format.
        preset: the preset that corresponds to x264's medium.
        rate: name of its quality option; rates: default values of it, from the best.
        options: (preset, frames of a GOP, threads) -> arguments. low_delay, random_access: arguments of the modes.
        unwanted: types of NAL units that are removed from the stream, or None.
    """

    library: str
    form: str
    pixels: str
    preset: str
    rate: str
    rates: tuple[str, ...]
    options: Callable[[str, int, int], list[str]]
    random_access: list[str]
    low_delay: list[str]
    unwanted: str | None = None


def _x264(preset: str, gop: int, threads: int) -> list[str]:
    return ["-preset", preset, "-g", str(gop), "-threads", str(threads)]


def _x265(preset: str, gop: int, threads: int) -> list[str]:
    parallel = f"pools={threads}:frame-threads=1"
    return ["-preset", preset, "-x265-params", f"keyint={gop}:{parallel}:info=0:log-level=error"]


def _svt_av1(preset: str, gop: int, threads: int) -> list[str]:
    # The encoder's own parameters are set by the mode, since ffmpeg accepts only one list of them.
    return ["-preset", preset, "-g", str(gop)]


def _vvenc(preset: str, gop: int, threads: int) -> list[str]:
    return ["-preset", preset, "-g", str(gop), "-threads", str(threads)]


ENCODERS = {
    "x264": Encoder(
        "libx264", "h264", "yuv420p", "medium", "-crf", ("20", "24", "28", "32", "36", "40", "44", "48"), _x264,
        [], ["-tune", "zerolatency"], "6",
    ),
    "x265": Encoder(
        "libx265", "hevc", "yuv420p", "medium", "-crf", ("20", "24", "28", "32", "36", "40", "44", "48"), _x265,
        [], ["-tune", "zerolatency"], "39-40",
    ),
    "svt-av1": Encoder(
        "libsvtav1", "obu", "yuv420p", "6", "-crf", ("24", "31", "38", "45", "52", "57", "62"), _svt_av1,
        ["-svtav1-params", "pred-struct=2:lp={threads}"], ["-svtav1-params", "pred-struct=1:lp={threads}"],
    ),
    # Low delay as the authors recommend in https://github.com/fraunhoferhhi/vvenc/issues/284.
    "vvenc": Encoder(
        "libvvenc", "vvc", "yuv420p10le", "medium", "-qp", ("22", "26", "30", "34", "38", "42", "46", "50"), _vvenc,
        [], ["-vvenc-params", "gopsize=8:picreordering=0:decodingrefreshtype=none"],
    ),
}  # fmt: skip


def find_ffmpeg(path: str | None) -> str:
    """Find ffmpeg: a path or a command, or None for the binary of the package imageio-ffmpeg.

    Raises:
        UserError: there is none.
    """
    if path is not None:
        found = shutil.which(path)
        if found is None:
            raise UserError(f"--ffmpeg {path}: no such program")
        return found
    try:
        from imageio_ffmpeg import get_ffmpeg_exe
    except ImportError as error:
        raise UserError(
            "x264, x265, svt-av1 and vvenc need ffmpeg: pip install 'vidtok[compression]', or give --ffmpeg PATH"
        ) from error
    return get_ffmpeg_exe()


class Ffmpeg(NamedTuple):
    """An ffmpeg program: its path, its version, the names of its encoders, and whether it has libvmaf."""

    program: str
    version: str
    encoders: frozenset[str]
    vmaf: bool


def describe_ffmpeg(program: str) -> Ffmpeg:
    """Query version, encoders and filters of an ffmpeg program."""
    version = _text(program, "-version").splitlines()[0].removeprefix("ffmpeg version ").split(" Copyright")[0]
    encoders = re.findall(r"^ V\S{5} (\S+)", _text(program, "-hide_banner", "-encoders"), re.MULTILINE)
    filters = _text(program, "-hide_banner", "-filters")
    return Ffmpeg(program, version, frozenset(encoders), " libvmaf " in filters)


def _text(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


@dataclass(frozen=True)
class FfmpegCodec:
    """Codec that runs an encoder of ffmpeg.

    Args:
        name: a key of `ENCODERS`. mode: one of `MODES`.
        rates: values of the encoder's quality option; None, those of `ENCODERS`.
        preset: preset of the encoder; None, its medium. gop: largest number of frames from one intra frame to the next.
        threads: number of threads of the encoder.
    """

    name: str
    mode: str
    ffmpeg: Ffmpeg
    rates: tuple[str, ...] | None = None
    preset: str | None = None
    gop: int = 256
    threads: int = 1
    label: str = field(init=False)

    def __post_init__(self):
        if self.rates is None:
            object.__setattr__(self, "rates", ENCODERS[self.name].rates)
        object.__setattr__(self, "label", f"{self.name} {self.mode}")

    @property
    def settings(self) -> dict:
        """Return all settings for the result file, with placeholders for size, rate and quality in the commands."""
        encoder = ENCODERS[self.name]
        return {
            "codec": self.name,
            "mode": self.mode,
            "encoder": encoder.library,
            "ffmpeg": self.ffmpeg.version,
            "preset": self.preset or encoder.preset,
            "tune": "zerolatency" if "zerolatency" in encoder.low_delay and self.mode == LOW_DELAY else None,
            "gop": self.gop,
            "pixels": encoder.pixels,
            "rate": encoder.rate,
            "encode": "ffmpeg " + " ".join(self._encode("RATE", "WIDTHxHEIGHT", "FPS", f"STREAM.{encoder.form}")),
            "decode": "ffmpeg " + " ".join(self._decode(f"STREAM.{encoder.form}")),
        }

    def code(self, clip: Tensor, fps: float, rate: str) -> Coded:
        """Encode and decode a clip.

        Args:
            clip: uint8 [1, 3, T, H, W] with even height and width. fps: frames per second. rate: one of `rates`.

        Raises:
            FfmpegError: ffmpeg failed, or returned another number of frames.
        """
        _, _, frames, height, width = clip.shape
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"stream.{ENCODERS[self.name].form}"
            encode = self._encode(rate, f"{width}x{height}", f"{fps:.6f}", str(file))
            _, encode_s = _run([self.ffmpeg.program, *encode], _to_rgb24(clip))
            data, decode_s = _run([self.ffmpeg.program, *self._decode(str(file))])
            size = file.stat().st_size
        if len(data) != clip.numel():
            raise FfmpegError(f"{len(data) // (3 * height * width)} frames came back of {frames}")
        video = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(frames, height, width, 3)
        return Coded(video.permute(3, 0, 1, 2)[None].contiguous(), size, None, encode_s, decode_s)

    def _encode(self, rate: str, size: str, fps: str, target: str) -> list[str]:
        encoder = ENCODERS[self.name]
        mode = encoder.low_delay if self.mode == LOW_DELAY else encoder.random_access
        convert = f"scale=out_color_matrix=bt709:out_range=tv:{_SCALE},format={encoder.pixels}"
        return [
            *_QUIET, "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", fps, "-i", "pipe:0", "-vf", convert,
            "-c:v", encoder.library, encoder.rate, rate,
            *encoder.options(self.preset or encoder.preset, self.gop, self.threads),
            *(argument.format(threads=self.threads) for argument in mode),
            *(["-bsf:v", f"filter_units=remove_types={encoder.unwanted}"] if encoder.unwanted else []),
            "-f", encoder.form, target,
        ]  # fmt: skip

    def _decode(self, source: str) -> list[str]:
        convert = f"scale=in_color_matrix=bt709:in_range=tv:{_SCALE},format=rgb24"
        form = ["-threads", str(self.threads), "-f", ENCODERS[self.name].form, "-i", source]
        return [*_QUIET, *form, "-vf", convert, "-fps_mode", "passthrough", "-f", "rawvideo", "pipe:1"]


_QUIET = ["-hide_banner", "-loglevel", "error", "-nostdin", "-y"]


class TokenizerCodec:
    """Codec that writes and reads `.vtk` files of a tokenizer with an entropy model.

    Args:
        tokenizer: the tokenizer. precision: its precision, for the record.
        entropy: name of the entropy model. chunk_latents: latents per chunk; random access starts at chunks.
        rates: values of quality (`vidtok.compress`), or QUALITY@SCALE: frames are scaled by SCALE before encoding, and
            decoded frames are enlarged bicubically.
    """

    mode = CAUSAL

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        entropy: str = "adaptive",
        rates: Sequence[str] | None = None,
        chunk_latents: int = 64,
    ):
        self.tokenizer, self.entropy, self.chunk_latents = tokenizer, entropy, chunk_latents
        self.rates = TOKENIZER_RATES if rates is None else tuple(rates)
        self.name = tokenizer.config.name
        self.label = f"{self.name} {entropy}"
        for rate in self.rates:
            parse_rate(rate)

    @property
    def settings(self) -> dict:
        """Return all settings for the result file."""
        return {
            "codec": self.name,
            "mode": self.mode,
            "weight_hash": self.tokenizer.weight_hash,
            "bits": self.tokenizer.bits,
            "stride": list(self.tokenizer.stride),
            "entropy": self.entropy,
            "gop": f"{self.chunk_latents} latents",
            "device": self.tokenizer.device.type,
            "precision": str(self.tokenizer.dtype).removeprefix("torch."),
            "rate": "quality@scale",
        }

    def code(self, clip: Tensor, fps: float, rate: str) -> Coded:
        """Encode and decode a clip; the arguments are those of `FfmpegCodec.code`."""
        quality, scale = parse_rate(rate)
        size = clip.shape[3:]
        began = time.perf_counter()
        video = _resize(clip[0].float() / 127.5 - 1, [max(round(scale * side), 1) for side in size])
        file = io.BytesIO()
        stats = compress(
            video[None], file, model=self.tokenizer, entropy=self.entropy, quality=quality, fps=fps,
            chunk_latents=self.chunk_latents,
        )  # fmt: skip
        middle = time.perf_counter()
        decoded = decompress(file, model=self.tokenizer)
        assert isinstance(decoded, Tensor)  # because no output is given
        decoded = _resize(decoded[0], size)
        coded = ((decoded + 1) * 127.5).round().clamp(0, 255).byte()[None]
        end = time.perf_counter()
        stream = stats.token_bytes + CHUNK_HEADER * stats.chunks
        return Coded(coded, stream, stats.bytes, middle - began, end - middle)


TOKENIZER_RATES = ("100", "70", "50", "35", "20", "10")


def parse_rate(rate: str) -> tuple[float, float]:
    """Parse QUALITY or QUALITY@SCALE; return (quality, scale).

    Raises:
        ValueError: any other form.
    """
    quality, _, scale = rate.partition("@")
    try:
        values = float(quality), float(scale or 1)
    except ValueError as error:
        raise ValueError(f"a tokenizer's rate is QUALITY or QUALITY@SCALE, such as 80@0.5, not {rate!r}") from error
    if not (0 < values[0] <= 100 and 0 < values[1] <= 1):
        raise ValueError(f"quality is above 0 and at most 100, and scale above 0 and at most 1, not {rate}")
    return values


COUNTER = "counter"  # name of `counter_bytes` in `token_sizes`


def token_sizes(tokenizer: VideoTokenizer, file: Path, size: int | None, frames: int | None, chunk: int = 64) -> dict:
    """Measure the bytes of a video's tokens by each entropy model, without the container.

    Args:
        file: video. size: short side to resize to in pixels; None, native.
        frames: largest number of frames; None, all.
        chunk: latents per chunk; chunks are coded independently.

    Returns:
        frames, grid, tokens; bytes: {entropy model or `COUNTER`: number}; encode_s, decode_s: {entropy model: CPU
        seconds of this process}.

    Raises:
        VideoError: the video can't be read.
        AssertionError: the decoded tokens differ.
    """
    with Source(file, size, None, frames) as source:
        ids = collect_ids(encode_chunks(tokenizer, source, None), tokenizer.bits).astype(np.int64)
    bits, levels = math.ceil(tokenizer.bits), getattr(tokenizer.quantizer, "levels", 1)
    row: dict = {"frames": source.frames, "grid": list(ids.shape[1:]), "tokens": ids.size}
    row |= {"bytes": {COUNTER: counter_bytes(ids, bits)}, "encode_s": {}, "decode_s": {}}
    for name in NAMES:
        prior = find_prior(tokenizer.config.name, tokenizer.weight_hash) if name == "prior" else None
        model = entropy_model(name, prior)
        parts = [ids[start : start + chunk] for start in range(0, len(ids), chunk)]
        began = time.process_time()
        coded = [model.encode(part, bits, levels) for part in parts]
        middle = time.process_time()
        decoded = [model.decode(data, part.shape, bits, levels) for data, part in zip(coded, parts, strict=True)]
        end = time.process_time()
        assert all((a == b).all() for a, b in zip(decoded, parts, strict=True))
        row["bytes"][name] = sum(map(len, coded))
        row["encode_s"][name], row["decode_s"][name] = middle - began, end - middle
    return row


def counter_bytes(ids: np.ndarray, bits: int) -> float:
    """Compute the code length in bytes of int64 ids [t, h, w] under a simple counting model, as a baseline.

    Each bit is predicted from counts of 0 and 1 (plus one half) in its context. The context is the same bit of eight
    tokens: in the previous latent those at its position and its four neighbors, the one two latents before, and those
    to the left and above.
    """
    t, h, w = ids.shape
    padded = np.pad(ids, ((2, 0), (1, 1), (1, 1)))
    total = 0.0
    for bit in range(bits):
        plane = padded >> bit & 1
        places = [(1, 0, 0), (1, 0, -1), (1, 0, 1), (1, -1, 0), (1, 1, 0), (2, 0, -1), (2, -1, 0), (0, 0, 0)]
        context = np.zeros_like(ids)
        for dt, dy, dx in places:
            context = 2 * context + plane[dt : dt + t, 1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w]
        ones = np.bincount(context.reshape(-1), (ids >> bit & 1).reshape(-1), 256)
        zeros = np.bincount(context.reshape(-1), minlength=256) - ones
        total -= (betaln(ones + 0.5, zeros + 0.5) - betaln(0.5, 0.5)).sum() / np.log(2)
    return total / 8


def vmaf(ffmpeg: str, original: Tensor, decoded: Tensor, fps: float) -> float:
    """Compute the mean VMAF of two uint8 clips [1, 3, T, H, W] with libvmaf's default model.

    Raises:
        FfmpegError: ffmpeg failed.
    """
    height, width = original.shape[3:]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("decoded.rgb", "original.rgb")]
        inputs = []
        for file, clip in zip(files, (decoded, original), strict=True):
            file.write_bytes(_to_rgb24(clip))
            inputs += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:.6f}"]
            inputs += ["-i", str(file)]
        convert = f"scale=out_color_matrix=bt709:out_range=tv:{_SCALE},format=yuv420p"
        log = Path(folder) / "log.json"
        graph = f"[0:v]{convert}[a];[1:v]{convert}[b];[a][b]libvmaf=log_fmt=json:log_path={log}"
        _run([ffmpeg, *_QUIET, *inputs, "-lavfi", graph, "-f", "null", "-"])
        return float(json.loads(log.read_text())["pooled_metrics"]["vmaf"]["mean"])


def _resize(video_CTHW: Tensor, size: Sequence[int]) -> Tensor:
    """Resize frames bicubically, with anti-aliasing when they shrink; frames of this size are returned unchanged."""
    if list(video_CTHW.shape[2:]) == list(size):
        return video_CTHW
    frames = F.interpolate(video_CTHW.transpose(0, 1), tuple(size), mode="bicubic", antialias=True)
    return frames.transpose(0, 1).clamp(-1, 1)


def _to_rgb24(clip: Tensor) -> bytes:
    return clip[0].permute(1, 2, 3, 0).contiguous().numpy().tobytes()


def _run(command: list[str], data: bytes = b"") -> tuple[bytes, float]:
    """Run a program; return (its output, wall-clock seconds). Raises FfmpegError with the last line of its errors."""
    began = time.perf_counter()
    done = subprocess.run(command, input=data, capture_output=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
        raise FfmpegError(lines[-1][:300])
    return done.stdout, seconds
