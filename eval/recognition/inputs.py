"""What a recognition head reads: from clips to tokens, codes, latents, hidden features, pixels or reconstructions.

Legend: B batch, C channels, T H W video, t h w token grid.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vidtok.checks import free_memory
from vidtok.errors import nearest
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

PIXELS_AT_ONCE, ON_CPU = 1 << 23, 1 << 20  # that are encoded, at most: 120 clips of 17 x 64 x 64, and 15


class InputEncoder:
    """Clips, float [B,3,T,H,W] in [-1,1] or uint8, to what a head reads; nothing in it is trained.

    Clips and reconstructions are rounded to 8 bits, features to float16: the same numbers whether they come from a
    cache or are made when they are needed.

    kind: one of `INPUTS`. "tokens" and "codes" give int64 ids [B,t,h,w], "latents" and "hidden" float32 [B,C,t,h,w],
    "pixels" and "recon" float32 [B,3,T,H,W]. tokenizer: where it is, is the result; not needed for pixels.
    cells: of a head trained on crops of the grid, their side: what is given is the central one; None, the whole grid.
    pixels_per_cell: for such heads of pixels; None, the tokenizer's.
    joined: J > 1, clips [B,J,3,T,H,W], each encoded alone, whose features then stand one after the other in time, J*t
    in place of t: what a head sees at once.

    Raises ValueError for another kind, a missing tokenizer, or pixels of several clips at once.
    """

    def __init__(
        self, kind: str, tokenizer: VideoTokenizer | None = None, joined: int = 1, cells: int | None = None,
        pixels_per_cell: int | None = None,
    ):  # fmt: skip
        if kind not in INPUTS:
            raise ValueError(f"unknown input {kind!r}: {nearest(kind, INPUTS)}")
        if tokenizer is None and kind != "pixels":
            raise ValueError(f"input {kind!r} comes from a tokenizer: give one")
        self.kind, self.tokenizer, self.joined, self.cells = kind, tokenizer, joined, cells
        self.pixels_per_cell = pixels_per_cell or (tokenizer.stride[-1] if tokenizer else 1)
        if joined > 1 and self.head_input == "pixels":
            raise ValueError(f"clips can be joined as tokens, codes, latents or hidden features, not as {kind}")

    @property
    def head_input(self) -> str:
        """The input that the head is built for."""
        return "pixels" if self.kind == "recon" else self.kind

    @property
    def unit(self) -> int:
        """Values per cell of the token grid, in the last two dimensions of what the head reads."""
        return self.pixels_per_cell if self.head_input == "pixels" else 1

    def __call__(self, video: Tensor) -> Tensor:
        if self.joined == 1:
            return self.cropped(unpack(self.encode_compact(video)))
        x = unpack(self.encode_compact(video.flatten(0, 1))).unflatten(0, (-1, self.joined))
        time = 1 if x.ndim == 5 else 2  # of ids [B,J,t,h,w] and features [B,J,C,t,h,w]
        return self.cropped(x.movedim(1, time).flatten(time, time + 1))

    def cropped(self, x: Tensor) -> Tensor:
        """What the head sees of a whole grid."""
        return center_crop_cells(x, self.cells, self.unit)

    @torch.no_grad()
    def encode_compact(self, video_B3THW: Tensor) -> Tensor:
        """The same for single clips, as it is kept in memory: pixels uint8, features float16, ids int64."""
        video = video_B3THW if video_B3THW.dtype == torch.uint8 else to_bytes(video_B3THW)
        if self.kind == "pixels":
            return video
        x = to_float(video.to(self.tokenizer.device))
        with torch.autocast(
            x.device.type, enabled=False
        ):  # in a loop's bf16, other tokens would be trained than tested
            if self.kind == "latents":
                return self.tokenizer.encode_latents(x).half()
            if self.kind == "hidden":
                return self.tokenizer.forward_features(x).half()
            ids = self.tokenizer.encode(x)
            return ids if self.kind in ("tokens", "codes") else to_bytes(self.tokenizer.decode(ids))


def encode_all(encoder: InputEncoder, video_NV3THW: Tensor) -> Tensor:
    """Encodes uint8 clips once, to be kept in memory: x [N,V,...], packed (see `unpack`)."""
    assert encoder.joined == 1, "clips that are joined are random ones of each video"
    if encoder.kind == "pixels":
        return video_NV3THW
    at_once = _pixels_at_once(encoder.tokenizer) // video_NV3THW[0, 0, 0].numel()
    parts = [encoder.encode_compact(part).cpu() for part in video_NV3THW.flatten(0, 1).split(max(1, at_once))]
    return torch.cat(parts).unflatten(0, video_NV3THW.shape[:2])


def _pixels_at_once(tokenizer: VideoTokenizer) -> int:
    if tokenizer.device.type == "cpu":
        return ON_CPU
    size = (
        max(net.activation_elems_per_pixel for net in (tokenizer.encoder, tokenizer.decoder)) * tokenizer.dtype.itemsize
    )
    return min(PIXELS_AT_ONCE, free_memory(tokenizer.device) // (4 * size))


def unpack(x: Tensor) -> Tensor:
    """What a head is given, of what `InputEncoder.encode_compact` gave."""
    return to_float(x) if x.dtype == torch.uint8 else x.float() if x.is_floating_point() else x


def crop_cells(x: Tensor, top: int, left: int, cells: int, unit: int) -> Tensor:
    """cells x cells of the grid, from the cell (top, left); `unit` values of the last two dimensions are one cell."""
    (y, x0), side = (top * unit, left * unit), cells * unit
    return x[..., y : y + side, x0 : x0 + side]


def center_crop_cells(x: Tensor, cells: int | None, unit: int) -> Tensor:
    """What a test sees of inputs that are trained on crops of `cells` x `cells`."""
    if cells is None:
        return x
    top, left = ((side // unit - cells) // 2 for side in x.shape[-2:])
    return crop_cells(x, top, left, cells, unit)


def to_float(video: Tensor) -> Tensor:
    """uint8 to float32 in [-1,1]; floats as they are."""
    return video.float().div_(127.5).sub_(1) if video.dtype == torch.uint8 else video


def join_segments(video_BV3THW: Tensor, joined: int) -> Tensor:
    """The views of B videos, V = segments x crops, as `InputEncoder` wants them: [B,V,3,T,H,W], or, for joined =
    segments > 1, [B,crops,segments,3,T,H,W]."""
    return video_BV3THW if joined == 1 else video_BV3THW.unflatten(1, (joined, -1)).transpose(1, 2)


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
