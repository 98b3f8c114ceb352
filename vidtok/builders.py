"""From hydra configs to objects: the one module that reads a config. Everything it builds takes plain arguments."""

from importlib.resources import files

from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from vidtok.hints import nearest
from vidtok.tokenizer import TokenizerConfig, VideoTokenizer


def list_tokenizers() -> list[str]:
    """Names that `create_tokenizer` takes: the files of `vidtok/configs/model`."""
    return sorted(p.name.removesuffix(".yaml") for p in files("vidtok.configs").joinpath("model").iterdir())


def create_tokenizer(name: str, quantizer: str | None = None) -> VideoTokenizer:
    """An untrained tokenizer by config name, in training mode on the CPU.

    Args:
        name: one of `list_tokenizers()`.
        quantizer: name of a config in `vidtok/configs/quantizer` ("lfq", "lfq-residual", "fsq", "vq") instead of the
            model's own.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in list_tokenizers():
        raise ValueError(f"unknown tokenizer {name!r}: {nearest(name, list_tokenizers())}")
    overrides = [f"+model={name}"]
    if quantizer is not None:
        known = [p.name.removesuffix(".yaml") for p in files("vidtok.configs").joinpath("quantizer").iterdir()]
        if quantizer not in known:
            raise ValueError(f"unknown quantizer {quantizer!r}: {nearest(quantizer, known)}")
        overrides.append(f"+quantizer={quantizer}")
    with initialize_config_module("vidtok.configs", version_base="1.3"):
        return build_tokenizer(compose(overrides=overrides))


def build_tokenizer(cfg: DictConfig) -> VideoTokenizer:
    """The tokenizer of the groups `model` and, where chosen, `quantizer`."""
    model = OmegaConf.to_container(cfg.model, resolve=True)
    if "quantizer" in cfg:
        model["quantizer"] = OmegaConf.to_container(cfg.quantizer, resolve=True)
    return VideoTokenizer(TokenizerConfig(**model))
