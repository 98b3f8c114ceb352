"""Generators of token grids: masked and autoregressive language models, and diffusion to compare them with.

base            conditions, `generate`, loading and saving
masked          masked token modelling, parallel decoding
autoregressive  next-token prediction with a cache of keys and values
diffusion       a DiT on the latents before the sign
trunk, tokens   the transformer; tokens into it and out of it
masks           frame prediction, interpolation, inpainting, outpainting
schedules       of masking and guidance
sampling        draws that belong to a sample
slide           clips longer than the grid
batches, task   what the trainer wants
"""

import os

import torch

from vidtok.generator.base import Generator, Objective
from vidtok.generator.config import GeneratorConfig, read_config
from vidtok.hints import nearest
from vidtok.shipped import PRETRAINED, find_pretrained
from vidtok.weights import load_weights

SHIPPED = PRETRAINED / "generators"
KINDS = ("masked", "autoregressive", "diffusion")

__all__ = ["KINDS", "Generator", "GeneratorConfig", "Objective", "create_generator", "from_pretrained"]


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
