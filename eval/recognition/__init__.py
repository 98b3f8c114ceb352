"""Evaluate recognition: probe frozen features, fine-tune heads, test them, compare inputs.

probe      classifiers on frozen features
finetune   train a head end to end and test it
evaluate   test a trained head
compare    train and test one head on tokens, codes, latents, hidden features, pixels and reconstructions
"""

from importlib import import_module

# name -> its module, imported on first use
_HOME = {"probe": "probing", "finetune": "finetuning", "evaluate": "run", "compare": "comparison"}

__all__ = ["compare", "evaluate", "finetune", "probe"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
