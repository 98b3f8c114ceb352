"""Inflate an image tokenizer into a video tokenizer (MAGVIT-v2, appendix; inflation: MAGVIT, section 3.1).

MAGVIT puts a 2-D kernel into the center of the 3-D kernel, with zeros around it. A causal kernel ends with the current
frame, so that MAGVIT-v2 puts the 2-D kernel into the last slice in time. The video model then encodes the last frame of
each latent and decodes it to all frames of the latent. It reconstructs a clip of one frame, and each frame of a still
clip, as the image model does.
"""

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
        ValueError: for any other pair.
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
