"""Generate clips: prefixes from files in, token files out."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def named(label: str, classes: Sequence[str]) -> int | str:
    """A class by its name, which may be a number, too, or else by its number."""
    return int(label) if label.isdigit() and label not in classes else label


def name_of(labels: list | None, number: int) -> str:
    """What the file of a sample is called before its number."""
    return "" if labels is None else f"{str(labels[number % len(labels)]).replace(' ', '_').replace('/', '_')}-"


def latents_of(frames: int, stride: int) -> int:
    if frames % stride != 1 % stride:
        raise ValueError(f"a clip has 1 + {stride}k frames, not {frames}")
    return 1 + (frames - 1) // stride


def read_prefixes(args: argparse.Namespace, tokenizer, config):
    """int64 [clips, latents, h, w]: the beginnings of the clips, cut to the generator's size."""
    import torch

    from vidtok.datasets import VideoError, read_video

    size = (config.grid[1] * config.stride[1], config.grid[2] * config.stride[2])
    frames = args.prefix_frames or 5
    latents = latents_of(frames, config.stride[0])
    ids = []
    for file in args.prefix:
        video = read_video(file, config.fps, size, frames, config.stride)
        if video.shape[2] < frames:
            raise VideoError(file, f"fewer than {frames} frames")
        ids.append(tokenizer.encode(video)[:, :latents])
    return torch.cat(ids)


def write_ids(path: Path, name: str, label, ids, config, fps: float) -> None:
    """A token file, as `vidtok extract` writes it, of a clip that never was."""
    import numpy as np

    from vidtok.extraction import Record, RecordMeta, write_npz
    from vidtok.extraction.record import id_type

    t, h, w = ids.shape
    frames, size = 1 + config.stride[0] * (t - 1), (config.stride[1] * h, config.stride[2] * w)
    dtype = id_type(config.bits)
    meta = RecordMeta(
        feature="ids", model=config.tokenizer, weight_hash=config.weight_hash, precision="fp32", bits=config.bits,
        stride=config.stride, dtype=dtype.name, fps=fps, frames=frames, size=size, coded_size=size, native_size=size,
        native_fps=fps, source="", source_bytes=None, reader=f"generator {config.name}",
        bytes_per_token=dtype.itemsize,
    )  # fmt: skip
    label = config.classes[label] if isinstance(label, int) else label
    times = np.arange(frames) / fps
    write_npz(path, [Record(name, label, None, ids.numpy().astype(dtype), times, meta)])
