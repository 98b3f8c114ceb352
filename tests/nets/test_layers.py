"""The paper's layers against their definitions."""

import pytest
import torch
import torch.nn.functional as F

from vidtok.nets.layers import AdaptiveGroupNorm, CausalConv3d, DepthToSpace, FrameGroupNorm


def test_causal_convolution_is_a_convolution_with_zeros_in_front():
    torch.manual_seed(0)
    conv = CausalConv3d(2, 3)
    x = torch.randn(1, 2, 5, 6, 6)
    padded = F.pad(x, (1, 1, 1, 1, 2, 0))
    assert torch.allclose(conv(x), F.conv3d(padded, conv.weight, conv.bias), atol=1e-5)


@pytest.mark.parametrize(("stride", "shape"), [((1, 2, 2), (9, 4, 6)), ((2, 2, 2), (5, 4, 6))])
def test_strided_convolution_keeps_the_first_frame_alone(stride, shape):
    torch.manual_seed(0)
    conv = CausalConv3d(2, 2, stride=stride)
    x = torch.randn(1, 2, 9, 8, 12)
    assert conv(x).shape[2:] == shape
    assert torch.allclose(conv(x)[:, :, :1], conv(x[:, :, :1]), atol=1e-6)


def test_group_norm_takes_each_frame_on_its_own():
    torch.manual_seed(0)
    norm = FrameGroupNorm(64)
    x = torch.randn(2, 64, 3, 4, 5) * 3 + 1
    for t in range(3):
        expected = F.group_norm(x[:, :, t], 32, norm.weight, norm.bias, 1e-5)
        assert torch.allclose(norm(x)[:, :, t], expected, atol=1e-5)


def test_depth_to_space_puts_channels_where_they_belong():
    """Channel ((c * ft + i) * fh + j) * fw + k of a cell is its pixel (i, j, k) of channel c; the first frames go."""
    up = DepthToSpace(1, 2, (2, 2, 2))
    with torch.no_grad():  # the convolution passes its one input channel on, times the number of the output channel
        up.conv.weight.zero_()
        up.conv.weight[:, 0, -1, 1, 1] = torch.arange(16.0)
        up.conv.bias.zero_()
    x = torch.arange(1.0, 1 + 3 * 2 * 5).view(1, 1, 3, 2, 5)
    y = up(x)
    assert y.shape == (1, 2, 5, 4, 10)
    for c, t, h, w in [(0, 0, 0, 0), (1, 1, 3, 9), (0, 4, 1, 6), (1, 2, 2, 3), (0, 3, 3, 4)]:
        i, j, k = (t + 1) % 2, h % 2, w % 2
        channel = ((c * 2 + i) * 2 + j) * 2 + k
        assert y[0, c, t, h, w] == channel * x[0, 0, (t + 1) // 2, h // 2, w // 2]


def test_adaptive_norm_scales_and_shifts_by_the_codes_at_each_place():
    torch.manual_seed(0)
    norm = AdaptiveGroupNorm(64, 18, (2, 4, 4))
    x = torch.randn(1, 64, 5, 8, 8)  # 1 + 2 * 2 frames over 3 latents of 2 x 2
    codes = torch.randn(1, 18, 3, 2, 2).sign()
    y = norm(x, codes)
    for t, h, w in [(0, 0, 0), (1, 3, 4), (2, 7, 7), (3, 4, 3), (4, 5, 0)]:
        code = codes[0, :, (t + 1) // 2, h // 4, w // 4]
        scale = norm.scale.weight.flatten(1) @ code + norm.scale.bias
        shift = norm.shift.weight.flatten(1) @ code + norm.shift.bias
        expected = norm.norm(x)[0, :, t, h, w] * (1 + scale) + shift
        assert torch.allclose(y[0, :, t, h, w], expected, atol=1e-5)
