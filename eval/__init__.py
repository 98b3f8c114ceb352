"""Measuring tokenizers: quality of reconstructions, use of the codebook, cost in bits."""

from vidtok.eval.metrics.codebook import CodebookUsage, bits_per_pixel
from vidtok.eval.metrics.frechet import GaussianStatistics, frechet_distance
from vidtok.eval.metrics.i3d import I3D
from vidtok.eval.metrics.image import block_edges, psnr, ssim
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
    "evaluate_reconstruction",
    "format_table",
    "frechet_distance",
    "psnr",
    "ssim",
    "validation_clips",
]
