import math

import pytest
import torch

from vidtok.eval import CodebookUsage, bits_per_pixel


def test_entropy_equals_the_hand_computation():
    usage = CodebookUsage(8)
    usage.update(torch.tensor([0, 0, 0, 0, 1, 1, 5, 7]).view(2, 2, 2))
    assert usage.tokens == 8
    assert usage.distinct == 4
    assert usage.entropy_bits == pytest.approx(1.75)  # 1/2, 1/4, 1/8, 1/8
    assert usage.bit_balance.tolist() == [4 / 8, 1 / 8, 2 / 8]  # bit 0: 1, 1, 5, 7; bit 1: 7; bit 2: 5, 7


def test_streaming_equals_one_update():
    ids = torch.randint(2**18, (20_000,), generator=torch.Generator().manual_seed(0)) ** 2 % 2**18
    whole, parts = CodebookUsage(2**18), CodebookUsage(2**18)
    whole.update(ids)
    for part in ids.split(777):
        parts.update(part)
    assert whole.summary() == parts.summary()
    counts = torch.bincount(ids)
    p = counts[counts > 0].double() / len(ids)
    assert whole.entropy_bits == pytest.approx(-(p * p.log2()).sum().item())


@pytest.mark.parametrize("bits", [18, 36, 60])
def test_uniform_ids_of_any_width(bits):
    ids = (torch.arange(1024) * (2**bits // 1024)).view(4, 16, 16)
    usage = CodebookUsage(2**bits)
    usage.update(ids)
    assert usage.entropy_bits == pytest.approx(10.0)
    balance = usage.bit_balance
    assert balance[: bits - 10].tolist() == [0.0] * (bits - 10)
    assert balance[bits - 10 :].tolist() == [0.5] * 10


def test_empty_and_constant_have_no_entropy():
    usage = CodebookUsage(16)
    assert usage.entropy_bits == 0.0
    usage.update(torch.full((100,), 3))
    assert usage.entropy_bits == 0.0
    assert usage.summary()["usage"] == 1 / 16


def test_sizes_that_are_no_power_of_two():
    usage = CodebookUsage(1000)
    usage.update(torch.tensor([999]))
    assert usage.bit_balance.tolist() == [1, 1, 1, 0, 0, 1, 1, 1, 1, 1]


def test_wrong_ids_are_refused():
    usage = CodebookUsage(16)
    with pytest.raises(ValueError, match=r"torch\.int32"):
        usage.update(torch.zeros(3, dtype=torch.int32))
    with pytest.raises(ValueError, match="0 to 16 do not fit a codebook of 16"):
        usage.update(torch.tensor([0, 16]))
    with pytest.raises(ValueError, match="-1 to"):
        usage.update(torch.tensor([-1]))
    assert usage.tokens == 0
    with pytest.raises(ValueError, match=r"2 to 2\^62"):
        CodebookUsage(1)


def test_bits_per_pixel_counts_the_first_frame():
    assert bits_per_pixel(18, (4, 8, 8), 17, 128, 128) == 18 * 5 * 16 * 16 / (17 * 128 * 128)
    assert bits_per_pixel(18, (4, 8, 8), 17, 128, 128) == pytest.approx(0.0827, abs=5e-5)  # paper.md, section 3
    assert bits_per_pixel(18, (4, 8, 8), 1, 64, 64) == 18 / 64
    assert bits_per_pixel(18, (4, 8, 8), 4_000_001, 8, 8) == pytest.approx(18 / 256, rel=1e-5)
    assert bits_per_pixel(math.log2(1000), (1, 8, 8), 2, 8, 8) == pytest.approx(math.log2(1000) / 64)


@pytest.mark.parametrize("shape", [(16, 128, 128), (17, 127, 128), (17, 128, 12), (0, 8, 8), (1, 0, 8)])
def test_bits_per_pixel_refuses_a_grid_that_does_not_fit(shape):
    with pytest.raises(ValueError, match=r"1\+4k frames"):
        bits_per_pixel(18, (4, 8, 8), *shape)
