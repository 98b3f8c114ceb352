"""Activation checkpointing: the same gradients from less memory."""

import pytest
import torch
from torch import nn

from vidtok.tokenizer import TokenizerConfig, VideoTokenizer
from vidtok.train.state import checkpoint_blocks

NETS = {
    "patch": {"kind": "patch", "width": 32, "blocks": 4, "decoder_blocks": 6},
    "magvit2": {"kind": "magvit2", "base": 8, "channel_multipliers": [1, 1, 1, 2], "blocks": 1},
}


def backward(tokenizer, video):
    """(loss, gradients by name, bytes beside the weights that the forward pass kept)."""
    tokenizer.zero_grad()
    weights, kept = {p.data_ptr() for p in tokenizer.parameters()}, {}

    def keep(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        decoded, z, codes = tokenizer(video)
        loss = (decoded - video).square().mean() + tokenizer.quantizer.losses(z, codes)["commitment"]
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in tokenizer.named_parameters()}, sum(kept.values())


@pytest.mark.parametrize("net", NETS)
def test_same_gradients_from_less_memory(net):
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(TokenizerConfig(name="tiny", net=NETS[net], quantizer={"kind": "lfq", "bits": 8}))
    video = torch.rand(2, 3, 5, 64, 64) * 2 - 1
    names, ids = list(tokenizer.state_dict()), tokenizer.encode(video)
    loss, gradients, memory = backward(tokenizer, video)
    checkpoint_blocks(tokenizer)
    again, same, less = backward(tokenizer, video)
    assert again == loss and all(torch.equal(gradients[name], same[name]) for name in gradients)
    assert less < 0.7 * memory
    assert list(tokenizer.state_dict()) == names and torch.equal(tokenizer.encode(video), ids)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ValueError, match="no blocks"):
        checkpoint_blocks(nn.Linear(2, 2))
