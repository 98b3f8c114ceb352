"""The real clips that generated ones are compared with."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vidtok.datasets import (
    EvalTransform,
    LabelledDataset,
    MovingDigits,
    VideoError,
    dense_clips,
    open_dataset,
    random_clip,
)
from vidtok.generator import GeneratorConfig

from .generation import Convention
from .generation_run import Real


def real_clips(
    source: str,
    root: str | None,
    split: str | None,
    others: str | None,
    config: GeneratorConfig,
    how: Convention,
    batch: int = 8,
    **columns: str | None,
) -> Real:
    """Clips of the size and length that a generator makes.

    Args:
        source, root, columns: see `vidtok.datasets.open_dataset`; "digits", the built-in set.
        split: that others are compared with; None, "train", or all of a folder without a folder "train". others: a
            split of other real clips, or None.
        how: windows and crops of each video.
        batch: videos at a time.

    Raises:
        ValueError: for a source or split that there isn't, or a generator of clips that aren't square.
    """
    frames = 1 + config.stride[0] * (config.grid[0] - 1)
    size, width = (n * stride for n, stride in zip(config.grid[1:], config.stride[1:], strict=True))
    if size != width:
        raise ValueError(f"clips of {size} x {width} pixels are compared with nothing: real clips are cut square")
    if split is None and (source == "digits" or not Path(source).is_dir() or (Path(source) / "train").is_dir()):
        split = "train"
    if others is not None and split is None:
        raise ValueError(
            f"{source} has no folder train: say which split others are compared with (--split, real_split=), or go "
            f"without other real clips than those (--others, other_split={others})"
        )
    if others is not None and others == split:
        raise ValueError(f"other real clips than those of {split!r} are of another split than {others!r}")

    def opened(part: str | None) -> LabelledDataset:
        if source == "digits":
            return MovingDigits(part, frames, size)
        drawn = random_clip if how.random else dense_clips
        sampler = partial(drawn, frames=frames, clips=how.windows, at_fps=config.fps)
        reading = {"sampler": sampler, "transform": EvalTransform(size, how.crops), "on_error": "return"}
        return open_dataset(source, root, part, config.classes or None, **columns, **reading)

    def batches(part: str | None) -> Iterator[tuple[Tensor, Tensor]]:
        dataset = opened(part)
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
        for first in range(0, len(order), batch):
            samples = [dataset[i] for i in order[first : first + batch]]
            good = [sample for sample in samples if not isinstance(sample, VideoError)]
            if good:
                labels = [label for sample in good for label in [sample.label] * len(sample.video)]
                yield torch.cat([sample.video for sample in good]), torch.tensor(labels)

    about = {"source": source, "split": split or "all", "others": others, "clip_frames": frames, "clip_size": size}
    about |= {"order": "random, seed 0", "fps": config.fps or "native", "unreadable": "left out"}
    return Real(
        lambda: (video for video, _ in batches(split)),
        None if others is None else lambda: batches(others),
        opened(split).classes,
        about,
    )
