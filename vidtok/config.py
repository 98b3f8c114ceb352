"""What a tokenizer is made of, as config.json stores it."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

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


def read_config(path: Path) -> TokenizerConfig:
    """Raises ValueError, naming the file, where it is no tokenizer's config or of another schema."""
    try:
        values = json.loads(path.read_text())
        schema = values.pop("schema")
        if schema != SCHEMA:
            raise ValueError(f"its schema is {schema!r}, and this vidtok reads {SCHEMA!r}")
        config = TokenizerConfig(**values)
        config.net["kind"], config.quantizer["kind"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no tokenizer's config ({type(error).__name__}: {error})") from error
    return config


def write_config(config: TokenizerConfig, path: Path) -> None:
    """The fields as JSON, with the schema before them."""
    path.write_text(json.dumps({"schema": SCHEMA, **asdict(config)}, indent=2) + "\n")
