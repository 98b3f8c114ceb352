"""Evaluate tokenizers, recognition heads and generators.

reconstruction.evaluate, agreement                       reconstructions of a tokenizer
recognition.probe, finetune, evaluate, compare           recognition from features, tokens and pixels
generation.evaluate, compare                             generators
compression.evaluate                                     tokenizers as codecs, compared with x264, x265, SVT-AV1, VVenC
metrics, report                                          shared metrics, tables and charts
"""

from importlib import import_module

from vidtok.eval.metrics.frechet import GaussianStatistics, frechet_distance
from vidtok.eval.metrics.i3d import I3D
from vidtok.eval.metrics.reconstruction import CodebookUsage, bits_per_pixel, block_edges, psnr, ssim
from vidtok.eval.reconstruction.run import (
    block_mean_baseline,
    clip_protocol,
    evaluate_reconstruction,
    format_table,
    validation_clips,
)

__all__ = [
    "I3D",
    "CodebookUsage",
    "GaussianStatistics",
    "bits_per_pixel",
    "block_edges",
    "block_mean_baseline",
    "clip_protocol",
    "compression",
    "evaluate_reconstruction",
    "format_table",
    "frechet_distance",
    "generation",
    "psnr",
    "recognition",
    "reconstruction",
    "ssim",
    "validation_clips",
]


def __getattr__(name: str):
    if name not in ("compression", "generation", "recognition", "reconstruction"):  # packages, imported on first use
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
