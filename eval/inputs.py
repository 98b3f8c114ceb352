"""What a recognition head reads: from clips to tokens, codes, latents, hidden features, pixels or reconstructions.

Legend: B batch, C channels, T H W video, t h w token grid.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vidtok.hints import nearest
from vidtok.tokenizer import VideoTokenizer

# name: what it is
INPUTS = {
    "tokens": "ids, each half of their bits a vocabulary of its own",
    "codes": "the ids' bits as signs",
    "latents": "what is quantized, before it is",
    "hidden": "the encoder's features",
    "pixels": "the clip itself",
    "recon": "pixels of the decoded tokens",
}


class InputEncoder:
    """Clips, float [B,3,T,H,W] in [-1,1] or uint8, to what a head reads; nothing in it is trained.

    kind: one of `INPUTS`. "tokens" and "codes" give int64 ids [B,t,h,w], "latents" and "hidden" float32 [B,C,t,h,w],
    "pixels" and "recon" float32 [B,3,T,H,W]. tokenizer: not needed for pixels.

    Raises ValueError for another kind, or a missing tokenizer.
    """

    def __init__(self, kind: str, tokenizer: VideoTokenizer | None = None):
        if kind not in INPUTS:
            raise ValueError(f"unknown input {kind!r}: {nearest(kind, INPUTS)}")
        if tokenizer is None and kind != "pixels":
            raise ValueError(f"input {kind!r} comes from a tokenizer: give one")
        self.kind, self.tokenizer = kind, tokenizer

    @property
    def head_input(self) -> str:
        """The input that the head is built for."""
        return "pixels" if self.kind == "recon" else self.kind

    @property
    def unit(self) -> int:
        """Values per cell of the token grid, in the last two dimensions of what the head reads."""
        return self.tokenizer.stride[-1] if self.head_input == "pixels" and self.tokenizer else 1

    @torch.no_grad()
    def __call__(self, video_B3THW: Tensor) -> Tensor:
        x = to_float(video_B3THW)
        if self.kind == "pixels":
            return x
        if self.kind in ("tokens", "codes"):
            return self.tokenizer.encode(x)
        if self.kind == "latents":
            return self.tokenizer.encode_latents(x)
        if self.kind == "hidden":
            return self.tokenizer.forward_features(x)
        return self.tokenizer.decode(self.tokenizer.encode(x))


@torch.no_grad()
def encode_all(encoder: InputEncoder, video_NV3THW: Tensor, batch_size: int = 4) -> Tensor:
    """Encodes uint8 clips once, to be kept in memory: x [N,V,...], packed (see `unpack`)."""
    device = "cpu" if encoder.tokenizer is None else encoder.tokenizer.device
    flat = video_NV3THW.flatten(0, 1)
    if encoder.kind == "pixels":
        return video_NV3THW
    parts = [pack(encoder(part.to(device))).cpu() for part in flat.split(batch_size)]
    return torch.cat(parts).unflatten(0, video_NV3THW.shape[:2])


def pack(x: Tensor) -> Tensor:
    """Pixels as uint8, features as float16, ids as they are."""
    if not x.is_floating_point():
        return x
    return to_bytes(x) if x.shape[1] == 3 else x.half()


def unpack(x: Tensor) -> Tensor:
    """What a head is given, of what `encode_all` keeps."""
    return to_float(x) if x.dtype == torch.uint8 else x.float() if x.is_floating_point() else x


def to_float(video: Tensor) -> Tensor:
    """uint8 to float32 in [-1,1]; floats as they are."""
    return video.float().div_(127.5).sub_(1) if video.dtype == torch.uint8 else video


def to_bytes(video: Tensor) -> Tensor:
    """Float in [-1,1] to uint8, rounded to nearest: the inverse of `to_float`."""
    return video.add(1).mul(127.5).round_().clamp_(0, 255).to(torch.uint8)


def shuffle_frames(video_NVCTHW: Tensor, ids: Sequence[str]) -> Tensor:
    """The frames of each video in a random order, never the true one. It follows from the video's id, so that it is
    the same in whatever batch, and for all views."""
    T = video_NVCTHW.shape[3]
    shuffled = []
    for video_VCTHW, name in zip(video_NVCTHW, ids, strict=True):
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        order = np.arange(T)
        while T > 1 and (order == np.arange(T)).all():
            order = rng.permutation(T)
        shuffled.append(video_VCTHW[:, :, torch.from_numpy(order)])
    return torch.stack(shuffled)
