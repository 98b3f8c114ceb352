"""Validate the inputs of tokenizers, counts, memory and devices. Errors say what was given and what is legal."""

import math
import os
from collections.abc import Iterator, Sequence
from typing import Protocol

import psutil
import torch
from torch import Tensor

from vidtok.streaming import LEAST, MAX_LATENTS

OVERSHOOT = 1.05  # largest absolute value: resampling filters overshoot by a few percent; more is another range

Stride = tuple[int, int, int]  # (frames, rows, columns) per token; the first frame has its own tokens


class Net(Protocol):
    """Protocol of the encoders and decoders that `check_memory` accepts.

    Attributes:
        stride: pixels per token in (time, height, width).
        activation_elems_per_pixel: number of activation elements alive at the peak of a forward pass, per pixel.
    """

    stride: Stride
    activation_elems_per_pixel: float

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...


def legal_length(stride: Stride) -> str:
    """Return a description of the legal numbers of frames of a clip, such as "1 + 4k"."""
    return "any number" if stride[0] == 1 else f"1 + {stride[0]}k"


def legal_size(stride: Stride) -> str:
    """Return a description of the legal heights and widths, such as "multiples of 8"."""
    return "multiples of " + " and ".join(str(side) for side in dict.fromkeys(stride[1:]))


def check_video(video: Tensor, stride: Stride, any_length: bool = False, values: bool = True) -> None:
    """Raise ValueError unless `video` is float [B, 3, T, H, W] in [-1, 1] and fits the stride.

    Args:
        video: the clips.
        stride: stride of the tokenizer in (time, height, width).
        any_length: whether to accept any T, as in streams.
        values: whether to check the range.
    """
    if not isinstance(video, Tensor):
        raise ValueError(f"a video is a torch tensor, not {type(video).__name__}")
    shape = list(video.shape)
    if video.ndim != 5 or shape[1] != 3 or 0 in shape:
        raise ValueError(f"a video is [B, 3, T, H, W], not {shape}")
    if not video.is_floating_point():
        raise ValueError(f"a video is float in [-1, 1], not {video.dtype}: convert uint8 by x / 127.5 - 1")
    T, H, W = shape[2:]
    s_t, s_h, s_w = stride
    if (over := (T - 1) % s_t) and not any_length:
        cut, padded = T - over, T - over + s_t
        raise ValueError(f"a clip has {legal_length(stride)} frames, not {T}: cut it to {cut} or pad it to {padded}")
    if H % s_h or W % s_w:
        smaller, larger = (H // s_h * s_h, W // s_w * s_w), (-(-H // s_h) * s_h, -(-W // s_w) * s_w)
        advice = "crop to {} x {}".format(*smaller) if all(smaller) else "pad to {} x {}".format(*larger)
        raise ValueError(f"height and width are {legal_size(stride)}, not {H} x {W}: {advice}")
    if values:
        check_values(video)


def check_values(video: Tensor) -> None:
    """Raise ValueError unless all values are in [-1, 1], with 5 % tolerance; also for NaN."""
    low, high = video.aminmax()
    # Written so that NaN fails as well.
    if not (low >= -OVERSHOOT and high <= OVERSHOOT):
        raise ValueError(f"video values lie in [-1, 1], not [{low.item():.4g}, {high.item():.4g}]")


def check_ids(ids: Tensor, bits: float) -> None:
    """Raise ValueError unless `ids` are integers [B, t, h, w] in 0 .. 2^bits - 1."""
    if not isinstance(ids, Tensor):
        raise ValueError(f"token ids are a torch tensor, not {type(ids).__name__}")
    if ids.ndim != 4 or 0 in ids.shape:
        raise ValueError(f"token ids are [B, t, h, w], not {list(ids.shape)}")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"token ids are integers, not {ids.dtype}")
    low, high = (value.item() for value in ids.long().aminmax())
    size = round(2**bits)
    if low < 0 or high >= size:
        raise ValueError(f"token ids lie in 0 .. {size - 1}, not {low} .. {high}")


def check_codes(codes: Tensor, channels: int) -> None:
    """Raise ValueError unless `codes` are float [B, channels, t, h, w]."""
    if codes.ndim != 5 or codes.shape[1] != channels or not codes.is_floating_point():
        raise ValueError(f"codes are float [B, {channels}, t, h, w], not {codes.dtype} {list(codes.shape)}")


def check_memory(net: Net, shape: Sequence[int], stride: Stride) -> None:
    """Raise MemoryError if one pass of `net` over [B, (3,) t, h, w] x stride pixels exceeds the free memory.

    The estimate is rough: `net.activation_elems_per_pixel` for each pixel of the longest chunk.
    """
    frames = min(shape[-3] * stride[0], MAX_LATENTS * net.stride[0])
    pixels = shape[0] * frames * shape[-2] * stride[1] * shape[-1] * stride[2]
    weight = next(net.parameters())
    need = pixels * net.activation_elems_per_pixel * weight.dtype.itemsize
    free = free_memory(weight.device)
    if need > free:
        unit = math.lcm(64, *net.stride[1:])
        side = math.isqrt(int(shape[-2] * stride[1] * shape[-1] * stride[2] * free / need / 2)) // unit * unit
        side = max(side, LEAST * math.lcm(*net.stride[1:]))
        raise MemoryError(
            f"{list(shape)} needs about {need / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free: "
            f"pass tile={side}, or a smaller batch"
        )


def check_counts(**counts: int) -> None:
    """Raise ValueError if a count is not a whole number of at least 1."""
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{name}={count} is not a whole number of at least 1")


def check_clip(frames: int, crop: int, stride: tuple[int, int, int]) -> None:
    """Raise ValueError if clips of `frames` frames and crop x crop pixels don't fit a tokenizer's stride (t, h, w)."""
    check_counts(frames=frames, crop=crop)
    s_t, s_h, s_w = stride
    if (frames - 1) % s_t:
        raise ValueError(f"frames={frames} is not 1+{s_t}k, as the tokenizer's temporal stride of {s_t} requires")
    if crop % s_h or crop % s_w:
        raise ValueError(f"crop={crop} is not a multiple of {math.lcm(s_h, s_w)}, the tokenizer's spatial stride")


def free_memory(device: torch.device) -> int:
    """Return the free memory of a device in bytes; on a GPU, including memory that torch has reserved but not used."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def count_cpus() -> int:
    """Return the number of logical CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    return os.cpu_count() or 1


def pick_device(name: str | torch.device):
    """Return the torch.device called `name`, or `name` if it is one; "auto" is CUDA if available, else the CPU.

    Raises:
        UserError: the device doesn't exist.
    """
    import torch

    from vidtok.errors import UserError

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r}: {str(error).splitlines()[0]}") from error
    return device
