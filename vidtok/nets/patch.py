"""Patch network of vidtok-t: patch embedding of 4x8x8 pixels, convolutional blocks on the token grid, output patches.

Nearly all arithmetic is dense 3x3 convolutions and linear layers on the token grid, which has 1/256 of the video's
positions. These are efficient on CPUs and GPUs (depthwise kernels would be limited by memory bandwidth). Activations
are [B, t, h, w, C] throughout: linear layers need no permutation, and convolutions see the channels-last format.

Time is causal: each block mixes the last three latents per channel before its convolution, and no other layer depends
on earlier latents. The first frame has a patch of its own, which it fills by repetition. Output patches may overlap in
space (`overlap`): they are added where they overlap, which avoids visible block edges. Legend as in
`vidtok.nets.layers`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vidtok.nets.layers import PatchBlock, State, drop_first, pointwise


def _activation_elems_per_pixel(width: int, patch) -> int:
    """Estimate the activation elements alive per pixel: clip, patches, and about seven activations of a block."""
    return 3 * 3 + 7 * width // math.prod(patch)


class Encoder(nn.Module):
    """Encoder: [B, 3, 1 + s_t n, s_h h, s_w w] in [-1, 1] -> [B, out_channels, 1+n, h, w]; the stride is the patch.

    Args:
        out_channels: output channels of the last 1x1x1 layer.
        width: channels on the token grid.
        blocks: number of blocks.
        patch: (frames, rows, columns) of one token.

    Raises:
        ValueError: an illegal patch.
    """

    def __init__(self, out_channels: int, width: int, blocks: int, patch: Sequence[int]):
        super().__init__()
        if len(patch) != 3 or min(patch) < 1:
            raise ValueError(f"patch is frames, rows and columns, all above 0, not {patch}")
        self.width = width
        self.stride = tuple(patch)
        self.activation_elems_per_pixel = _activation_elems_per_pixel(width, patch)
        self.embed = nn.Linear(3 * math.prod(patch), width)
        self.blocks = nn.ModuleList([PatchBlock(width) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, out_channels)

    def _features(self, x_B3THW: Tensor, state: State | None) -> Tensor:
        pt, ph, pw = self.stride
        if state is None or self not in state:
            x_B3THW = torch.cat([x_B3THW[:, :, :1].expand(-1, -1, pt - 1, -1, -1), x_B3THW], 2)
        if state is not None:
            state[self] = x_B3THW.new_empty(0)  # marks that the clip has begun
        B, _, T, H, W = x_B3THW.shape
        x = x_B3THW.view(B, 3, T // pt, pt, H // ph, ph, W // pw, pw).permute(0, 2, 4, 6, 1, 3, 5, 7)
        x = pointwise(x.reshape(B, T // pt, H // ph, W // pw, -1), self.embed)
        for block in self.blocks:
            x = block(x, state)
        return self.norm(x)

    def forward_features(self, x_B3THW: Tensor, state: State | None = None) -> Tensor:
        return self._features(x_B3THW, state).movedim(-1, 1)

    def forward(self, x_B3THW: Tensor, state: State | None = None, hidden: bool = False) -> Tensor:
        """Encode. `hidden` returns what `forward_features` does, which hooks and torch.compile wouldn't see."""
        if hidden:
            return self.forward_features(x_B3THW, state)
        return self.head(self._features(x_B3THW, state)).movedim(-1, 1)


def overlap_add(patches: Tensor, stride: int, overlap: int, dim: int) -> Tensor:
    """Add overlapping patches along one axis: [..., n, stride + 2 overlap, ...] -> [..., n stride, ...].

    Each patch extends by `overlap` elements into both neighbors and is added there. Parts outside the picture are
    dropped.

    Args:
        patches: patches at dimension `dim`, their elements at dim + 1.
        stride: distance between patches.
        overlap: 0 to stride.
    """
    core = patches.narrow(dim + 1, overlap, stride)
    if overlap:
        n = patches.shape[dim]
        before = patches.narrow(dim + 1, 0, overlap)  # lies at the end of the previous cell
        after = patches.narrow(dim + 1, overlap + stride, overlap)
        core = core.clone()
        core.narrow(dim, 0, n - 1).narrow(dim + 1, stride - overlap, overlap).add_(before.narrow(dim, 1, n - 1))
        core.narrow(dim, 1, n - 1).narrow(dim + 1, 0, overlap).add_(after.narrow(dim, 0, n - 1))
    return core.flatten(dim, dim + 1)


class Decoder(nn.Module):
    """Decoder: codes [B, code_channels, 1+n, h, w] -> [B, 3, 1 + s_t n, s_h h, s_w w].

    Args:
        code_channels: channels of the quantizer's codes.
        width: channels on the token grid.
        blocks: number of blocks.
        patch: (frames, rows, columns) of one token.
        overlap: pixels by which an output patch extends into each neighbor, 0 to half a patch.

    Raises:
        ValueError: an illegal overlap.
    """

    def __init__(self, code_channels: int, width: int, blocks: int, patch: Sequence[int], overlap: int = 0):
        super().__init__()
        if not 0 <= 2 * overlap <= min(patch[1:]):
            raise ValueError(f"overlap is 0 to half a patch of {list(patch[1:])} pixels, not {overlap}")
        self.stride, self.overlap = tuple(patch), overlap
        self.activation_elems_per_pixel = _activation_elems_per_pixel(width, patch)
        self.embed = nn.Linear(code_channels, width)
        self.blocks = nn.ModuleList([PatchBlock(width) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width)
        # Channels are (color, frame, row, column) of a patch with its margins.
        self.patch = (patch[0], patch[1] + 2 * overlap, patch[2] + 2 * overlap)
        self.head = nn.Linear(width, 3 * math.prod(self.patch))

    def forward(self, codes_BCthw: Tensor, state: State | None = None) -> Tensor:
        pt, ph, pw = self.stride
        x = self.embed(codes_BCthw.movedim(1, -1))
        for block in self.blocks:
            x = block(x, state)
        x = pointwise(self.norm(x), self.head)
        B, t, h, w, _ = x.shape
        x = x.view(B, t, h, w, 3, *self.patch).permute(0, 4, 1, 5, 2, 6, 3, 7)  # [B, 3, t, pt, h, rows, w, columns]
        x = overlap_add(overlap_add(x, pw, self.overlap, 6), ph, self.overlap, 4)
        return drop_first(x.reshape(B, 3, t * pt, h * ph, w * pw), self, pt - 1, state)


def build_net(
    out_channels: int,
    code_channels: int,
    width: int = 256,
    blocks: int = 4,
    decoder_blocks: int = 6,
    patch: Sequence[int] = (4, 8, 8),
    decoder_width: int | None = None,
    overlap: int = 0,
) -> tuple[Encoder, Decoder]:
    """Build the encoder and decoder of a tokenizer.

    Args:
        out_channels: output channels of the encoder.
        code_channels: channels of the quantizer's codes.
        width, blocks: channels and number of blocks of the encoder.
        decoder_width, decoder_blocks: channels (None: `width`) and number of blocks of the decoder.
        patch: (frames, rows, columns) of one token.
        overlap: see `Decoder`.

    Raises:
        ValueError: an illegal patch or overlap.
    """
    encoder = Encoder(out_channels, width, blocks, patch)
    return encoder, Decoder(code_channels, decoder_width or width, decoder_blocks, patch, overlap)
