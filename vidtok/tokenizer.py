"""`VideoTokenizer`: encode clips to token ids and decode them.

Videos of any length are encoded and decoded as streams. The state of a stream is in an `EncodeStream` or
`DecodeStream`, never in the model.

Legend: B batch, T H W video, t h w token grid, K latent channels, C code channels, D encoder channels. With the stride
(s_t, s_h, s_w) of the model, T = 1 + s_t (t - 1), H = s_h h, W = s_w w.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files

import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from torch import Tensor

from vidtok import checks, streaming
from vidtok.configs.compose import to_dict
from vidtok.errors import nearest
from vidtok.hub import PretrainedModel, find_pretrained, load_config, load_weights
from vidtok.nets import NETS
from vidtok.nets.layers import State
from vidtok.quantize import QUANTIZERS

SCHEMA = "vidtok.tokenizer/1"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def check_precision(name: str) -> None:
    """Raise ValueError for a name that is not in `PRECISIONS`."""
    if name not in PRECISIONS:
        raise ValueError(f"unknown precision {name!r}: {nearest(name, PRECISIONS)}")


@dataclass(frozen=True)
class TokenizerConfig:
    """Config of a tokenizer: all that is needed to rebuild it.

    Attributes:
        name: name of the model in results and token files.
        net: {"kind": a name in `vidtok.nets.NETS`, **arguments}.
        quantizer: {"kind": a name in `vidtok.quantize.QUANTIZERS`, **arguments}.
        preprocessing: recommended input: size (short side in pixels) and fps (None, the video's own).
        license: license of the weights.
    """

    name: str
    net: dict
    quantizer: dict
    preprocessing: dict = field(default_factory=lambda: {"size": 128, "fps": None})
    license: str = "apache-2.0"

    def __post_init__(self):
        self.net["kind"], self.quantizer["kind"]


def _build(table: dict, what: str, spec: dict):
    arguments = dict(spec)
    kind = arguments.pop("kind")
    if kind not in table:
        raise ValueError(f"unknown {what} {kind!r}: {nearest(kind, table)}")
    return table[kind], arguments


def _call(make, what: str, *positional, **arguments):
    """Call `make` with arguments from a config; raise ValueError for unknown arguments, since users write configs."""
    try:
        return make(*positional, **arguments)
    except TypeError as error:
        raise ValueError(f"{what}: {error}") from error


@contextmanager
def _exact_convolutions():
    """Compute float32 convolutions in float32.

    On a GPU, cuDNN otherwise rounds inputs to 10 bits (TF32), which changed ids of vidtok-t on an H200: tokens would
    depend on the machine. Matrix products are exact by default.
    """
    convolutions = getattr(torch.backends.cudnn, "conv", None)
    if hasattr(convolutions, "fp32_precision"):
        owner, name, exact = convolutions, "fp32_precision", "ieee"
    else:  # torch < 2.9
        owner, name, exact = torch.backends.cudnn, "allow_tf32", False
    before = getattr(owner, name)
    setattr(owner, name, exact)
    try:
        yield
    finally:
        setattr(owner, name, before)


class VideoTokenizer(PretrainedModel, tags=["video-tokenizer"]):
    """Video tokenizer with an encoder, a quantizer and a decoder.

    Attributes:
        config: the `TokenizerConfig`.
        bits: log2 of the codebook size.
        stride: pixels per token in (time, height, width); the first frame has its own tokens.
        lacks: reason for each of "latents", "hidden" and "recon" that it can't make; empty but for custom tokenizers.
        chunk_latents: latents per chunk of a video in `vidtok.extraction`.
    """

    config: TokenizerConfig
    lacks: Mapping[str, str] = {}
    chunk_latents = streaming.LATENTS
    compiled_parts = ("encoder", "decoder")
    compiled_methods = (
        "encode", "encode_latents", "forward_features", "decode", "stream_encode", "stream_decode", "encode_chunk",
        "encode_feature", "set_precision",
    )  # fmt: skip

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        build_net, net = _build(NETS, "net", config.net)
        make_quantizer, arguments = _build(QUANTIZERS, "quantizer", config.quantizer)
        quantizer = _call(make_quantizer, "quantizer", **arguments)
        encoder, decoder = _call(build_net, "net", quantizer.in_channels, quantizer.code_channels, **net)
        self.quantizer, self.encoder, self.decoder = quantizer, encoder, decoder
        self.bits = self.quantizer.bits
        self.stride = self.encoder.stride

    # ---------------------------------------------------------------- clips

    @torch.no_grad()
    def encode(self, video: Tensor, tile: int | tuple[int, int] | None = None) -> Tensor:
        """Encode clips to token ids.

        Args:
            video: [B, 3, T, H, W], float in [-1, 1] (5 % overshoot is tolerated).
            tile: side(s) in pixels of overlapping spatial tiles, for frames too large for memory.

        Returns:
            int64 [B, t, h, w], 0 .. 2^bits - 1.

        Raises:
            ValueError: another shape, dtype, range or length.
            MemoryError: the frames exceed the free memory; the message has the estimate.
        """
        return self.quantizer.codes_to_ids(self.encode_latents(video, tile))

    @torch.no_grad()
    def encode_latents(self, video: Tensor, tile: int | tuple[int, int] | None = None) -> Tensor:
        """Compute the latents that `encode` quantizes (LFQ takes their signs): float32 [B, K, t, h, w]."""
        return self._encode(video, tile)

    @torch.no_grad()
    def forward_features(self, video: Tensor, tile: int | tuple[int, int] | None = None) -> Tensor:
        """Compute activations of the encoder, for probes: float32 [B, D, t, h, w].

        They come from its middle block; for the net "magvit2", from the layer before the latents.
        """
        return self._encode(video, tile, hidden=True)

    @torch.no_grad()
    def decode(self, ids: Tensor, tile: int | tuple[int, int] | None = None) -> Tensor:
        """Decode token ids to clips.

        Args:
            ids: integers [B, t, h, w].
            tile: side(s) in pixels of overlapping spatial tiles, blended where they overlap.

        Returns:
            float32 [B, 3, T, H, W], clamped to [-1, 1].

        Raises:
            ValueError: another shape or dtype, or ids outside 0 .. 2^bits - 1.
            MemoryError: as in `encode`.
        """
        checks.check_ids(ids, self.bits)
        if tile is not None:
            return streaming.decode_tiles(self.decode, ids, tile, self.stride[1:])
        checks.check_memory(self.decoder, ids.shape, self.stride)
        codes = self.quantizer.ids_to_codes(ids.to(self.device).long())
        return torch.cat(list(DecodeStream(self._decode_chunk).push(codes)), 2).clamp_(-1, 1)

    def ids_to_codes(self, ids: Tensor) -> Tensor:
        """Convert ids [B, t, h, w] to the decoder's input, float32 [B, C, t, h, w]: +-1 for LFQ, else quantized."""
        checks.check_ids(ids, self.bits)
        return self.quantizer.ids_to_codes(ids.long())

    def codes_to_ids(self, codes: Tensor) -> Tensor:
        """Convert codes or latents [B, C, t, h, w] to int64 ids [B, t, h, w]."""
        checks.check_codes(codes, self.quantizer.code_channels)
        return self.quantizer.codes_to_ids(codes)

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run a training pass with gradients; return (reconstruction like `video`, but not clamped; latents; codes)."""
        z_BKthw = self._latents(video, None)
        codes_BCthw = self.quantizer.quantize(z_BKthw)
        return self._reconstruct(codes_BCthw, None), z_BKthw, codes_BCthw

    # -------------------------------------------------------------- streams

    def stream_encode(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Encode a video of any length, in chunks of any number of frames, to ids in bounded memory.

        Args:
            chunks: [B, 3, any, H, W] each, float in [-1, 1].

        Yields:
            Ids [B, n, h, w], int64. Concatenated in time they equal `encode` of the concatenated chunks.

        Raises:
            ValueError: an illegal chunk, or a total number of frames other than 1 + s_t k; the latter is raised after
                all complete latents have been yielded.
        """
        stream = EncodeStream(self.encode_chunk, self.stride[0])
        for chunk in chunks:
            checks.check_video(chunk, self.stride, any_length=True)
            for z in stream.push(chunk.to(self.device)):
                yield self.quantizer.codes_to_ids(z)
        stream.close()

    def stream_decode(self, id_chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Decode ids, in chunks [B, any, h, w], in bounded memory; the concatenated videos equal `decode`."""
        stream = DecodeStream(self._decode_chunk)
        for ids in id_chunks:
            checks.check_ids(ids, self.bits)
            for video in stream.push(self.quantizer.ids_to_codes(ids.to(self.device).long())):
                yield video.clamp(-1, 1)

    @torch.no_grad()
    def encode_chunk(self, video: Tensor, state: State, hidden: bool = False) -> Tensor:
        """Encode the next chunk of a stream. Every path to ids, latents and hidden features comes through here.

        Args:
            video: [B, 3, T, H, W] in [-1, 1] on the model's device; T is 1 + s_t k in the first chunk of a stream and
                s_t k in the others.
            state: state of the stream, updated in place; {} before the first chunk.
            hidden: return the activations of `forward_features`, not latents. It must be the same for all chunks of a
                stream.

        Returns:
            float32 [B, K, t, h, w], or [B, D, t, h, w] of hidden features.
        """
        # Training may use faster, inexact convolutions. Features that are stored or compared must be the same on every
        # machine, also inside the autocast of a larger model.
        with torch.autocast(self.device.type, enabled=False), _exact_convolutions():
            if hidden:
                return self.encoder(video.to(self.dtype), state, hidden=True).float()
            return self._latents(video, state)

    def encode_feature(self, kind: str, video: Tensor, state: State) -> Tensor:
        """Encode the next chunk of a stream to what a stored feature is made of: "hidden", or latents of any other."""
        return self.encode_chunk(video, state, hidden=kind == "hidden")

    def _encode(self, video: Tensor, tile, hidden: bool = False) -> Tensor:
        checks.check_video(video, self.stride, values=False)
        if tile is not None:
            return streaming.encode_tiles(lambda part: self._encode(part, None, hidden), video, tile, self.stride[1:])
        checks.check_memory(self.encoder, video.shape, (1, 1, 1))
        checks.check_values(video)
        video = video.to(self.device)
        stream = EncodeStream(partial(self.encode_chunk, hidden=hidden), self.stride[0])
        return torch.cat(list(stream.push(video)), 2)

    def _decode_chunk(self, codes: Tensor, state: State) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            return self._reconstruct(codes, state)

    def _latents(self, video: Tensor, state) -> Tensor:
        return self.quantizer.latents(self.encoder(video.to(self.dtype), state))

    def _reconstruct(self, codes: Tensor, state) -> Tensor:
        return self.decoder(codes.to(self.dtype), state).float()

    # -------------------------------------------------------- load and save

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.encoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the networks; latents and codes are always float32."""
        return next(self.encoder.parameters()).dtype

    def set_precision(self, precision: str) -> "VideoTokenizer":
        """Run the networks in "fp32" or "bf16" with channels-last weights; the quantizer stays in float32.

        In bf16 a loaded model keeps the `weight_hash` of its file. Back in fp32 the hash differs, since weights were
        rounded.
        """
        check_precision(precision)
        # Token files record the precision besides the hash.
        with self.casting():
            for net in (self.encoder, self.decoder):
                net.to(PRECISIONS[precision])
                for parameter in net.parameters():
                    if parameter.ndim in (4, 5):
                        layout = torch.channels_last if parameter.ndim == 4 else torch.channels_last_3d
                        parameter.data = parameter.data.contiguous(memory_format=layout)
        return self

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the hub's takes other arguments
        cls, name: str | os.PathLike, device: str | torch.device = "cpu", precision: str = "fp32", **hub_arguments
    ) -> "VideoTokenizer":
        """Load a tokenizer, ready for inference.

        Args:
            name: a model that the package ships ("vidtok-t"), a folder with config.json and model.safetensors, or a
                Hugging Face hub id ("owner/name").
            device: device to load the model to.
            precision: "fp32" or "bf16".
            hub_arguments: arguments of huggingface_hub, such as `revision`, `token` and `cache_dir`.

        Raises:
            ValueError: `name` is none of these, or a folder lacks weights or has those of another model.
        """
        config, weights = find_pretrained(name, "tokenizer", **hub_arguments)
        tokenizer = cls(load_config(config, SCHEMA, TokenizerConfig, "tokenizer"))
        tokenizer.set_file_hash(load_weights(tokenizer, weights))
        return tokenizer.eval().set_precision(precision).to(device)

    def _describe(self) -> tuple[str, str]:
        return SCHEMA, "A video tokenizer for vidtok: `VideoTokenizer.from_pretrained(PATH)`."


class EncodeStream:
    """Stream of frames that are encoded to latents.

    Args:
        encode: function of (video [B, 3, T, H, W], state) that returns [B, C, t, h, w]; T is 1 + step * k in the first
            call and step * k in later ones.
        step: frames per latent after the first.
    """

    def __init__(self, encode: Callable[[Tensor, State], Tensor], step: int):
        self.encode, self.step = encode, step
        self.state: State = {}
        self.pending: Tensor | None = None  # frames that don't complete a latent yet
        self.frames = 0  # number of frames encoded so far

    @torch.no_grad()
    def push(self, chunk: Tensor) -> Iterator[Tensor]:
        """Yield the latents [B, C, n, h, w] that `chunk` [B, 3, any, H, W] completes.

        Raises:
            ValueError: the chunk differs from earlier ones in batch or frame size.
        """
        if self.pending is not None:
            if chunk.shape[:2] != self.pending.shape[:2] or chunk.shape[3:] != self.pending.shape[3:]:
                raise ValueError(f"a chunk {list(chunk.shape)} follows frames {list(self.pending.shape)} in one stream")
            chunk = torch.cat([self.pending, chunk], 2)
        while True:
            first = 1 if self.frames == 0 else 0
            latents = min((chunk.shape[2] - first) // self.step, streaming.MAX_LATENTS - first)
            take = first + self.step * latents
            if chunk.shape[2] < first or take == 0:
                break
            yield self.encode(chunk[:, :, :take], self.state)
            self.frames += take
            chunk = chunk[:, :, take:]
        self.pending = chunk.clone()  # a view would keep the whole chunk in memory

    def close(self) -> None:
        """Raise ValueError if the stream had no frames, or its last frames don't complete a latent."""
        if self.pending is None or self.frames == 0:
            raise ValueError("the stream holds no frames")
        if left := self.pending.shape[2]:
            raise ValueError(
                f"a stream has 1 + {self.step}k frames; this one ended after {self.frames + left}, "
                f"so that its last {left} made no latent"
            )


class DecodeStream:
    """Stream of codes that are decoded to frames.

    Args:
        decode: function of (codes [B, C, t, h, w], state) that returns [B, 3, T, H, W].
    """

    def __init__(self, decode: Callable[[Tensor, State], Tensor]):
        self.decode = decode
        self.state: State = {}
        self.like: tuple | None = None  # batch, channels, height and width of the codes so far

    @torch.no_grad()
    def push(self, codes: Tensor) -> Iterator[Tensor]:
        """Decode codes [B, C, any, h, w]; yield [B, 3, n, H, W]. The first latent of a stream is one frame.

        Raises:
            ValueError: the codes differ from earlier ones in batch or frame size.
        """
        like = (codes.shape[:2], codes.shape[3:])
        if self.like not in (None, like):
            raise ValueError(f"codes {list(codes.shape)} follow others of another batch or frame size in one stream")
        self.like = like
        for part in codes.split(streaming.MAX_LATENTS, 2):
            yield self.decode(part, self.state)


def list_tokenizers() -> list[str]:
    """Return the names for `create_tokenizer`: the files of `vidtok/configs/model`."""
    return sorted(p.name.removesuffix(".yaml") for p in files("vidtok.configs").joinpath("model").iterdir())


def create_tokenizer(name: str, quantizer: str | None = None) -> VideoTokenizer:
    """Create an untrained tokenizer by config name, in training mode on the CPU.

    Args:
        name: one of `list_tokenizers()`.
        quantizer: name of a config in `vidtok/configs/quantizer` ("lfq", "lfq-residual", "fsq", "vq"); None, the
            model's own.

    Raises:
        ValueError: an unknown name.
    """
    if name not in list_tokenizers():
        raise ValueError(f"unknown tokenizer {name!r}: {nearest(name, list_tokenizers())}")
    overrides = [f"+model={name}"]
    if quantizer is not None:
        known = [p.name.removesuffix(".yaml") for p in files("vidtok.configs").joinpath("quantizer").iterdir()]
        if quantizer not in known:
            raise ValueError(f"unknown quantizer {quantizer!r}: {nearest(quantizer, known)}")
        overrides.append(f"+quantizer={quantizer}")
    with initialize_config_module("vidtok.configs", version_base="1.3"):
        return build_tokenizer(compose(overrides=overrides))


def build_tokenizer(cfg: DictConfig) -> VideoTokenizer:
    """Build the tokenizer of the config group `model`, and of the group `quantizer` if there is one."""
    model = to_dict(cfg.model)
    if "quantizer" in cfg:
        model["quantizer"] = to_dict(cfg.quantizer)
    return VideoTokenizer(TokenizerConfig(**model))
