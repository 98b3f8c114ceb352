"""Evaluate generators: measure one against real clips, or compare kinds at equal budgets.

evaluate       FVD, FID and agreement of one generator
compare        masked, autoregressive and diffusion generators at equal data, parameters and training time
merge_results  one result of comparisons that were run on several machines
"""

from importlib import import_module

# name -> its module, loaded on first use
_HOME = {"evaluate": "run", "compare": "comparison", "merge_results": "comparison"}

__all__ = ["compare", "evaluate", "merge_results"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
