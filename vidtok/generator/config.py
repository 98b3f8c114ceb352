"""What a generator is made of, as config.json stores it."""

from dataclasses import dataclass, field
from pathlib import Path

from vidtok.config import load_config, save_config

SCHEMA = "vidtok.generator/2"  # of 1 the heads did not norm the low half of a token


@dataclass(frozen=True)
class GeneratorConfig:
    """All that is needed to rebuild a generator.

    Attributes:
        name: what results and files call it.
        kind: "masked", "autoregressive" or "diffusion".
        tokenizer, weight_hash: name and weights of the tokenizer that its tokens are of.
        bits: log2 of the codebook size.
        grid: (t, h, w) of its tokens.
        stride: pixels per token in (time, height, width); the first frame has tokens of its own.
        fps: of the clips that it was trained on, or None.
        classes: names; empty for a model without classes.
        width, depth, heads, dropout: of the trunk.
        arguments: of the kind, see its class.
        license: of the weights.
    """

    name: str
    kind: str
    tokenizer: str
    weight_hash: str
    bits: int
    grid: tuple[int, int, int]
    stride: tuple[int, int, int] = (4, 8, 8)
    fps: float | None = None
    classes: tuple[str, ...] = ()
    width: int = 256
    depth: int = 6
    heads: int = 4
    dropout: float = 0.0
    arguments: dict = field(default_factory=dict)
    license: str = "apache-2.0"

    def __post_init__(self):
        for name in ("grid", "stride", "classes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON and hydra have lists


def read_config(path: Path) -> GeneratorConfig:
    """Raises ValueError, naming the file, where it is no generator's config or of another schema."""
    return load_config(path, SCHEMA, GeneratorConfig, "generator")


def write_config(config: GeneratorConfig, path: Path) -> None:
    save_config(config, SCHEMA, path)
