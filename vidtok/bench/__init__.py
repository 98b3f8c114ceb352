"""Measurements of speed and memory."""

from .entropy import bench_entropy
from .tokenizer import bench_tokenizer

__all__ = ["bench_entropy", "bench_tokenizer"]
