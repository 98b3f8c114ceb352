"""What a tokenizer is made of, as config.json stores it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vidtok.errors import RENAMED

SCHEMA = "vidtok.tokenizer/1"


@dataclass(frozen=True)
class TokenizerConfig:
    """All that is needed to rebuild a tokenizer.

    Attributes:
        name: what results and token files call the model.
        net: {"kind": a name in `vidtok.nets.NETS`, **arguments}.
        quantizer: {"kind": a name in `vidtok.quantize.QUANTIZERS`, **arguments}.
        preprocessing: the size (short side, pixels) and fps (None: as they come) at which clips are best given.
        license: of the weights.
    """

    name: str
    net: dict
    quantizer: dict
    preprocessing: dict = field(default_factory=lambda: {"size": 128, "fps": None})
    license: str = "apache-2.0"

    def __post_init__(self):
        self.net["kind"], self.quantizer["kind"]


def read_config(path: Path) -> TokenizerConfig:
    """Raises ValueError, naming the file, where it is no tokenizer's config or of another schema."""
    return load_config(path, SCHEMA, TokenizerConfig, "tokenizer")


def load_config(path: Path, schema: str, kind: type, what: str):
    """A `kind` of the fields in a JSON file. Raises ValueError where it holds no such config of this schema."""
    try:
        values = json.loads(path.read_text())
        found = values.pop("schema")
        if found != schema:
            raise ValueError(f"its schema is {found!r}, and this vidtok reads {schema!r}")
        return kind(**rename_keys(values))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no {what}'s config ({type(error).__name__}: {error})") from error


def rename_keys(settings):
    """Replace the keys that settings had in earlier versions, in nested mappings too; other values are unchanged."""
    if not isinstance(settings, Mapping):
        return settings
    return {RENAMED.get(key, key): rename_keys(value) for key, value in settings.items()}


def save_config(config, schema: str, path: Path) -> None:
    """The fields as JSON, with the schema before them."""
    path.write_text(json.dumps({"schema": schema, **asdict(config)}, indent=2) + "\n")
