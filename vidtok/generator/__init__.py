"""Generators of token grids: masked and autoregressive language models, and a diffusion baseline.

base            base class: config, conditions, `generate`, saving
language        masked token modeling with parallel decoding; next-token prediction with a key-value cache
diffusion       diffusion transformer on the latents before quantization
transformer     the shared transformer, token embedding and token heads
masks           masks for frame prediction, interpolation, inpainting and outpainting
sampling        per-sample random numbers, token sampling, mask and guidance schedules
long            many clips; clips longer than the model's grid
training        training task, batches and build functions
run             generate clips into files
"""

import os
from importlib import import_module

import torch

from vidtok.errors import nearest
from vidtok.generator.base import Generator, GeneratorConfig, Objective, list_shipped_generators
from vidtok.hub import describe_weights

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
    "list_shipped_generators",
    "load_tokenizer",
]


def __getattr__(name: str):
    if name in ("generate", "generate_files"):  # late: they import video libraries, which models don't need
        return getattr(import_module("vidtok.generator.run"), name)
    raise AttributeError(f"module 'vidtok.generator' has no attribute {name!r}")


def create_generator(config: GeneratorConfig) -> Generator:
    """Create an untrained generator in training mode on the CPU.

    Raises:
        ValueError: an unknown kind, or an argument that the kind does not have.
    """
    if config.kind not in KINDS:
        raise ValueError(f"unknown generator {config.kind!r}: {nearest(config.kind, KINDS)}")
    try:
        return _kind(config.kind)(config, **config.arguments)
    except TypeError as error:
        raise ValueError(f"{config.kind} generator: {error}") from error


def from_pretrained(name: str | os.PathLike, device: str | torch.device = "cpu", **hub_arguments) -> Generator:
    """Load a trained generator in evaluation mode.

    Args:
        name: name of a shipped generator (`list_shipped_generators`), folder written by `save_pretrained` or a training
            run, or Hugging Face hub id ("owner/name").
        device: device of the generator.
        hub_arguments: `revision`, `token`, `cache_dir`, ... of huggingface_hub.

    Raises:
        ValueError: the name is none of these, or the weights don't fit the config.
    """
    return Generator.from_pretrained(name, device, **hub_arguments)


def load_tokenizer(config: GeneratorConfig, name: str | None = None, device: str | torch.device = "cpu"):
    """Load the `VideoTokenizer` whose tokens a generator produces.

    Args:
        config: config of the generator.
        name: shipped model, folder or hub id of the tokenizer; None, the name in the config.
        device: device of the tokenizer.

    Raises:
        ValueError: the tokenizer is not found, or has other weights than the one the generator was trained with.
    """
    from vidtok.tokenizer import VideoTokenizer

    tokenizer = VideoTokenizer.from_pretrained(name or config.tokenizer, device)
    if tokenizer.weight_hash != config.weight_hash:
        theirs = describe_weights(config.weight_hash)
        raise ValueError(
            f"generator {config.name!r} makes tokens of {config.tokenizer} with {theirs}, and "
            f"{name or config.tokenizer} has weights {tokenizer.weight_hash}: say where its tokenizer is "
            "(--tokenizer, or tokenizer=)"
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
