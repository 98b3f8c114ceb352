"""Initialize a larger patch tokenizer from a trained smaller one, so that training continues instead of restarting.

New weights have no effect at first (function-preserving growth as in Net2Net, Chen et al. 2016, section 2): margins of
output patches are zero, and new blocks end in a zero layer, so that they are the identity. A wider decoder is only
approximately the same function, since its layer norms see the old channels in a wider vector.
"""

import math
import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vidtok.tokenizer import VideoTokenizer


def grow(small: "VideoTokenizer", large: "VideoTokenizer") -> None:
    """Copy the weights of `small` into `large`.

    Args:
        small: a tokenizer with net "patch", without overlap or with the overlap of `large`.
        large: a tokenizer with net "patch" of the same patch and encoder width, and at least the blocks, decoder width
            and overlap of `small`. With another quantizer, the layers next to it keep their random initialization.

    Raises:
        ValueError: for any other pair.
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


def _codes_of(tokenizer: "VideoTokenizer") -> tuple:
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
