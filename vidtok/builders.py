"""From hydra configs to objects: the one module that reads a config. Everything it builds takes plain arguments."""

from dataclasses import asdict
from importlib.resources import files
from typing import TYPE_CHECKING

import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from vidtok.config import TokenizerConfig
from vidtok.hints import nearest
from vidtok.tokenizer import VideoTokenizer

if TYPE_CHECKING:
    from vidtok.heads import Head


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


def list_heads() -> list[str]:
    """Names that `create_head` takes: the files of `vidtok/configs/head`."""
    return sorted(p.name.removesuffix(".yaml") for p in files("vidtok.configs").joinpath("head").iterdir())


def create_head(
    name: str,
    input: str = "tokens",
    num_classes: int = 0,
    grid: tuple[int, int, int] = (5, 16, 16),
    merge: int = 1,
    bits: float = 18,
    channels: int | None = None,
    stride: tuple[int, int, int] = (4, 8, 8),
    **arguments,
) -> "Head":
    """An untrained recognition head by config name, in training mode on the CPU.

    Args:
        name: one of `list_heads()`.
        input: what it reads: "tokens" or "codes", int64 ids [B, t, h, w]; "latents" or "hidden", float
            [B, channels, t, h, w]; "embedding", float [B, N, channels]; "pixels", float [B, 3, T, H, W] in [-1, 1].
        num_classes: of the last layer; 0, none.
        grid: (t, h, w) of the tokens, of the pixels too; heads work on other grids as well.
        merge: neighbouring merge x merge cells become one.
        bits: log2 of the codebook, of tokens and codes; channels: of features; stride: pixels per token, of pixels.
        arguments: of the head's class instead of the config's, such as drop_path=0.1.

    Raises:
        ValueError: for an unknown name, input or argument, or a grid that doesn't divide by `merge`.
    """
    if name not in list_heads():
        raise ValueError(f"unknown head {name!r}: {nearest(name, list_heads())}")
    with initialize_config_module("vidtok.configs", version_base="1.3"):
        cfg = compose(overrides=[f"+head={name}"])
    own = {"bits": bits, "channels": channels, "stride": tuple(stride)}
    return build_head(cfg, name, input, num_classes, grid, merge, own, arguments)


def build_head(
    cfg: DictConfig,
    name: str,
    input: str,
    num_classes: int,
    grid: tuple[int, int, int],
    merge: int,
    own: dict,
    arguments: dict | None = None,
) -> "Head":
    """The head of the group `head`. own: values of all inputs' own settings, of which `input` takes its one; for the
    rest see `create_head`."""
    from vidtok.heads import INPUTS, HeadConfig, make_head

    if input not in INPUTS:
        raise ValueError(f"unknown input {input!r}: {nearest(input, INPUTS)}")
    key = INPUTS[input][1]
    if own.get(key) is None:
        raise ValueError(f"input {input!r} needs {key}=")
    net = {**OmegaConf.to_container(cfg.head, resolve=True), **(arguments or {})}
    spec = {"kind": input, "merge": merge, key: own[key]}
    return make_head(HeadConfig(name, net, spec, tuple(grid), num_classes))


def build_tokenizer(cfg: DictConfig) -> VideoTokenizer:
    """The tokenizer of the groups `model` and, where chosen, `quantizer`."""
    model = OmegaConf.to_container(cfg.model, resolve=True)
    if "quantizer" in cfg:
        model["quantizer"] = OmegaConf.to_container(cfg.quantizer, resolve=True)
    return VideoTokenizer(TokenizerConfig(**model))


def build_trainer(cfg: DictConfig) -> dict:
    """The arguments of `vidtok.train.loop.train` but for the run folder, the fixed clips and the LPIPS network."""
    # Imported here: a tokenizer alone needs none of it.
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV3

    from vidtok.datasets import ClipFolder
    from vidtok.train.discriminator import Discriminator
    from vidtok.train.loop import TrainerOptions
    from vidtok.train.loss import LossWeights
    from vidtok.train.schedule import Schedule
    from vidtok.train.state import TrainState

    plain = OmegaConf.to_container(cfg, resolve=True)
    data, trainer, weights = plain["data"], plain["trainer"], LossWeights(**plain["loss"])
    schedule = Schedule(**{key: trainer.pop(key) for key in ("max_steps", "max_minutes", "warmup_steps", "final_rate")})
    dataset = ClipFolder(data.pop("root"), seed=plain["seed"], **data)

    torch.manual_seed(plain["seed"])  # of the initial weights
    if plain["init"]:
        tokenizer = VideoTokenizer.from_pretrained(plain["init"])
        cfg.model = asdict(tokenizer.config)  # the config that the run folder keeps names the model that was trained
    else:
        tokenizer = build_tokenizer(cfg)
    tokenizer.train()
    ema = ModelEmaV3(tokenizer, decay=trainer.pop("ema_decay"), use_warmup=True)
    state = TrainState(tokenizer, create_optimizer_v2(tokenizer, **plain["optimizer"]), ema)
    if weights.adversarial > 0:
        size = (data["frames"], data["crop"], data["crop"])
        state.discriminator = Discriminator(size, **plain["discriminator"])
        state.discriminator_optimizer = create_optimizer_v2(state.discriminator, **plain["discriminator_optimizer"])
    return {
        "state": state,
        "dataset": dataset,
        "schedule": schedule,
        "weights": weights,
        "options": TrainerOptions(seed=plain["seed"], **trainer),
    }
