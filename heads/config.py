"""What a head is made of and what it was trained on, as config.json stores it."""

from dataclasses import dataclass, replace
from pathlib import Path

from vidtok.config import load_config

SCHEMA = "vidtok.head/1"


@dataclass(frozen=True)
class HeadConfig:
    """All that is needed to rebuild a head, and to give it what it was trained on.

    Attributes:
        name: what results call the head.
        net: {"kind": a name in `vidtok.heads.HEADS`, **arguments}.
        input: {"kind": a name in `vidtok.heads.INPUTS`, **arguments}.
        grid: (t, h, w) of the tokens, before merging.
        num_classes: of the last layer.
        classes: the name of each class number; None, not known.
        tokenizer: {"name", "weight_hash"} of the tokenizer behind the input; of pixels, that of the reconstructions
            that the head was trained on. None: not known, or pixels of clips as they are.
        protocol: how clips are cut and seen: {"frames": T, "size": pixels of the square that is seen, "stride": frames
            from one to the next, None where they are spread over the video, "fps": what the stride is counted in, where
            it isn't the video's own rate, "resize": the short side before crops, where it isn't the size, "clips": how
            many per video, "crops": 1 or 3, whose probabilities are averaged, "joined": true where the head sees the
            features of all clips at once, "cells": side of the central crop of the grid that is seen, where it was
            trained on crops}. None, not known.
        class_counts: how many training clips each class had. None, not known.
        license: of the weights.
    """

    name: str
    net: dict
    input: dict
    grid: tuple[int, int, int]
    num_classes: int
    classes: list[str] | None = None
    tokenizer: dict | None = None
    protocol: dict | None = None
    class_counts: list[int] | None = None
    license: str = "apache-2.0"

    def __post_init__(self):
        if self.classes is not None and len(self.classes) != self.num_classes:
            raise ValueError(f"{len(self.classes)} class names for {self.num_classes} classes")
        if self.class_counts is not None and len(self.class_counts) != self.num_classes:
            raise ValueError(f"{len(self.class_counts)} class counts for {self.num_classes} classes")
        self.net["kind"], self.input["kind"]


def read_head_config(path: Path) -> HeadConfig:
    """Raises ValueError, naming the file, where it is no head's config or of another schema."""
    config = load_config(path, SCHEMA, HeadConfig, "head")
    return replace(config, grid=tuple(config.grid))
