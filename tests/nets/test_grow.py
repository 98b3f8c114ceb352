"""Growth: a smaller patch tokenizer's weights in a larger one, and output patches that overlap."""

import pytest
import torch
import torch.nn.functional as F

from vidtok.nets.inflate import grow
from vidtok.nets.layers import overlap_add
from vidtok.tokenizer import TokenizerConfig, VideoTokenizer

LFQ = {"kind": "lfq", "bits": 18, "levels": 3}
NET = {"kind": "patch", "width": 32, "blocks": 2, "decoder_blocks": 2}


def build(net, quantizer=LFQ, seed=0) -> VideoTokenizer:
    torch.manual_seed(seed)
    return VideoTokenizer(TokenizerConfig("test", net, quantizer)).eval()


def clip(seed=0):
    return torch.rand(1, 3, 9, 32, 48, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_overlap_add_is_fold():
    x = torch.randn(2, 3 * 12 * 12, 4 * 5)  # cells 4 x 5, patches 12 x 12
    want = F.fold(x, (4 * 8 + 4, 5 * 8 + 4), 12, stride=8)[:, :, 2:-2, 2:-2]
    cells = x.view(2, 3, 12, 12, 4, 5).permute(0, 1, 4, 2, 5, 3)
    assert torch.allclose(overlap_add(overlap_add(cells, 8, 2, 4), 8, 2, 2), want, atol=1e-6)


@pytest.mark.parametrize(
    "new", [{"overlap": 2}, {"decoder_blocks": 4}, {"blocks": 3, "decoder_blocks": 3, "overlap": 4}]
)
def test_the_larger_tokenizer_begins_as_the_smaller_one(new):
    small, large = build(NET), build(NET | new, seed=1)
    grow(small, large)
    ids = small.encode(clip())
    assert torch.equal(large.encode(clip()), ids)
    assert torch.allclose(large.decode(ids), small.decode(ids), atol=1e-6)


def test_a_wider_decoder_begins_nearly_as_the_smaller_one():
    small, large = build(NET), build(NET | {"decoder_width": 40}, seed=1)
    grow(small, large)
    ids = small.encode(clip())
    a, b = small.decode(ids), large.decode(ids)
    assert (a - b).square().mean() < 0.05 * a.square().mean()


def test_what_is_new_learns():
    small, large = build(NET), build(NET | {"decoder_blocks": 3, "overlap": 2}, seed=1)
    grow(small, large)
    decoded, _, _ = large.train()(clip())
    (decoded - clip()).square().mean().backward()
    margins = large.decoder.head.weight.grad.view(3, 4, 12, 12, -1)
    assert margins[:, :, :2].abs().sum() > 0 and margins[:, :, :, 10:].abs().sum() > 0
    assert large.decoder.blocks[2].linear.weight.grad.abs().sum() > 0


def test_streams_of_overlapping_patches_equal_the_whole_clip():
    tokenizer = build(NET | {"overlap": 2})
    ids = tokenizer.encode(clip())
    parts = tokenizer.stream_decode(ids.split(1, dim=1))
    assert torch.allclose(torch.cat(list(parts), 2), tokenizer.decode(ids), atol=1e-6)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (NET | {"width": 64}, "equal patch and width"),
        (NET | {"decoder_blocks": 1}, "fewer blocks"),
        (NET | {"decoder_width": 16}, "does not fit"),
        ({"kind": "magvit2", "base": 8, "channel_multipliers": [1, 2, 2, 4], "blocks": 1}, "patch nets grow"),
    ],
)
def test_other_pairs_are_refused(net, message):
    with pytest.raises(ValueError, match=message):
        grow(build(NET), build(net))


def test_a_wrong_overlap_is_refused():
    with pytest.raises(ValueError, match="0 to half a patch"):
        build(NET | {"overlap": 5})
