"""Less memory for more work: the activations inside blocks are computed again on the way back."""

from functools import wraps

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(model: nn.Module) -> None:
    """Makes every block of the model keep only its input for the backward pass.

    Blocks are the members of module lists, the innermost ones where lists are nested. Weights, their names and results
    stay the same.

    Raises:
        ValueError: for a model without module lists.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    blocks = [block for blocks in lists for block in blocks if not _has_list(block)]
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no blocks: trainer.checkpoint_activations does nothing for it")
    for block in blocks:
        block.forward = _checkpointed(block.forward)


def _has_list(block: nn.Module) -> bool:
    return any(isinstance(module, nn.ModuleList) for module in block.modules())


def _checkpointed(forward):
    @wraps(forward)
    def again(*inputs, **options):
        if not torch.is_grad_enabled():
            return forward(*inputs, **options)
        return checkpoint(forward, *inputs, use_reentrant=False, **options)

    return again
