"""Checks of what batches of clips shall be like, before anything is read."""

import math


def check_counts(**counts: int) -> None:
    """Raises ValueError where one is no whole number above 0."""
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{name}={count} is no whole number of at least 1")


def check_clip(frames: int, crop: int, stride: tuple[int, int, int]) -> None:
    """Raises ValueError where clips of so many frames, crop x crop pixels, don't fit the stride of a tokenizer."""
    check_counts(frames=frames, crop=crop)
    s_t, s_h, s_w = stride
    if (frames - 1) % s_t:
        raise ValueError(f"frames={frames} is not 1+{s_t}k")
    if crop % s_h or crop % s_w:
        raise ValueError(f"crop={crop} is not a multiple of {math.lcm(s_h, s_w)}")
