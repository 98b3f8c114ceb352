"""Evaluate reconstructions of a tokenizer.

evaluate    PSNR, SSIM, LPIPS, rFVD, rate and use of the codebook
agreement   whether a classifier predicts the same for clips and their reconstructions
"""

from importlib import import_module

# name -> its module, loaded on first use
_HOME = {"evaluate": "run", "agreement": "classifier_agreement"}

__all__ = ["agreement", "evaluate"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
