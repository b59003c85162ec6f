"""The stand-in operators that sample maps, through mmcv.ops, against plain loops."""

import itertools
import math

import mmcv.ops
import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

pytestmark = pytest.mark.usefixtures('stand_in')
double = dict(dtype=torch.float64)


def bilinear(plane, y, x, margin_of_border):
    """Value of a 2-d map between its pixels.

    RoIAlign takes the border's value up to a pixel outside (``margin_of_border``),
    deformable convolution interpolates with zeros there.
    """
    height, width = plane.shape
    if margin_of_border:
        if not (-1 <= y <= height and -1 <= x <= width):
            return 0.0
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    value = 0.0
    for row, column in itertools.product(
        (math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)
    ):
        if 0 <= row < height and 0 <= column < width:
            value += (1 - abs(y - row)) * (1 - abs(x - column)) * plane[row, column].item()
    return value


def plain_roi_align(maps, rois, grid, scale, sampling_ratio, mode, aligned):
    output = torch.zeros(len(rois), maps.size(1), *grid, **double)
    for r, channel, ph, pw in itertools.product(*map(range, output.shape)):
        index, x1, y1, x2, y2 = rois[r].tolist()
        x1, y1, x2, y2 = (v * scale - (0.5 if aligned else 0) for v in (x1, y1, x2, y2))
        height, width = y2 - y1, x2 - x1
        if not aligned:
            height, width = max(height, 1), max(width, 1)
        bin_h, bin_w = height / grid[0], width / grid[1]
        rows, columns = sampling_ratio or math.ceil(bin_h), sampling_ratio or math.ceil(bin_w)
        samples = [
            bilinear(
                maps[int(index), channel],
                y1 + (ph + (i + 0.5) / rows) * bin_h,
                x1 + (pw + (j + 0.5) / columns) * bin_w,
                True,
            )
            for i in range(rows)
            for j in range(columns)
        ]
        output[r, channel, ph, pw] = max(samples) if mode == 'max' else sum(samples) / len(samples)
    return output


# In pixels of an image four times the map: inside; across the border; beyond it; smaller
# than a pixel; all of the other map.
ROIS = torch.tensor(
    [
        [0, 2.3, 4.1, 17.7, 13.2],
        [0, -6.0, -3.0, 9.0, 30.0],
        [1, 40.0, 40.0, 70.0, 50.0],
        [1, 8.1, 8.2, 8.4, 8.9],
        [1, 0.0, 0.0, 23.9, 19.9],
    ],
    **double,
)


@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
@pytest.mark.parametrize('scale', [1.0, 0.25, 0.375])
def test_roi_align_is_the_plain_loop(mode, aligned, sampling_ratio, scale):
    maps = torch.randn(2, 2, 6, 8, **double)
    rois = ROIS * torch.tensor([1, *[0.25 / scale] * 4], **double)
    arguments = ((3, 2), scale, sampling_ratio, mode, aligned)
    output = mmcv.ops.roi_align(maps, rois, *arguments)
    expected = plain_roi_align(maps, rois, *arguments)
    assert expected.abs().amax((1, 2, 3)).count_nonzero() >= 4
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    single = mmcv.ops.roi_align(maps.float(), rois.float(), *arguments)
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
def test_roi_align_gradients(mode, aligned, sampling_ratio):
    maps = torch.randn(2, 1, 5, 6, requires_grad=True, **double)
    assert torch.autograd.gradcheck(
        lambda x: mmcv.ops.roi_align(x, ROIS, (2, 3), 0.25, sampling_ratio, mode, aligned), maps
    )


def test_roi_align_max_takes_the_first_of_equals():
    maps = torch.ones(1, 1, 4, 4, requires_grad=True)
    output = mmcv.ops.roi_align(maps, torch.tensor([[0.0, 0, 0, 4, 4]]), 1, 1.0, 4, 'max', True)
    output.sum().backward()
    assert output.item() == 1
    assert maps.grad[0, 0, 0, 0] == maps.grad.sum() == 1


def test_roi_align_of_a_roi_without_area():
    maps, roi = torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 2, 2, 2, 2]])
    assert mmcv.ops.roi_align(maps, roi, 2, 1.0, 0, 'avg', True).tolist() == [[[[0, 0], [0, 0]]]]
    # What mmcv's loop starts from where it finds no sample, and no gradient.
    leaf = maps.clone().requires_grad_()
    output = mmcv.ops.roi_align(leaf, roi, 1, 1.0, 0, 'max', True)
    assert output.item() == -10000
    assert torch.autograd.grad(output, leaf, torch.ones_like(output))[0].count_nonzero() == 0
    assert mmcv.ops.roi_align(maps, roi, 1, 1.0, 0, 'max', False).item() == 1


@pytest.mark.parametrize('batch', [0, 2])
@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align_without_rois(batch, mode):
    maps = torch.randn(batch, 3, 5, 6, requires_grad=True)
    output = mmcv.ops.RoIAlign(7, 0.5, 0, mode)(maps, torch.empty(0, 5))
    output.sum().backward()
    assert output.shape == (0, 3, 7, 7)
    assert torch.equal(maps.grad, torch.zeros_like(maps))


@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align_of_maps_that_are_not_contiguous(mode):
    maps = torch.randn(2, 3, 6, 8)
    outputs, grads = [], []
    for variant in (maps, maps.to(memory_format=torch.channels_last), maps.mT.contiguous().mT):
        leaf = variant.clone().requires_grad_()
        assert leaf.stride() == variant.stride()
        output = mmcv.ops.roi_align(leaf, ROIS.float(), 3, 0.25, 0, mode, True)
        output.mT.square().sum().backward()
        outputs.append(output)
        grads.append(leaf.grad)
    for found in (outputs, grads):
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])


@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_roi_align_in_low_precision(mode, dtype):
    maps, rois = torch.randn(2, 3, 6, 8).to(dtype), ROIS.to(dtype)
    narrow, wide = maps.clone().requires_grad_(), maps.float().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        output = mmcv.ops.roi_align(narrow, rois, 3, 0.25, 2, mode, True)
    expected = mmcv.ops.roi_align(wide, rois.float(), 3, 0.25, 2, mode, True)
    assert torch.equal(output, expected.to(dtype))
    output.sum().backward()
    expected.sum().backward()
    assert narrow.grad.dtype == dtype
    torch.testing.assert_close(narrow.grad.float(), wide.grad, rtol=2e-2, atol=2e-2)
    # Single-precision RoIs and half-precision maps, as a head without a cast sends them.
    assert torch.equal(mmcv.ops.roi_align(maps, rois.float(), 3, 0.25, 2, mode, True), output)


@pytest.mark.parametrize(
    ('roi', 'message'),
    [
        ([0, 1, 1, math.nan, 3], 'not finite'),
        ([0, 1, 1, math.inf, 3], 'not finite'),
        ([2, 1, 1, 3, 3], 'not one of the 2 maps'),
        ([-1, 1, 1, 3, 3], 'not one of the 2 maps'),
        ([0, 3, 1, 1, 3], 'ends before it starts'),
    ],
)
def test_roi_align_refuses_what_would_crash(roi, message):
    with pytest.raises(RuntimeError, match=message):
        mmcv.ops.roi_align(torch.randn(2, 1, 4, 4), torch.tensor([roi]).float(), 2)


def plain_deform_conv(maps, offset, mask, weight, bias, stride, padding, dilation, groups, sharing):
    """Sum over the kernel of displaced samples of one image, ``sharing`` deformable groups."""
    out_channels, per_group, kh, kw = weight.shape
    height, width = offset.shape[-2:]
    offset = offset.reshape(sharing, kh, kw, 2, height, width)
    mask = mask.reshape(sharing, kh, kw, height, width)
    output = bias[:, None, None].repeat(1, height, width)
    for o, c, i, j, h, w in itertools.product(
        *map(range, (out_channels, per_group, kh, kw, height, width))
    ):
        channel = o // (out_channels // groups) * per_group + c
        share = channel // (len(maps) // sharing)
        dy, dx = offset[share, i, j, :, h, w].tolist()
        y = h * stride[0] - padding[0] + i * dilation[0] + dy
        x = w * stride[1] - padding[1] + j * dilation[1] + dx
        sample = bilinear(maps[channel], y, x, False)
        output[o, h, w] += weight[o, c, i, j] * mask[share, i, j, h, w] * sample
    return output


@pytest.mark.parametrize(
    ('stride', 'padding', 'dilation', 'groups', 'sharing'),
    [((1, 1), (1, 1), (1, 1), 1, 1), ((2, 1), (0, 2), (1, 3), 2, 2)],
)
def test_deformable_convolutions(stride, padding, dilation, groups, sharing):
    maps = torch.randn(1, 4, 5, 6, **double)
    weight = torch.randn(2, 4 // groups, 3, 2, **double)
    height, width = (
        (size + 2 * pad - gap * (k - 1) - 1) // step + 1
        for size, pad, gap, k, step in zip((5, 6), padding, dilation, (3, 2), stride, strict=True)
    )
    offset = torch.randn(1, sharing * 12, height, width, **double)
    mask = torch.rand(1, sharing * 6, height, width, **double)
    bias = torch.randn(2, **double)
    layout = (stride, padding, dilation, groups, sharing)
    expected = plain_deform_conv(maps[0], offset[0], mask[0], weight, bias, *layout)
    operands = [t.requires_grad_() for t in (maps, offset, mask, weight, bias)]
    output = mmcv.ops.modulated_deform_conv2d(*operands, *layout)
    torch.testing.assert_close(output[0], expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda *t: mmcv.ops.modulated_deform_conv2d(*t, *layout), operands, fast_mode=True
    )

    plain = torch.ones_like(mask[0]), weight.detach(), torch.zeros_like(bias)
    expected = plain_deform_conv(maps[0], offset[0].detach(), *plain, *layout)
    operands = maps, offset, weight
    output = mmcv.ops.deform_conv2d(*operands, *layout)
    torch.testing.assert_close(output[0], expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda *t: mmcv.ops.deform_conv2d(*t, *layout), operands, fast_mode=True
    )


def test_deformable_convolutions_without_displacement_are_convolutions():
    maps = torch.randn(2, 4, 6, 5).to(memory_format=torch.channels_last)
    for layer in (
        mmcv.ops.DeformConv2dPack(4, 3, 3, padding=1),
        mmcv.ops.ModulatedDeformConv2dPack(4, 3, 3, padding=1),
    ):
        output = layer(maps)
        modulated = hasattr(layer, 'bias') and layer.bias is not None
        bias = layer.bias if modulated else None
        strength = 0.5 if modulated else 1.0  # sigmoid(0)
        expected = torch.nn.functional.conv2d(maps, layer.weight * strength, bias, padding=1)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
        with torch.autocast('cpu', torch.bfloat16):
            low = layer(maps)
        torch.testing.assert_close(low.float(), expected, rtol=5e-2, atol=5e-2)


def test_deformable_convolution_has_mmcvs_slope_at_the_border():
    # Without displacement the samples of the outermost taps lie exactly a pixel outside,
    # where the slopes of the two sides differ; mmcv takes that of the outside, zero.
    maps, weight = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)
    offset = torch.zeros(1, 18, 3, 3, requires_grad=True)
    for scale in (1.0, 0.999):  # the second reaches inside everywhere
        for mask in (None, torch.ones(1, 9, 3, 3)):
            shift = offset + (1 - scale)
            if mask is None:
                output = mmcv.ops.deform_conv2d(maps, shift, weight, 1, 1)
            else:
                output = mmcv.ops.modulated_deform_conv2d(maps, shift, mask, weight, None, 1, 1)
            grad = torch.autograd.grad(output.sum(), offset)[0].view(3, 3, 2, 3, 3)
            upper_tap_at_the_upper_edge = grad[0, 1, :, 0, 1].abs().sum()
            assert (upper_tap_at_the_upper_edge == 0) == (scale == 1)


def test_deformable_attention():
    shapes, heads, depth = [(3, 4), (2, 2)], 2, 3
    value = torch.randn(1, 16, heads, depth, requires_grad=True, **double)
    where = torch.rand(1, 2, heads, 2, 2, 2, **double) * 1.2 - 0.1
    weights = torch.rand(1, 2, heads, 2, 2, **double)
    operands = (value, where.requires_grad_(), weights.requires_grad_())

    def attend(value, where, weights):
        return MultiScaleDeformableAttnFunction.apply(
            value, torch.tensor(shapes), torch.tensor([0, 12]), where, weights, 64
        )

    output = attend(*operands)
    expected = torch.zeros(1, 2, heads * depth, **double)
    for q, h, d, level, p in itertools.product(*map(range, (2, heads, depth, 2, 2))):
        height, width = shapes[level]
        start = 12 * level
        plane = value[0, start : start + height * width, h, d].view(height, width)
        x, y = where[0, q, h, level, p].tolist()
        sample = bilinear(plane, y * height - 0.5, x * width - 0.5, False)
        expected[0, q, h * depth + d] += weights[0, q, h, level, p].item() * sample
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(attend, operands, fast_mode=True)
    low = attend(*(t.detach().bfloat16() for t in operands))
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.double(), expected, rtol=5e-2, atol=5e-2)
