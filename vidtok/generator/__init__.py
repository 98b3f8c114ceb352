"""Generators of token grids: masked and autoregressive language models, and diffusion to compare them with.

base            conditions, `generate`, loading and saving
masked          masked token modelling, parallel decoding
autoregressive  next-token prediction with a cache of keys and values
diffusion       a DiT on the latents before the sign
trunk, tokens   the transformer; tokens into it and out of it
masks           frame prediction, interpolation, inpainting, outpainting
schedules       of masking and guidance
draws           random numbers that belong to a sample
sampling        settings of it, and the choice of a token
samples, slide  many clips; clips longer than the grid
pictures        several clips in one
batches, task   what the trainer wants
"""

import os
from importlib import import_module

import torch

from vidtok.errors import nearest
from vidtok.generator.base import Generator, GeneratorConfig, Objective, read_config
from vidtok.hub import PRETRAINED, find_pretrained, load_weights

SHIPPED = PRETRAINED / "generators"
KINDS = ("masked", "autoregressive", "diffusion")

__all__ = [
    "KINDS",
    "Generator",
    "GeneratorConfig",
    "Objective",
    "create_generator",
    "from_pretrained",
    "generate",
    "generate_files",
    "load_tokenizer",
]


def __getattr__(name: str):
    if name in ("generate", "generate_files"):  # late: they read and write videos, which models don't
        return getattr(import_module("vidtok.generator.run"), name)
    raise AttributeError(f"module 'vidtok.generator' has no attribute {name!r}")


def create_generator(config: GeneratorConfig) -> Generator:
    """An untrained generator in training mode.

    Raises:
        ValueError: for an unknown kind, or arguments that it doesn't take.
    """
    if config.kind not in KINDS:
        raise ValueError(f"unknown generator {config.kind!r}: {nearest(config.kind, KINDS)}")
    try:
        return _kind(config.kind)(config, **config.arguments)
    except TypeError as error:
        raise ValueError(f"{config.kind} generator: {error}") from error


def from_pretrained(name: str | os.PathLike, device: str | torch.device = "cpu", **hub_arguments) -> Generator:
    """A trained generator in evaluation mode.

    Args:
        name: a folder that `save_pretrained` or a training run left, or a Hugging Face hub id ("owner/name").
        device: where it runs.
        hub_arguments: `revision`, `token`, `cache_dir`, ... of huggingface_hub.

    Raises:
        ValueError: for a name that is neither, or weights that don't fit their config.
    """
    config, weights = find_pretrained(name, "generator", SHIPPED, **hub_arguments)
    generator = create_generator(read_config(config))
    load_weights(generator, weights)
    return generator.eval().to(device)


def load_tokenizer(config: GeneratorConfig, name: str | None = None, device: str | torch.device = "cpu"):
    """The `VideoTokenizer` of a generator's tokens.

    Args:
        name: where it is; None, it is found by the name in the config.

    Raises:
        ValueError: where it isn't found, or has other weights than the generator was trained with.
    """
    from vidtok.tokenizer import VideoTokenizer

    tokenizer = VideoTokenizer.from_pretrained(name or config.tokenizer, device)
    if tokenizer.weight_hash != config.weight_hash:
        raise ValueError(
            f"generator {config.name!r} makes tokens of {config.tokenizer} with weights {config.weight_hash}, and "
            f"{name or config.tokenizer} has weights {tokenizer.weight_hash}: say where its tokenizer is (--tokenizer, "
            "or tokenizer=)"
        )
    return tokenizer


def _kind(name: str) -> type[Generator]:
    # Imported late: diffusers takes seconds, and only one kind needs it.
    if name == "masked":
        from vidtok.generator.masked import MaskedGenerator

        return MaskedGenerator
    if name == "autoregressive":
        from vidtok.generator.autoregressive import AutoregressiveGenerator

        return AutoregressiveGenerator
    from vidtok.generator.diffusion import DiffusionGenerator

    return DiffusionGenerator
