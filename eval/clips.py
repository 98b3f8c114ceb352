"""Clips to evaluate on: one per file, all of one shape."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

from vidtok.datasets import VideoError, read_video

Clip = tuple[str, Tensor | Exception]  # name and float [1,3,T,H,W] in [-1,1], or why there is none


def validation_clips(
    paths: Iterable[str | Path],
    frames: int = 17,
    size: int = 128,
    fps: float | None = None,
    stride: tuple[int, int, int] = (4, 8, 8),
) -> Iterator[Clip]:
    """The first `frames` frames of each file: short side `size`, centre crop to `size` x `size`.

    Yields (path, float32 [1,3,frames,size,size] in [-1,1]). A file that cannot be read or is too short yields (path,
    the exception): `evaluate_reconstruction` counts it as failed and never replaces it.

    Args:
        paths: video files.
        frames: clip length. size: pixels.
        fps: frames per second to resample to; None keeps the file's own.
        stride: of the tokenizer that the clips are for, (s_t, s_h, s_w).

    Raises:
        ValueError: frames other than 1 + a multiple of s_t, or a size that is no multiple of s_h and s_w.
    """
    s_t, s_h, s_w = stride
    if frames < 1 or (frames - 1) % s_t:
        raise ValueError(f"clips have 1, {1 + s_t}, {1 + 2 * s_t}, ... frames, got {frames}")
    if size < 1 or size % s_h or size % s_w:
        raise ValueError(f"clips are a multiple of {math.lcm(s_h, s_w)} pixels wide and high, got {size}")
    return (_read(Path(path), frames, size, fps) for path in paths)


def clip_protocol(
    source: str, split: str | None = None, frames: int = 17, size: int = 128, fps: float | None = None
) -> dict:
    """What `validation_clips` with these arguments yields, in words, for the `protocol` of a result.

    Args:
        source: name of the data set or folder; split: which part of it.
    """
    return {
        "source": source,
        "split": split,
        "frames": frames,
        "size": [size, size],
        "crop": f"first {frames} frames, short side {size}, centre crop",
        "fps": "native" if fps is None else fps,
    }


def _read(path: Path, frames: int, size: int, fps: float | None) -> Clip:
    try:
        video_BCTHW = read_video(path, fps, (size, size), frames, stride=(1, 1, 1))
        if video_BCTHW.shape[2] < frames:
            raise VideoError(path, f"fewer than {frames} frames")
    except VideoError as error:
        return str(path), error
    return str(path), video_BCTHW
