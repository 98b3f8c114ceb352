"""How far bf16 gives the tokens of fp32: a rounded latent near zero may fall on the other side."""

import math
from pathlib import Path

import torch

from vidtok.cli.videos import Source
from vidtok.padding import pad_chunks
from vidtok.tokenizer import VideoTokenizer

VIDEOS = 8  # whose first frames are encoded twice; more would cost time and say nothing new


class Agreement:
    """Bits and tokens that two tokenizers agree on, over the beginnings of the first `VIDEOS` videos."""

    def __init__(self, tokenizer: VideoTokenizer, reference: VideoTokenizer):
        self.tokenizer, self.reference = tokenizer, reference
        self.bits = math.ceil(tokenizer.bits)
        self.videos = self.frames = self.tokens = self.same_tokens = self.other_bits = 0

    def add(self, path: Path, size: int | None, fps: float | None, tile: int | None) -> None:
        if self.videos == VIDEOS:
            return
        with Source(path, size, fps) as source:
            clip = next(pad_chunks(source, self.tokenizer.stride))
        differ = self.tokenizer.encode(clip, tile=tile) ^ self.reference.encode(clip, tile=tile)
        self.videos += 1
        self.frames += clip.shape[2]
        self.tokens += differ.numel()
        self.same_tokens += int((differ == 0).sum())
        places = torch.arange(self.bits, device=differ.device)
        self.other_bits += int((differ[..., None] >> places & 1).sum())

    def __str__(self) -> str:
        bits = 1 - self.other_bits / (self.tokens * self.bits)
        return (
            f"bf16 against fp32: {bits:.2%} of bits and {self.same_tokens / self.tokens:.2%} of tokens agree "
            f"({self.frames} frames of {self.videos} videos)"
        )
