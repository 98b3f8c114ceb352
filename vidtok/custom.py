"""Tokenizers from outside this package: a class of the user's own, named as "module:Class", behind our interface.

A class needs two methods and the size of its codebook:

    vocab_size          number of ids; or bits, its log2
    encode(video)       float32 [B, 3, T, H, W] in [-1, 1] -> int64 ids [B, t, h, w]
    decode(ids)         the inverse, -> float [B, 3, T, H, W]; only reconstructions need it

It may have these:

    features(video, kind)   float [B, C, t, h, w] on the grid of the ids; kind is "hidden" or "latents"
    stride              pixels per token in (time, height, width); measured with two small clips if it is missing
    causal              whether the first frame has tokens of its own, T = 1 + s_t (t - 1) (True); False: T = s_t t.
                        Measured if `stride` is missing
    name, version       strings for records; without weights, `version` is what identifies the tokens

A tokenizer that isn't causal sees the first frame s_t times, so that here every grid has t = 1 + (T - 1) / s_t. Clips
of more than 16 latents are encoded in windows; each later window of a causal tokenizer starts with the last frame of
the one before.

A name is resolved only where a user gives it (`vidtok.extraction.model.open_tokenizer`), never where a file does:
importing a module runs its code.
"""

import ast
import hashlib
import math
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any
from urllib.parse import parse_qsl

import torch
from torch import Tensor, nn

from vidtok import checks, streaming
from vidtok.errors import nearest, one_line
from vidtok.hub import hash_state
from vidtok.nets.layers import State
from vidtok.quantize.lfq import ids_to_signs
from vidtok.tokenizer import TokenizerConfig, VideoTokenizer

WINDOW = streaming.MAX_LATENTS - 1  # latents per call after the first, which has one more
MEASURED = 16, 128  # frames (and twice as many) and side of the clips that measure a stride


class CustomTokenizer(VideoTokenizer):
    """A user's tokenizer with the methods of `VideoTokenizer`, for inference.

    Args:
        spec: "module:Class", "module:function" or "module:Class?key=value&key=value"; what it names is called with
            these arguments (Python literals, otherwise strings) and returns the tokenizer. Modules are found on
            Python's path and in the current directory.
        device: device of the model. An object without a method `to` stays where it is and gets clips on the CPU.
        precision: "fp32"; the class itself determines its precision.

    Raises:
        ValueError: there is no such module or class, it can't be built, or it doesn't follow the rules above.
    """

    chunk_latents = WINDOW

    def __init__(self, spec: str, device: str | torch.device = "cpu", precision: str = "fp32"):
        super(VideoTokenizer, self).__init__()
        if precision != "fp32":
            raise ValueError(f"{spec} determines its precision itself: leave out precision={precision}")
        self.spec = spec
        self.model: Any = build_model(spec)
        if isinstance(self.model, nn.Module):
            self.model.eval().requires_grad_(False)
        movable = hasattr(self.model, "to")
        self.place = None if isinstance(self.model, nn.Module) else torch.device(device if movable else "cpu")
        if movable:
            self.model.to(device)
        name = getattr(self.model, "name", None)
        kind = {"kind": "custom"}
        self.config = TokenizerConfig(name if isinstance(name, str) else spec, kind, kind, license="unknown")
        self.bits = self._find_bits()
        self.encoder, self.decoder = _Net().to(device), _Net().to(device)
        self.quantizer = _Bits(self.bits)
        self._hash = hash_model(self.model, spec)
        self.stride, self.causal = self._find_stride()
        self.encoder.stride = self.decoder.stride = self.stride
        self.encoder.feature_layer = None
        features, decode = (callable(getattr(self.model, method, None)) for method in ("features", "decode"))
        why = f"{spec} has no method features(video, kind)"
        self.lacks = {} if features else {"hidden": why, "latents": why}
        if not decode:
            self.lacks["recon"] = f"{spec} has no method decode(ids)"
        self.eval()

    def _apply(self, fn, recurse: bool = True) -> "CustomTokenizer":
        super()._apply(fn, recurse)
        if self.place is not None and hasattr(self.model, "to"):  # no nn.Module, which `super` has moved
            self.place = self.device
            self.model.to(self.place)
        return self

    @property
    def weight_hash(self) -> str:
        """Hash of weights, arguments and version, see `hash_model`."""
        return self._hash

    def encode(self, video: Tensor, tile: int | tuple[int, int] | None = None) -> Tensor:
        return self._grid("ids", video, tile)[:, 0]

    def encode_latents(self, video: Tensor, tile: int | tuple[int, int] | None = None) -> Tensor:
        return self._grid("latents", video, tile)

    def forward_features(self, video: Tensor, tile: int | tuple[int, int] | None = None) -> Tensor:
        return self._grid("hidden", video, tile)

    @torch.no_grad()
    def decode(self, ids: Tensor, tile: int | tuple[int, int] | None = None) -> Tensor:
        checks.check_ids(ids, self.bits)
        if tile is not None:
            return streaming.decode_tiles(self.decode, ids, tile, self.stride[1:])
        first = WINDOW + 1
        windows = ids[:, :first], *(ids[:, first:].split(WINDOW, 1) if ids.shape[1] > first else ())
        return torch.cat([*self.stream_decode(windows)], 2)

    def stream_decode(self, id_chunks) -> Iterator[Tensor]:
        state: State = {}
        for ids in id_chunks:
            checks.check_ids(ids, self.bits)
            yield self._decode_chunk(ids, state).clamp(-1, 1)

    def encode_chunk(self, video: Tensor, state: State, hidden: bool = False) -> Tensor:
        return self.encode_feature("hidden" if hidden else "ids", video, state)

    @torch.no_grad()
    def encode_feature(self, kind: str, video: Tensor, state: State) -> Tensor:
        if kind in ("latents", "hidden"):
            return self._call(kind, video, state)
        return self._call("ids", video, state)[:, None]

    # ------------------------------------------------------------- the class

    def _call(self, kind: str, video: Tensor, state: State) -> Tensor:
        """Encode the next chunk of a stream, [B, 3, T, H, W] as in `encode_chunk`; return the part that is new."""
        step, first = self.stride[0], not state
        repeats = step - 1 if first and not self.causal else 0
        before = [video[:, :, :1]] * repeats if first or not self.causal else [state[self.encoder]]
        state[self.encoder] = video[:, :, -1:].clone() if self.causal else video.new_empty(0)
        x = torch.cat([*before, video], 2).float()
        grid = [(x.shape[2] - self.causal) // step + self.causal]
        grid += [side // pixels for side, pixels in zip(x.shape[3:], self.stride[1:], strict=True)]
        out = self._encode_ids(x) if kind == "ids" else self._features(x, kind)
        if (found := [*out.shape[-3:]]) != grid or len(out) != len(x):
            hint = "" if found[1:] != grid[1:] else f" (causal={self.causal}: set it if that is wrong)"
            raise ValueError(
                f"{self.spec} makes {kind} of {found} from {[*x.shape]}; stride {self.stride} wants {grid}{hint}"
            )
        return out if first or not self.causal else out[..., 1:, :, :]

    def _encode_ids(self, video: Tensor) -> Tensor:
        ids = self.model.encode(video.to(self.place or self.device))
        if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.ndim != 4:
            raise ValueError(f"{self.spec}: encode returns int64 ids [B, t, h, w], not {_describe(ids)}")
        ids = ids.to(self.device)
        try:
            checks.check_ids(ids, self.bits)
        except ValueError as error:
            raise ValueError(f"{self.spec}: encode is wrong: {error}") from error
        return ids

    def _features(self, video: Tensor, kind: str) -> Tensor:
        if why := self.lacks.get(kind):
            raise ValueError(f"no {kind}: {why}")
        x = self.model.features(video.to(self.place or self.device), kind)
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim != 5:
            raise ValueError(f"{self.spec}: features returns float [B, C, t, h, w], not {_describe(x)}")
        return x.to(self.device).float()

    @torch.no_grad()
    def _decode_chunk(self, ids: Tensor, state: State) -> Tensor:
        """Decode the next ids [B, t, h, w] of a stream to [B, 3, T, H, W]."""
        if why := self.lacks.get("recon"):
            raise ValueError(f"no reconstruction: {why}")
        step, first = self.stride[0], not state
        ids = ids.to(self.device).long()
        if self.causal and not first:  # the token of the frame before, which is there only as pixels
            ids = torch.cat([self._encode_ids(state[self.decoder]), ids], 1)
        video = self.model.decode(ids.to(self.place or self.device))
        frames = step * (ids.shape[1] - self.causal) + self.causal
        size = [side * pixels for side, pixels in zip(ids.shape[2:], self.stride[1:], strict=True)]
        wanted = [len(ids), 3, frames, *size]
        if not isinstance(video, Tensor) or not video.is_floating_point() or [*video.shape] != wanted:
            raise ValueError(f"{self.spec}: decode returns float {wanted}, not {_describe(video)}")
        video = video.to(self.device).float()
        state[self.decoder] = video[:, :, -1:].clamp(-1, 1)
        known = (0 if first else 1) if self.causal else (step - 1 if first else 0)
        return video[:, :, known:]

    def _grid(self, kind: str, video: Tensor, tile: int | tuple[int, int] | None) -> Tensor:
        checks.check_video(video, self.stride)
        if tile is not None:
            return streaming.encode_tiles(lambda part: self._grid(kind, part, None), video, tile, self.stride[1:])
        state: State = {}
        windows = streaming.pad_chunks([video.to(self.device)], self.stride, WINDOW)
        return torch.cat([self.encode_feature(kind, window, state) for window in windows], 2)

    # ----------------------------------------------------------- measurement

    def _find_bits(self) -> float:
        size, bits = getattr(self.model, "vocab_size", None), getattr(self.model, "bits", None)
        if isinstance(size, int) and size > 1:
            return math.log2(size)
        if isinstance(bits, (int, float)) and bits > 0:
            return float(bits)
        raise ValueError(f"{self.spec} doesn't say how many ids it has: set vocab_size (or bits, its log2)")

    @torch.no_grad()
    def _find_stride(self) -> tuple[tuple[int, int, int], bool]:
        """Return the stride and whether the first frame is encoded alone: the class's own, or measured."""
        own = getattr(self.model, "stride", None)
        if own is not None:
            stride = tuple(own)
            if len(stride) != 3 or not all(isinstance(side, int) and side > 0 for side in stride):
                raise ValueError(f"{self.spec}: stride is three whole numbers (time, height, width), not {own}")
            return stride, bool(getattr(self.model, "causal", True)) and stride[0] > 1
        frames, side = MEASURED
        errors = []
        for more in (1, 0):
            clips = [torch.zeros(1, 3, n * frames + more, side, side) for n in (1, 2)]
            try:
                short, long = ([*self._encode_ids(clip).shape[1:]] for clip in clips)
            except Exception as error:  # its code may raise anything
                errors.append(error)
                continue
            step = long[0] - short[0]
            if step and frames % step == 0 and short[0] - step in (0, 1) and not any(side % n for n in short[1:]):
                return (frames // step, side // short[1], side // short[2]), short[0] > step > 0 and step < frames
            errors.append(ValueError(f"{frames + more} and {2 * frames + more} frames give {short} and {long} ids"))
        text = one_line(errors[0])
        text = text if text.startswith(self.spec) else f"{self.spec}: {text}"
        raise ValueError(f"{text} (from clips {[*clips[0].shape]}; if it needs others, set stride)") from errors[0]


class _Net(nn.Module):
    """Stands for the networks of a user's class where memory is estimated, with the least that any of them needs."""

    activation_elems_per_pixel = 3.0
    stride = (1, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()), requires_grad=False)  # its device is that of the tokenizer


class _Bits(nn.Module):
    """Quantizer whose input is ids already, [B, 1, t, h, w], and whose codes are the bits of an id as -1 and +1."""

    def __init__(self, bits: float):
        super().__init__()
        self.bits = math.ceil(bits)

    def codes_to_ids(self, codes_B1thw: Tensor) -> Tensor:
        return codes_B1thw[:, 0]

    def ids_to_codes(self, ids_Bthw: Tensor) -> Tensor:
        return ids_to_signs(ids_Bthw, self.bits).movedim(-1, 1)


def build_model(spec: str):
    """Import and build what a name such as "module:Class?key=value" stands for, see `CustomTokenizer`."""
    place, _, query = spec.partition("?")
    module_name, _, name = place.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # last, so that no file here hides a module of Python
    try:
        module = import_module(module_name)
    except Exception as error:  # importing runs its code, which may raise anything
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(
                f"{spec}: no module {error.name!r} in the current directory or on Python's path"
            ) from error
        raise ValueError(f"{spec}: importing {module_name} fails: {type(error).__name__}: {one_line(error)}") from error
    if not callable(make := getattr(module, name, None)):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ValueError(f"{spec}: {module_name} has no class or function {name!r}: {nearest(name, known)}")
    arguments = {key: _literal(value) for key, value in parse_qsl(query.replace("+", "%2B"), True)}
    try:
        model = make(**arguments)
    except Exception as error:  # as above
        raise ValueError(f"{spec} can't be built: {type(error).__name__}: {one_line(error)}") from error
    if not callable(getattr(model, "encode", None)):
        raise ValueError(f"{spec} is no tokenizer: {type(model).__name__} has no method encode(video)")
    return model


def hash_model(model, spec: str) -> str:
    """Hash what identifies the tokens of a user's class: first 16 hex digits of sha256.

    With weights (of the object, if it is an nn.Module, or of modules that are its attributes) these are the weights,
    the arguments in `spec` and the object's `version`. Without, they are the whole `spec` and the `version`.
    """
    parts = {"": model} if isinstance(model, nn.Module) else getattr(model, "__dict__", {})
    state = {
        f"{name}.{key}": tensor
        for name, part in parts.items()
        if isinstance(part, nn.Module)
        for key, tensor in part.state_dict().items()
        if isinstance(tensor, Tensor)
    }
    what = f"{hash_state(state)}?{spec.partition('?')[2]}" if state else spec
    return hashlib.sha256(f"{what}, version {getattr(model, 'version', None)}".encode()).hexdigest()[:16]


def _literal(text: str):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _describe(value: object) -> str:
    return f"{value.dtype} {[*value.shape]}" if isinstance(value, Tensor) else type(value).__name__
