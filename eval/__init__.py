"""Measuring tokenizers: quality of reconstructions, use of the codebook, cost in bits."""

from .clips import clip_protocol, validation_clips
from .codebook import CodebookUsage, bits_per_pixel
from .fvd import GaussianStatistics, frechet_distance
from .i3d import I3D
from .metrics import block_edges, psnr, ssim
from .reconstruction import evaluate_reconstruction, format_table
from .trivial import trivial_reconstruction

__all__ = [
    "I3D",
    "CodebookUsage",
    "GaussianStatistics",
    "bits_per_pixel",
    "block_edges",
    "clip_protocol",
    "evaluate_reconstruction",
    "format_table",
    "frechet_distance",
    "psnr",
    "ssim",
    "trivial_reconstruction",
    "validation_clips",
]
