"""Causal layers, the patch network of vidtok-t, and compilation of the methods of a model.

Legend: B batch, C channels, T H W video, t h w latent grid. A video of 1 + s*n frames has 1 + n latents: the first
frame has a latent of its own, and no layer depends on later frames. The 3-D CNN's layers are those of MAGVIT-v2 (its
appendix A and architecture figure).

Streaming: every layer that depends on earlier frames takes `state`, a dict from the layer to the frames of the previous
chunk that it needs. With None, the clip is whole. Chunks processed with one dict give the result of the whole clip.

Patch network: patch embedding of 4x8x8 pixels, convolutional blocks on the token grid, output patches. Nearly all
arithmetic is dense 3x3 convolutions and linear layers on the token grid, which has 1/256 of the video's positions.
These are efficient on CPUs and GPUs (depthwise kernels would be limited by memory bandwidth). Activations are
[B, t, h, w, C] throughout: linear layers need no permutation, and convolutions see the channels-last format. Each block
mixes the last three latents per channel before its convolution, and no other layer depends on earlier latents. The
first frame has a patch of its own, which it fills by repetition. Output patches may overlap in space (`overlap`): they
are added where they overlap, which avoids visible block edges.

Compiled methods: `torch.compile(model)` returns a wrapper that compiles only `forward` and takes all other attributes
from the model, so that `torch.compile(tokenizer).encode(video)` would silently run eagerly. The same holds for
`model.compile()`.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

State = dict[nn.Module, Tensor]


def causal_pad(x: Tensor, layer: nn.Module, kernel: int, stride: int, state: State | None, dim: int = 2) -> Tensor:
    """Pad x at the front of dimension `dim`, and update the state.

    The padding is the last kernel - stride frames of the previous chunk, or kernel - 1 zero frames at the start of a
    clip.
    """
    past = state.get(layer) if state is not None else None
    if past is None:
        x = F.pad(x, (0, 0) * (x.ndim - 1 - dim) + (kernel - 1, 0))  # unlike cat, keeps the channels-last format
    else:
        x = torch.cat([past.to(x.dtype), x], dim)
    if state is not None:
        keep = kernel - stride
        state[layer] = x.narrow(dim, x.shape[dim] - keep, keep).clone()
    return x


class CausalConv3d(nn.Conv3d):
    """3-D convolution that is causal over `depth` frames, with 3x3 kernels and zero padding in space.

    [B, C, 1 + s*n, H, W] -> [B, C', 1 + n, H/s', W/s'].
    """

    def __init__(self, in_channels: int, out_channels: int, depth: int = 3, stride=(1, 1, 1), bias: bool = True):
        # At stride 2 and an even size, the padding at the end is not used.
        super().__init__(in_channels, out_channels, (depth, 3, 3), stride, padding=(0, 1, 1), bias=bias)

    def forward(self, x_BCTHW: Tensor, state: State | None = None) -> Tensor:
        depth, stride = self.kernel_size[0], self.stride[0]
        if depth > 1:
            x_BCTHW = causal_pad(x_BCTHW, self, depth, stride, state)
        return super().forward(x_BCTHW)


class FrameGroupNorm(nn.GroupNorm):
    """GroupNorm per frame: with statistics over time, earlier latents would depend on later frames."""

    def __init__(self, channels: int, affine: bool = True):
        super().__init__(min(32, channels), channels, eps=1e-5, affine=affine)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        frames = super().forward(x_BCTHW.transpose(1, 2).flatten(0, 1))
        return frames.unflatten(0, (x_BCTHW.shape[0], -1)).transpose(1, 2)


class ResBlock(nn.Module):
    """Residual block: norm, swish, conv, norm, swish, conv; the skip is a 1x1x1 convolution if the width changes."""

    def __init__(self, in_channels: int, out_channels: int, depth: int = 3):
        super().__init__()
        self.norm1 = FrameGroupNorm(in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, depth, bias=False)
        self.norm2 = FrameGroupNorm(out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels, depth, bias=False)
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv3d(in_channels, out_channels, 1, bias=False)

    def forward(self, x_BCTHW: Tensor, state: State | None = None) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x_BCTHW)), state)
        y = self.conv2(F.silu(self.norm2(y)), state)
        return self.skip(x_BCTHW) + y


def drop_first(x: Tensor, layer: nn.Module, count: int, state: State | None, dim: int = 2) -> Tensor:
    """Drop the first `count` frames of a clip, but none of its later chunks (the first latent is a single frame)."""
    if state is not None:
        if layer in state:
            return x
        state[layer] = x.new_empty(0)
    return x.narrow(dim, count, x.shape[dim] - count)


class DepthToSpace(nn.Module):
    """Upsample by convolution and depth-to-space: [B, C, 1+n, H, W] -> [B, C', 1 + s*n, s'*H, s''*W]."""

    def __init__(self, in_channels: int, out_channels: int, factor: tuple[int, int, int], depth: int = 3):
        super().__init__()
        self.factor = factor
        self.conv = CausalConv3d(in_channels, out_channels * factor[0] * factor[1] * factor[2], depth)

    def forward(self, x_BCTHW: Tensor, state: State | None = None) -> Tensor:
        ft, fh, fw = self.factor
        x = self.conv(x_BCTHW, state)
        B, _, T, H, W = x.shape
        x = x.view(B, -1, ft, fh, fw, T, H, W).permute(0, 1, 5, 2, 6, 3, 7, 4)
        x = x.reshape(B, -1, T * ft, H * fh, W * fw)
        return drop_first(x, self, ft - 1, state)


class AdaptiveGroupNorm(nn.Module):
    """GroupNorm whose scale and shift come from the quantized latents, position by position.

    The two maps are applied on the latent grid and the results repeated onto the finer one: the same values as the
    other way round, at a fraction of the cost.
    """

    def __init__(self, channels: int, code_channels: int, factor: tuple[int, int, int]):
        super().__init__()
        self.factor = factor  # ratio of this resolution to the latent grid
        self.norm = FrameGroupNorm(channels, affine=False)
        self.scale = nn.Conv3d(code_channels, channels, 1)
        self.shift = nn.Conv3d(code_channels, channels, 1)

    def forward(self, x_BCTHW: Tensor, codes_BCthw: Tensor, state: State | None = None) -> Tensor:
        affine = torch.cat([self.scale(codes_BCthw), self.shift(codes_BCthw)], 1)
        for dim, repeat in zip((2, 3, 4), self.factor, strict=True):
            affine = affine.repeat_interleave(repeat, dim)
        scale, shift = drop_first(affine, self, self.factor[0] - 1, state).chunk(2, 1)
        return self.norm(x_BCTHW) * (1 + scale) + shift


TAPS = 3  # latents that a block mixes: the current one and two before


def pointwise(x_BthwC: Tensor, linear: nn.Linear) -> Tensor:
    """Apply a linear layer; in fp32 on a CPU as a 1x1 convolution by oneDNN, which is faster than MKL on AMD."""
    B, t, h, w, C = x_BthwC.shape
    # For a single frame, torch uses oneDNN only if it is large.
    if x_BthwC.device.type != "cpu" or x_BthwC.dtype != torch.float32 or B * t == 1:
        return linear(x_BthwC)
    x = x_BthwC.reshape(B * t, h, w, C).permute(0, 3, 1, 2)
    # The dilation has no effect on one tap, but without it torch uses MKL for a 1x1 convolution on one thread.
    y = F.conv2d(x, linear.weight[:, :, None, None], linear.bias, dilation=2)
    return y.permute(0, 2, 3, 1).reshape(B, t, h, w, -1)


class PatchBlock(nn.Module):
    """Residual block: norm, causal mix over time per channel, 3x3 convolution in space, GELU, linear."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        # Initially only the current latent is used.
        self.taps = nn.Parameter(torch.tensor([0.0] * (TAPS - 1) + [1.0]).repeat(width, 1))  # [C, TAPS]
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.linear = nn.Linear(width, width)
        nn.init.zeros_(self.linear.bias)
        self.linear.weight.data.mul_(0.3)  # initially the output is small compared with the skip

    def forward(self, x_BthwC: Tensor, state: State | None = None) -> Tensor:
        B, t, h, w, C = x_BthwC.shape
        y = self.norm(x_BthwC)
        past = causal_pad(y, self, TAPS, 1, state, dim=1)
        taps = self.taps.to(y.dtype).t().contiguous()  # strided taps would prevent vectorization
        y = past[:, :t] * taps[0]
        for i in range(1, TAPS):
            y = torch.addcmul(y, past[:, i : i + t], taps[i])
        y = self.conv(y.reshape(B * t, h, w, C).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x_BthwC + pointwise(F.gelu(y.reshape(B, t, h, w, C), approximate="tanh"), self.linear)


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

    feature_layer = "middle"

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

    def _embed(self, x_B3THW: Tensor, state: State | None) -> Tensor:
        pt, ph, pw = self.stride
        if state is None or self not in state:
            x_B3THW = torch.cat([x_B3THW[:, :, :1].expand(-1, -1, pt - 1, -1, -1), x_B3THW], 2)
        if state is not None:
            state[self] = x_B3THW.new_empty(0)  # marks that the clip has begun
        B, _, T, H, W = x_B3THW.shape
        x = x_B3THW.view(B, 3, T // pt, pt, H // ph, ph, W // pw, pw).permute(0, 2, 4, 6, 1, 3, 5, 7)
        return pointwise(x.reshape(B, T // pt, H // ph, W // pw, -1), self.embed)

    def forward_features(self, x_B3THW: Tensor, state: State | None = None) -> Tensor:
        """Compute the activations after half of the blocks, normalized.

        The other blocks narrow them to what the latents need, which probes learn less from: of `vidtok-t`, six
        directions have over nine tenths of the variance after the last block and three fifths after the middle one.
        """
        x = self._embed(x_B3THW, state)
        for block in self.blocks[: (len(self.blocks) + 1) // 2]:
            x = block(x, state)
        return F.layer_norm(x, (self.width,)).movedim(-1, 1)

    def forward(self, x_B3THW: Tensor, state: State | None = None, hidden: bool = False) -> Tensor:
        """Encode; with `hidden`, return what `forward_features` does, which hooks and torch.compile wouldn't see."""
        if hidden:
            return self.forward_features(x_B3THW, state)
        x = self._embed(x_B3THW, state)
        for block in self.blocks:
            x = block(x, state)
        return self.head(self.norm(x)).movedim(-1, 1)


def overlap_add(patches: Tensor, stride: int, overlap: int, dim: int) -> Tensor:
    """Add overlapping patches along one axis: [..., n, stride + 2 overlap, ...] -> [..., n stride, ...].

    Each patch extends by `overlap` elements into both neighbors and is added there. Parts outside the frame are
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


class CompiledMethods:
    """Mixin of modules: methods named in `compiled_methods` run compiled too, by `compile()` or torch.compile.

    Both compile the submodules named in `compiled_parts` in place, so that the model itself runs them compiled as well;
    checks and conversions around them stay eager. A part may be a ModuleList, whose members are compiled, or be absent.
    """

    compiled_methods: ClassVar[tuple[str, ...]] = ()
    compiled_parts: ClassVar[tuple[str, ...]] = ()

    def compile(self, *arguments, **options) -> None:
        """Compile `forward` and the parts in place; the arguments are those of `torch.compile`."""
        super().compile(*arguments, **options)  # type: ignore[misc]  # of nn.Module
        for part in self.eager_parts():
            part.compile(*arguments, **options)

    def eager_parts(self) -> Iterator[nn.Module]:
        """Yield the parts that are not compiled yet."""
        for name in self.compiled_parts:
            part = getattr(self, name, None)
            for module in part if isinstance(part, nn.ModuleList) else [part]:
                # A wrapper of torch.compile has an _orig_mod.
                if isinstance(module, nn.Module) and not (module._compiled_call_impl or hasattr(module, "_orig_mod")):
                    yield module


def _wrap_methods(wrapper: nn.Module, name: str, module: nn.Module | None) -> None:
    """Add the compiled methods to a wrapper of torch.compile; called for every registration of a submodule."""
    if name == "_orig_mod" and isinstance(module, CompiledMethods):
        for method in module.compiled_methods:
            object.__setattr__(wrapper, method, partial(_call_compiled, wrapper, method))  # its own sets the module's


def _call_compiled(wrapper, method: str, *arguments, **options):
    module, context = wrapper._orig_mod, wrapper.dynamo_ctx
    if callable(context.callback):  # not so with torch.compiler.disable, which has the same wrapper
        for part in module.eager_parts():
            part._compiled_call_impl = context(part._call_impl)
    result = getattr(module, method)(*arguments, **options)
    return wrapper if result is module else result


register_module_module_registration_hook(_wrap_methods)
