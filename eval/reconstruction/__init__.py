"""Evaluate reconstructions of a tokenizer.

evaluate    PSNR, SSIM, LPIPS, rFVD, rate and codebook usage
agreement   agreement of a classifier's predictions for clips and for their reconstructions
"""

from importlib import import_module

# name -> its module, imported on first use
_HOME = {"evaluate": "run", "agreement": "classifier_agreement"}

__all__ = ["agreement", "evaluate"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
