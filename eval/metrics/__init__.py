"""Metrics: image quality, codebook use, Fréchet distances, confidence intervals."""
