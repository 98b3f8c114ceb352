"""The model of an extraction: encodes chunks of several streams in one batch and returns features.

`FeatureModel` is a plain object, without threads and queues, so that a Ray actor can hold it.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidtok.checks import check_memory, pick_device
from vidtok.datasets.backends import pixels_version
from vidtok.datasets.frames import normalize_video
from vidtok.errors import nearest
from vidtok.extraction.record import FEATURES, Settings, id_type
from vidtok.extraction.sources import Clips
from vidtok.nets.layers import State
from vidtok.quantize import LFQ
from vidtok.streaming import encode_tiles, tile_cells
from vidtok.tokenizer import VideoTokenizer

CUSTOM = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*(\?.*)?")  # module:Class?key=value


def open_tokenizer(
    name: str | os.PathLike, device: str | torch.device = "auto", precision: str = "fp32"
) -> VideoTokenizer:
    """Load a tokenizer that a user names: as `VideoTokenizer.from_pretrained`, or a class of the user's own.

    Args:
        name: as of `VideoTokenizer.from_pretrained`, or "module:Class?key=value", see `vidtok.custom`. It has to come
            from the user and never from a file, since importing a module runs its code.
        device, precision: as of `VideoTokenizer.from_pretrained`; device "auto" is a GPU if there is one.

    Raises:
        ValueError: `name` is none of these, or the class doesn't follow the rules.
    """
    device = pick_device(device)
    if CUSTOM.fullmatch(str(name)) and not Path(name).is_dir():
        from vidtok.custom import CustomTokenizer

        return CustomTokenizer(str(name), device, precision)
    return VideoTokenizer.from_pretrained(name, device, precision)


def load_tokenizer(
    model: str, device: str = "auto", precision: str = "fp32", tile: int | None = None, custom: bool = False
) -> VideoTokenizer:
    """Load a tokenizer for inference.

    Args:
        model, device, precision, tile: as of `vidtok.extraction.run.Extraction`.
        custom: whether `model` may be a class of the user's own, see `open_tokenizer`.

    Raises:
        ValueError: the tile doesn't fit the tokenizer's stride. It is checked here so that there is one error, not one
            for every file.
    """
    if custom:
        tokenizer = open_tokenizer(model, device, precision)
    else:
        tokenizer = VideoTokenizer.from_pretrained(model, pick_device(device), precision)
    if tile is not None:
        tile_cells(tile, tokenizer.stride[1:])
    return tokenizer


def load_head(name: str, tokenizer):
    """Load a trained head.

    Raises:
        ValueError: the head was trained on another tokenizer.
    """
    from vidtok.heads import Head

    head = Head.from_pretrained(name, tokenizer.device)
    head.check_tokenizer(tokenizer.config.name, tokenizer.weight_hash)
    return head


def follow(protocol: dict, size: int | None, crop: str | None, clips: Clips | None) -> tuple[int, str, Clips]:
    """Return size, crop and clips: those given, and for each that is None the one that a head was trained with.

    Args:
        protocol: of the head, see `HeadConfig.protocol`.
        size: side in pixels.

    Raises:
        ValueError: the head sees several clips at once, or crops of a larger frame.
    """
    if protocol.get("concat_segments") or protocol.get("resize", protocol["size"]) != protocol["size"]:
        raise ValueError("no embeddings of heads that see several clips at once, or crops of a larger picture")
    # The protocol of a backbone has no crops and clips: it was trained on one crop of one clip at a time.
    size, crop = size or protocol["size"], crop or ("three" if protocol.get("crops") == 3 else "center")
    if clips is None:
        fps, stride = protocol.get("fps"), protocol.get("stride")
        name = "uniform" if fps is None and stride is None else "dense"
        clips = Clips(name, protocol.get("clips", 1), protocol["frames"], stride or 1, fps)
    return size, crop, clips


FLOATS = ("float32", "float16")


def make_settings(
    tokenizer,
    feature: str = "ids",
    precision: str = "fp32",
    dtype: str = "float32",
    reader: str = "auto",
    **requested,
) -> Settings:
    """Make the settings of features of a tokenizer.

    Args:
        tokenizer: a `VideoTokenizer`.
        feature: one of `FEATURES`.
        precision: the one that the tokenizer was loaded with.
        dtype: type in which floats are stored, "float32" or "float16".
        reader: video reader, see `vidtok.datasets.open_video`.
        requested: pool, head, resize, crop, resample, max_frames, sampler, tile, frame_folders: see `Settings`.

    Raises:
        ValueError: an illegal setting, or settings that don't fit each other.
    """
    if feature not in FEATURES:
        raise ValueError(f"unknown feature {feature!r}: {nearest(feature, FEATURES)}")
    if dtype not in FLOATS:
        raise ValueError(f"floats are stored as {' or '.join(FLOATS)}, not {dtype!r}")
    if requested.get("pool") not in (None, "mean"):
        raise ValueError(f"features are pooled by 'mean', not {requested['pool']!r}")
    if requested.get("pool") is not None and feature not in ("hidden", "latents"):
        raise ValueError(f"{feature} can't be pooled: hidden and latents can")
    if (feature == "embedding") != (requested.get("head") is not None):
        raise ValueError("embedding is what a trained head makes: it needs a head, and nothing else does")
    if why := tokenizer.lacks.get(feature):
        raise ValueError(f"no {feature}: {why}")
    if feature == "ids":
        dtype = id_type(tokenizer.bits).name
    elif feature == "codes" and isinstance(tokenizer.quantizer, LFQ):
        dtype = "int8"  # signs
    return Settings(
        feature=feature,
        model=tokenizer.config.name,
        weight_hash=tokenizer.weight_hash,
        precision=precision,
        bits=tokenizer.bits,
        stride=tuple(tokenizer.stride),
        dtype=dtype,
        pixels=pixels_version(reader),
        layer=tokenizer.encoder.feature_layer if feature == "hidden" else None,
        **requested,
    )


@dataclass
class Stream:
    """State of one stream between its chunks.

    Attributes:
        states: states of the causal encoder, one for each tile.
        parts: features so far, [C, t, h, w] each (ids [t, h, w]); with pooling one sum, float64 [C].
        count: number of grid cells in the pooled sum.
    """

    states: list[State] = field(default_factory=list)
    parts: list[np.ndarray] = field(default_factory=list)
    count: int = 0


# The feature that a head's input is made of, by the kind of its input.
_INPUTS = {"tokens": "ids", "codes": "ids", "latents": "latents", "hidden": "hidden"}


class FeatureModel:
    """A tokenizer, and a head for embeddings, that encode chunks of streams to features.

    Args:
        tokenizer: loaded for inference.
        settings: their feature, dtype, pool and tile determine the output.
        batch: streams per forward pass. A smaller batch is filled up with copies of its first stream, so that all
            passes have one shape. None: 1 on a CPU, else 8.
        head: of `vidtok.heads`; its features before the last layer are the embedding.

    Raises:
        ValueError: the head reads an input that no tokenizer makes.
    """

    def __init__(self, tokenizer: VideoTokenizer, settings: Settings, batch: int | None = None, head=None):
        self.tokenizer, self.settings, self.head, self.device = tokenizer, settings, head, tokenizer.device
        self.batch = batch or (1 if self.device.type == "cpu" else 8)
        self._grid = settings.feature
        if head is not None:
            kind = head.config.input["kind"]
            if kind not in _INPUTS:
                raise ValueError(f"head {head.config.name!r} reads {kind}, and no tokenizer makes that")
            head.validate_uncropped()
            self._grid = _INPUTS[kind]

    def to(self, device: str | torch.device) -> None:
        """Move the networks to a device."""
        self.tokenizer.to(device)
        if self.head is not None:
            self.head.to(device)
        self.device = torch.device(device)

    @torch.no_grad()
    def push(self, streams: Sequence[Stream], videos: Sequence[Tensor]) -> None:
        """Encode the next chunk of each stream.

        Args:
            streams: at most `batch`; updated in place.
            videos: a chunk of each, uint8 or float [1, 3, T, H, W], all of one shape. Either all of them are the first
                of their streams, or none is.

        Raises:
            MemoryError: the chunks don't fit the free memory.
        """
        fill = self.batch - len(streams)
        video = torch.cat([*videos, *[videos[0]] * fill]) if self.batch > 1 else videos[0]
        stride, place = self.tokenizer.stride, 0

        def encode(part: Tensor) -> Tensor:
            nonlocal place
            before = [stream.states[place] if place < len(stream.states) else {} for stream in streams]
            state = _join([*before, *[before[0]] * fill])
            part = normalize_video(part.to(self.device))
            out = self.tokenizer.encode_feature(self._grid, part, state)
            for stream, after in zip(streams, _split(state, self.batch), strict=False):
                stream.states[place : place + 1] = [after]
            place += 1
            return out

        if self.settings.tile is None:
            check_memory(self.tokenizer.encoder, video.shape, (1, 1, 1))
            out_BCthw = encode(video)
        else:
            out_BCthw = encode_tiles(encode, video, self.settings.tile, stride[1:])
        for stream, features in zip(streams, self._to_feature(out_BCthw), strict=False):
            self._keep(stream, features)

    def finish(self, stream: Stream) -> np.ndarray:
        """Return the features of a stream that has ended, laid out as in `vidtok.extraction.record`."""
        if self.settings.pool == "mean":
            return (stream.parts[0] / stream.count).astype(self.settings.dtype)
        array = np.concatenate(stream.parts, 0 if self._grid == "ids" else 1)
        return array if self.head is None else self._embed(array)

    def _to_feature(self, out_BCthw: Tensor) -> np.ndarray:
        """Convert latents or hidden features to the feature of the settings, in the dtype in which it is stored."""
        quantizer = self.tokenizer.quantizer
        # These are latents, not codes, which is right: `codes_to_ids` takes the sign, rounds or finds the nearest code
        # as `quantize` does, so both have the same ids. `VideoTokenizer.encode` skips `quantize` in the same way.
        if self._grid in ("ids", "codes"):
            out_BCthw = quantizer.codes_to_ids(out_BCthw)
        if self._grid == "codes":
            out_BCthw = quantizer.ids_to_codes(out_BCthw)
        array = out_BCthw.cpu().numpy()
        return array if self.settings.pool == "mean" or self.head is not None else array.astype(self.settings.dtype)

    @torch.no_grad()
    def _embed(self, grid: np.ndarray) -> np.ndarray:
        """Compute the head's embedding [C] of the features of a whole stream."""
        x = torch.from_numpy(grid)[None].to(self.device)
        embedding_BD = self.head.forward_head(self.head.forward_features(x), pre_logits=True)
        return embedding_BD[0].float().cpu().numpy().astype(self.settings.dtype)

    def _keep(self, stream: Stream, features: np.ndarray) -> None:
        """Append the features of a chunk to its stream, or add them to the pooled sum."""
        if self.settings.pool != "mean":
            stream.parts.append(features)
            return
        total = features.sum((1, 2, 3), dtype=np.float64)
        stream.parts = [stream.parts[0] + total if stream.parts else total]
        stream.count += features[0].size


def _join(states: Sequence[State]) -> State:
    """Concatenate the states of streams along the batch; all are empty before the first chunk, or none is."""
    if len(states) == 1:
        return dict(states[0])
    return {layer: torch.cat([state[layer] for state in states]) for layer in states[0]}


def _split(state: State, count: int) -> list[State]:
    """Split the state of a batch into one per stream, the inverse of `_join`.

    A layer that only marks that a clip has begun keeps an empty tensor, which all streams share.
    """
    return [
        {layer: kept[i : i + 1] if count > 1 and kept.numel() else kept for layer, kept in state.items()}
        for i in range(count)
    ]
