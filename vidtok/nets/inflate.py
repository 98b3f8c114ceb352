"""Initialize a tokenizer from a trained smaller one, so that training continues instead of restarting.

`inflate` turns an image tokenizer into a video tokenizer (MAGVIT-v2, appendix; inflation: MAGVIT, section 3.1). MAGVIT
puts a 2-D kernel into the center of the 3-D kernel, with zeros around it. A causal kernel ends with the current frame,
so that MAGVIT-v2 puts the 2-D kernel into the last slice in time. The video model then encodes the last frame of each
latent and decodes it to all frames of the latent. It reconstructs a clip of one frame, and each frame of a still clip,
as the image model does.

`grow` enlarges a patch tokenizer. New weights have no effect at first (function-preserving growth as in Net2Net, Chen
et al. 2016, section 2): margins of output patches are zero, and new blocks end in a zero layer, so that they are the
identity. A wider decoder is only approximately the same function, since its layer norms see the old channels in a wider
vector.
"""

import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidtok.nets.layers import CausalConv3d, DepthToSpace
from vidtok.tokenizer import VideoTokenizer


def inflate(image: VideoTokenizer, video: VideoTokenizer) -> None:
    """Copy the weights of an image tokenizer into a video tokenizer.

    Args:
        image: a "magvit2" tokenizer with kernels of one frame (depth 1).
        video: a tokenizer of the same config except for `temporal_downsample` and `depth` (and name, preprocessing and
            license).

    Raises:
        ValueError: any other pair.
    """
    kinds = [tokenizer.config.net["kind"] for tokenizer in (image, video)]
    if kinds != ["magvit2", "magvit2"] or image.encoder.stem.kernel_size[0] != 1:
        nets = [tokenizer.config.net for tokenizer in (image, video)]
        raise ValueError(f"a magvit2 net of depth 1 is inflated into another magvit2 net, not {nets[0]} into {nets[1]}")
    state = image.state_dict()
    for name, module in video.named_modules():
        if isinstance(module, DepthToSpace):
            for part in ("weight", "bias"):
                key = f"{name}.conv.{part}"
                if key in state:
                    state[key] = _repeat_frames(state[key], module.factor)
        if isinstance(module, CausalConv3d) and f"{name}.weight" in state:
            state[f"{name}.weight"] = _to_last_slice(state[f"{name}.weight"], module.kernel_size[0])
    _check_same_shapes(state, video)
    video.load_state_dict(state)


def _to_last_slice(weight_OIthw: Tensor, depth: int) -> Tensor:
    """Extend a kernel in time, with zeros before the last frame: [O, I, 1, h, w] -> [O, I, depth, h, w]."""
    return F.pad(weight_OIthw, (0, 0, 0, 0, depth - 1, 0))


def _repeat_frames(values: Tensor, factor: tuple[int, int, int]) -> Tensor:
    """Repeat weights or biases of an upsampling convolution, so that the ft frames that it makes of one are equal.

    [C * fh * fw, ...] -> [C * ft * fh * fw, ...].
    """
    ft, fh, fw = factor
    pixels = values.unflatten(0, (-1, 1, fh * fw))
    return pixels.expand(-1, ft, *pixels.shape[2:]).flatten(0, 2)


def _check_same_shapes(state: dict[str, Tensor], video: nn.Module) -> None:
    wanted = video.state_dict()
    for name in sorted(state.keys() | wanted.keys()):
        shapes = [list(part[name].shape) if name in part else "none" for part in (state, wanted)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                "the image and the video tokenizer must agree in all but temporal_downsample and depth: "
                f"{name} is {shapes[0]}, not {shapes[1]}"
            )


def grow(small: VideoTokenizer, large: VideoTokenizer) -> None:
    """Copy the weights of `small` into `large`.

    Args:
        small: a tokenizer with net "patch", without overlap or with the overlap of `large`.
        large: a tokenizer with net "patch" of the same patch and encoder width, and at least the blocks, decoder width
            and overlap of `small`. With another quantizer, the layers next to it keep their random initialization.

    Raises:
        ValueError: any other pair.
    """
    kinds = [tokenizer.config.net["kind"] for tokenizer in (small, large)]
    if kinds != ["patch", "patch"] or small.stride != large.stride or small.encoder.width != large.encoder.width:
        nets = [tokenizer.config.net for tokenizer in (small, large)]
        raise ValueError(f"patch nets grow into larger ones of equal patch and width, not {nets[0]} into {nets[1]}")
    old, new = small.state_dict(), large.state_dict()
    overlaps = [tokenizer.decoder.overlap for tokenizer in (small, large)]
    if overlaps[0] != overlaps[1]:
        if overlaps[0]:
            raise ValueError(f"overlap grows from 0 only, not from {overlaps[0]} to {overlaps[1]}")
        for part in ("weight", "bias"):
            name = f"decoder.head.{part}"
            old[name] = _add_margins(old[name], large.stride, overlaps[1])
    same_codes = _codes_of(small) == _codes_of(large)
    for name, target in new.items():
        if not same_codes and name.startswith(("encoder.head.", "decoder.embed.")):
            continue
        if name in old:
            new[name] = _widen(old[name], target, name)
        elif re.search(r"\.blocks\.\d+\.linear\.", name):  # the last layer of a new block
            new[name] = torch.zeros_like(target)
    if lost := sorted(old.keys() - new.keys()):
        raise ValueError(f"the larger tokenizer has no {lost[0]}: it has fewer blocks")
    large.load_state_dict(new)


def _codes_of(tokenizer: VideoTokenizer) -> tuple:
    """Return the properties of the quantizer that the layers next to it depend on."""
    quantizer = tokenizer.quantizer
    return type(quantizer), quantizer.in_channels, quantizer.code_channels


def _add_margins(head: Tensor, stride: tuple[int, int, int], overlap: int) -> Tensor:
    """Add zero margins to the last layer: [3 * pt * ph * pw, ...] -> [3 * pt * (ph + 2 o) * (pw + 2 o), ...]."""
    pt, ph, pw = stride
    patches = head.new_zeros(3, pt, ph + 2 * overlap, pw + 2 * overlap, *head.shape[1:])
    patches[:, :, overlap : overlap + ph, overlap : overlap + pw] = head.unflatten(0, (3, pt, ph, pw))
    return patches.flatten(0, 3)


def _widen(old: Tensor, new: Tensor, name: str) -> Tensor:
    """Copy `old` into the first entries of a tensor of the new shape; weights from new to old channels are zero."""
    if old.shape == new.shape:
        return old
    if old.ndim != new.ndim or any(a > b for a, b in zip(old.shape, new.shape, strict=True)):
        raise ValueError(f"{name} is {list(old.shape)}, which does not fit into {list(new.shape)}")
    wide = new.clone() if name.startswith("decoder.embed.") or ".taps" in name else torch.zeros_like(new)
    if ".conv." in name and new.ndim == 4:  # new channels read old ones, so that their gradients are not zero
        wide[old.shape[0] :] = new[old.shape[0] :]
    if name.endswith("norm.weight"):
        # In a vector padded with zeros, the variance is smaller by the ratio of old to new channels.
        wide = new.clone()
        old = old * math.sqrt(old.shape[0] / new.shape[0])
    wide[tuple(slice(n) for n in old.shape)] = old
    return wide
