"""Config of a head (config.json): its architecture and the data it was trained on."""

from dataclasses import dataclass, replace
from pathlib import Path

from vidtok.hub import load_config

SCHEMA = "vidtok.head/1"


@dataclass(frozen=True)
class HeadConfig:
    """Architecture of a head, and the input, classes and clips that it was trained on.

    Attributes:
        name: name of the head in results.
        net: {"kind": a name in `vidtok.heads.HEADS`, **arguments of the class}.
        input: {"kind": a name in `vidtok.heads.INPUTS`, **arguments of the embedding}.
        grid: (t, h, w) of the tokens, before `patch_merge`.
        num_classes: classes of the last layer.
        classes: the name of each class number; None, unknown.
        tokenizer: {"name", "weight_hash"} of the tokenizer that produced the input; for pixels, of the tokenizer that
            reconstructed them. None: unknown, or original pixels.
        protocol: sampling of the clips. None, unknown. Else a dict:
            "frames": frames T per clip.
            "size": side of the square crop in pixels.
            "stride": frames from one sampled frame to the next; None, spread over the whole video.
            "fps": frame rate at which the stride is counted, if not the video's own.
            "resize": short side in pixels before the crop, if not `size`.
            "clips": clips per video.
            "crops": 1 or 3 per clip, whose probabilities are averaged.
            "concat_segments": whether the head sees the features of all clips at once.
            "grid_crop": side of the center crop of the grid, if it was trained on crops of the grid.
        class_counts: number of training clips of each class; None, unknown.
        license: license of the weights.
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
            raise ValueError(f"{len(self.classes)} class names for num_classes={self.num_classes}: give one per class")
        if self.class_counts is not None and len(self.class_counts) != self.num_classes:
            counts, classes = len(self.class_counts), self.num_classes
            raise ValueError(f"{counts} class counts for num_classes={classes}: give one per class")
        self.net["kind"], self.input["kind"]


def read_head_config(path: Path) -> HeadConfig:
    """Read a config file; raise ValueError if it is not a head's config or of another schema."""
    config = load_config(path, SCHEMA, HeadConfig, "head")
    return replace(config, grid=tuple(config.grid))
