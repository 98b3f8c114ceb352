"""Videos of any length in bounded memory: the state of one stream is one of these objects, never the model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vidtok.layers import State

MAX_LATENTS = 16  # latents per pass through a network; longer chunks are cut


class EncodeStream:
    """Frames in, latents out.

    Args:
        encode: (video [B, 3, T, H, W], state) -> [B, C, t, h, w], where T is 1 + step * k in the first call, step * k
            later.
        step: frames per latent after the first.
    """

    def __init__(self, encode: Callable[[Tensor, State], Tensor], step: int):
        self.encode, self.step = encode, step
        self.state: State = {}
        self.pending: Tensor | None = None  # frames that don't fill a latent yet
        self.frames = 0  # frames taken so far

    @torch.no_grad()
    def push(self, chunk: Tensor) -> Iterator[Tensor]:
        """Yields [B, C, n, h, w] for the latents that `chunk` [B, 3, any, H, W] completes.

        Raises:
            ValueError: if the chunk has another batch or frame size than the ones before.
        """
        if self.pending is not None:
            if chunk.shape[:2] != self.pending.shape[:2] or chunk.shape[3:] != self.pending.shape[3:]:
                raise ValueError(f"a chunk {list(chunk.shape)} follows frames {list(self.pending.shape)} in one stream")
            chunk = torch.cat([self.pending, chunk], 2)
        while True:
            first = 1 if self.frames == 0 else 0
            latents = min((chunk.shape[2] - first) // self.step, MAX_LATENTS - first)
            take = first + self.step * latents
            if chunk.shape[2] < first or take == 0:
                break
            with exact_convolutions():
                latents_BCthw = self.encode(chunk[:, :, :take], self.state)
            yield latents_BCthw
            self.frames += take
            chunk = chunk[:, :, take:]
        self.pending = chunk.clone()  # not a view, which would keep the whole chunk

    def close(self) -> None:
        """Raises ValueError if the stream held no frame, or frames are left that don't fill a latent."""
        if self.frames == 0:
            raise ValueError("the stream holds no frames")
        if left := self.pending.shape[2]:
            raise ValueError(
                f"a stream has 1 + {self.step}k frames; this one ended after {self.frames + left}, "
                f"so that its last {left} made no latent"
            )


class DecodeStream:
    """Codes in, frames out.

    Args:
        decode: (codes [B, C, t, h, w], state) -> [B, 3, T, H, W].
    """

    def __init__(self, decode: Callable[[Tensor, State], Tensor]):
        self.decode = decode
        self.state: State = {}
        self.like: tuple | None = None  # batch, channels, height and width of the codes so far

    @torch.no_grad()
    def push(self, codes: Tensor) -> Iterator[Tensor]:
        """Yields the frames of `codes`; the first latent of a stream is one frame.

        Raises:
            ValueError: if the codes have another batch or frame size than the ones before.
        """
        like = (codes.shape[:2], codes.shape[3:])
        if self.like not in (None, like):
            raise ValueError(f"codes {list(codes.shape)} follow others of another batch or frame size in one stream")
        self.like = like
        for part in codes.split(MAX_LATENTS, 2):
            yield self.decode(part, self.state)


@contextmanager
def exact_convolutions():
    """float32 convolutions in float32. cuDNN otherwise takes 10 bits of their inputs on a GPU (TF32), which on an H200
    changed 9 of 10,240 ids of vidtok-t: tokens would depend on the machine. (Matrix products are exact unless the user
    says otherwise.)"""
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
