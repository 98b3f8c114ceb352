"""The model's side: pieces of several streams in, their features out. A plain object, which an actor can hold."""

from collections.abc import Sequence
from dataclasses import dataclass, field

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


def load_tokenizer(
    model: str, device: str = "auto", precision: str = "fp32", tile: int | None = None
) -> VideoTokenizer:
    """Load a tokenizer for inference.

    Raises ValueError for a tile that doesn't fit its stride: one error, not one for every file.
    """
    tokenizer = VideoTokenizer.from_pretrained(model, pick_device(device), precision)
    if tile is not None:
        tile_cells(tile, tokenizer.stride[1:])
    return tokenizer


def load_head(name: str, tokenizer):
    """A trained head. Raises ValueError for one of another tokenizer."""
    from vidtok.heads import Head

    head = Head.from_pretrained(name, tokenizer.device)
    head.check_tokenizer(tokenizer.config.name, tokenizer.weight_hash)
    return head


def follow(protocol: dict, size: int | None, crop: str | None, clips: Clips | None) -> tuple[int, str, Clips]:
    """Size, crop and clips that a head was trained for (`HeadConfig.protocol`), where no others are asked for.

    Raises:
        ValueError: for a head that sees several clips at once, or crops of a larger picture.
    """
    if protocol.get("concat_segments") or protocol.get("resize", protocol["size"]) != protocol["size"]:
        raise ValueError("no embeddings of heads that see several clips at once, or crops of a larger picture")
    # Backbones were trained on one clip and crop at a time, which their protocol doesn't say.
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
    """The settings for features of a tokenizer.

    Args:
        tokenizer: a `VideoTokenizer`. feature: one of `FEATURES`. precision: the one it was loaded with.
        dtype: "float32" or "float16", how floats are stored.
        reader: what decodes the videos, see `vidtok.datasets.open_video`.
        requested: pool, head, resize, crop, resample, max_frames, sampler, tile, frame_folders: see `Settings`.

    Raises:
        ValueError: for settings that don't fit each other.
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
        **requested,
    )


@dataclass
class Stream:
    """What is kept of one stream between its pieces.

    states: of the encoder, one for each tile. parts: features so far, [C, t, h, w] each. count: cells in a pooled sum.
    """

    states: list[State] = field(default_factory=list)
    parts: list[np.ndarray] = field(default_factory=list)
    count: int = 0


# What a head's input is made of.
_INPUTS = {"tokens": "ids", "codes": "ids", "latents": "latents", "hidden": "hidden"}


class FeatureModel:
    """Args:
    tokenizer: loaded for inference.
    settings: feature, dtype, pool and tile say what comes out.
    batch: every pass is of so many streams; where there are fewer, the first one fills up. None, 1 on a CPU, else 8.
    head: of `vidtok.heads`, whose features before the last layer are the embedding.

    Raises ValueError for a head whose input is none of the tokenizer's.
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
        """The next piece of each stream, uint8 or float [1, 3, T, H, W] of one shape, all first ones or none.

        Raises:
            MemoryError: where they can't fit the memory at hand.
        """
        fill = self.batch - len(streams)
        video = torch.cat([*videos, *[videos[0]] * fill]) if self.batch > 1 else videos[0]
        stride, place = self.tokenizer.stride, 0

        def encode(part: Tensor) -> Tensor:
            nonlocal place
            before = [stream.states[place] if place < len(stream.states) else {} for stream in streams]
            state = _join([*before, *[before[0]] * fill])
            part = normalize_video(part.to(self.device))
            out = self.tokenizer.encode_chunk(part, state, hidden=self._grid == "hidden")
            for stream, after in zip(streams, _split(state, self.batch), strict=False):
                stream.states[place : place + 1] = [after]
            place += 1
            return out

        if self.settings.tile is None:
            check_memory(self.tokenizer.encoder, video.shape, (1, 1, 1))
            out_BCthw = encode(video)
        else:
            out_BCthw = encode_tiles(encode, video, self.settings.tile, stride[1:])
        for stream, features in zip(streams, self._kind(out_BCthw), strict=False):
            self._keep(stream, features)

    def finish(self, stream: Stream) -> np.ndarray:
        """The features of a stream that has ended, as `vidtok.extraction.record` says."""
        if self.settings.pool == "mean":
            return (stream.parts[0] / stream.count).astype(self.settings.dtype)
        array = np.concatenate(stream.parts, 0 if self._grid == "ids" else 1)
        return array if self.head is None else self._embed(array)

    def _kind(self, out_BCthw: Tensor) -> np.ndarray:
        """Of latents what is asked for, in the type that is stored."""
        quantizer = self.tokenizer.quantizer
        if self._grid in ("ids", "codes"):
            out_BCthw = quantizer.codes_to_ids(out_BCthw)
        if self._grid == "codes":
            out_BCthw = quantizer.ids_to_codes(out_BCthw)
        array = out_BCthw.cpu().numpy()
        return array if self.settings.pool == "mean" or self.head is not None else array.astype(self.settings.dtype)

    @torch.no_grad()
    def _embed(self, grid: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(grid)[None].to(self.device)
        embedding_BD = self.head.forward_head(self.head.forward_features(x), pre_logits=True)
        return embedding_BD[0].float().cpu().numpy().astype(self.settings.dtype)

    def _keep(self, stream: Stream, features: np.ndarray) -> None:
        if self.settings.pool != "mean":
            stream.parts.append(features)
            return
        total = features.sum((1, 2, 3), dtype=np.float64)
        stream.parts = [stream.parts[0] + total if stream.parts else total]
        stream.count += features[0].size


def _join(states: Sequence[State]) -> State:
    """Of several streams that are equally far; all are empty before their first piece."""
    if len(states) == 1:
        return dict(states[0])
    return {layer: torch.cat([state[layer] for state in states]) for layer in states[0]}


def _split(state: State, count: int) -> list[State]:
    """A layer that only marks that a clip has begun keeps an empty tensor, which all streams share."""
    return [
        {layer: kept[i : i + 1] if count > 1 and kept.numel() else kept for layer, kept in state.items()}
        for i in range(count)
    ]
