"""From hydra configs to objects: the one module that reads a config. Everything it builds takes plain arguments."""

from importlib.resources import files

import torch
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


def build_trainer(cfg: DictConfig) -> dict:
    """The arguments of `vidtok.train.loop.train` but for the run folder and the LPIPS network."""
    # Imported here: a tokenizer alone needs neither.
    from timm.optim import create_optimizer_v2

    from vidtok.datasets import ClipFolder
    from vidtok.train.loop import TrainerOptions
    from vidtok.train.loss import LossWeights
    from vidtok.train.schedule import Schedule

    plain = OmegaConf.to_container(cfg, resolve=True)
    torch.manual_seed(plain["seed"])  # of the initial weights
    tokenizer = VideoTokenizer.from_pretrained(plain["init"]) if plain["init"] else build_tokenizer(cfg)
    optimizer = dict(plain["optimizer"])
    trainer = dict(plain["trainer"])
    schedule = Schedule(**{key: trainer.pop(key) for key in ("max_steps", "max_minutes", "warmup_steps", "final_rate")})
    data = dict(plain["data"])
    return {
        "tokenizer": tokenizer.train(),
        "optimizer": create_optimizer_v2(tokenizer, opt=optimizer.pop("name"), **optimizer),
        "dataset": ClipFolder(data.pop("root"), seed=plain["seed"], **data),
        "schedule": schedule,
        "weights": LossWeights(**plain["loss"]),
        "options": TrainerOptions(seed=plain["seed"], **trainer),
    }
