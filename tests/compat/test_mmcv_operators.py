"""The stand-in operators, called through mmcv.ops, against loops written out plainly."""

import itertools
import math

import mmcv.ops
import numpy as np
import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

pytestmark = pytest.mark.usefixtures('stand_in')
double = dict(dtype=torch.float64)


def random_boxes(count, kind='real', seed=0):
    """Overlapping boxes and scores; 'whole' numbers make ties of scores and of IoUs."""
    rng = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=rng) * 20
    boxes = torch.cat([corner, corner + torch.rand(count, 2, generator=rng) * 20], 1)
    scores = torch.rand(count, generator=rng)
    if kind == 'whole':
        return (boxes / 3).round(), (scores * 5).round() / 5
    return boxes, scores


def plain_iou(a, b, offset):
    """IoU in the precision of the operator, 0 / 0 being 0."""
    sizes = [max(min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + offset, 0) for i in (0, 1)]
    inter = np.float32(sizes[0] * sizes[1])
    areas = [(box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b)]
    union = np.float32(areas[0] + areas[1] - inter)
    return inter / union if union else np.float32(0)


def plain_nms(boxes, scores, threshold, offset):
    order = scores.sort(descending=True).indices.tolist()
    boxes, kept = boxes.numpy(), []
    for i in order:
        if all(plain_iou(boxes[i], boxes[k], offset) <= np.float32(threshold) for k in kept):
            kept.append(i)
    return kept


def plain_soft_nms(boxes, scores, threshold, sigma, min_score, method, offset):
    """Soft-NMS as published, with mmcv's rule for the places of swapped boxes."""
    live = [[b, s, i] for i, (b, s) in enumerate(zip(boxes.numpy(), scores.numpy(), strict=True))]
    done = 0
    while done < len(live):
        best = max(range(done, len(live)), key=lambda k: live[k][1])  # the first of equals
        live[done], live[best] = live[best], live[done]
        at = done + 1
        while at < len(live):
            iou = plain_iou(live[done][0], live[at][0], offset)
            if method == 'gaussian':
                weight = np.float32(math.exp(-(iou * iou) / np.float32(sigma)))
            else:
                weight = np.float32(0 if method == 'naive' else 1 - iou)
                weight = weight if iou >= np.float32(threshold) else np.float32(1)
            live[at][1] = live[at][1] * weight
            if live[at][1] < np.float32(min_score):
                last = live.pop()
                if at < len(live):
                    live[at] = last
            else:
                at += 1
        done += 1
    return [i for *_, i in live], torch.tensor([s for _, s, _ in live])


@pytest.mark.parametrize('kind', ['real', 'whole'])
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.0, 0.25, 0.5, 0.6, 0.7, 1.0])
def test_nms_is_the_plain_loop(kind, offset, threshold):
    suppressed = 0
    for seed in range(6):
        boxes, scores = random_boxes(40, kind, seed)
        dets, kept = mmcv.ops.nms(boxes, scores, threshold, offset=offset)
        assert kept.tolist() == plain_nms(boxes, scores, threshold, offset)
        assert kept.dtype == torch.int64
        assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[kept])
        suppressed += 40 - len(kept)
    assert (suppressed > 0) == (threshold < 1)


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('tie', [3, 5, 6, 7, 9])
def test_nms_keeps_a_box_whose_iou_equals_the_threshold(offset, tie):
    boxes = torch.tensor([[0, 0, 10 - offset, 1 - offset], [0, 0, tie - offset, 1 - offset]])
    scores = torch.tensor([0.9, 0.8])
    for threshold, kept in ((tie / 10, 2), (tie / 10 - 1e-3, 1), (tie / 10 + 1e-3, 2)):
        assert len(mmcv.ops.nms(boxes.float(), scores, threshold, offset=offset)[1]) == kept


def test_nms_options_of_mmcv():
    boxes, scores = random_boxes(40)
    kept = plain_nms(boxes, scores, 0.4, 0)
    assert mmcv.ops.nms(boxes, scores, 0.4, max_num=3)[1].tolist() == kept[:3]
    found = mmcv.ops.nms(boxes, scores, 0.4, score_threshold=0.5)[1]
    assert found.tolist() == [i for i in kept if scores[i] > 0.5]


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
@pytest.mark.parametrize('kind', ['real', 'whole'])
@pytest.mark.parametrize('offset', [0, 1])
def test_soft_nms_is_the_plain_loop(method, kind, offset):
    dropped = 0
    settings = itertools.product(range(3), (0.2, 0.5), (0.0, 1e-3, 0.2))
    for seed, threshold, min_score in settings:
        boxes, scores = random_boxes(30, kind, seed)
        # Boxes without area would make NaN scores by the gaussian of 0 / 0.
        boxes[:, 2:] += 0.5
        given = boxes.clone(), scores.clone()
        dets, kept = mmcv.ops.soft_nms(boxes, scores, threshold, 0.5, min_score, method, offset)
        indices, decayed = plain_soft_nms(boxes, scores, threshold, 0.5, min_score, method, offset)
        assert kept.tolist() == indices
        assert torch.equal(dets[:, :4], boxes[kept])
        torch.testing.assert_close(dets[:, 4], decayed, rtol=1e-6, atol=0)
        assert torch.equal(boxes, given[0])
        assert torch.equal(scores, given[1])
        dropped += 30 - len(kept)
    assert dropped > 0


def test_boxes_none_at_all():
    boxes, scores = torch.empty(0, 4), torch.empty(0)
    for operator in (mmcv.ops.nms, mmcv.ops.soft_nms):
        dets, kept = operator(boxes, scores, 0.5)
        assert dets.shape == (0, 5)
        assert kept.shape == (0,)
        assert kept.dtype == torch.int64


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_boxes_of_other_types(dtype):
    boxes, scores = random_boxes(40)
    narrow, rounded = scores.to(dtype), boxes.to(dtype).float()
    # Under autocast boxes are float32 and scores are not.
    with torch.autocast('cpu', torch.bfloat16):
        kept = mmcv.ops.nms(boxes, narrow, 0.5)[1]
    assert kept.tolist() == plain_nms(boxes, narrow, 0.5, 0)
    kept = mmcv.ops.nms(boxes.to(dtype), narrow, 0.5)[1]
    assert kept.tolist() == plain_nms(rounded, narrow, 0.5, 0)
    dets, kept = mmcv.ops.soft_nms(boxes.to(dtype), narrow)
    indices, decayed = plain_soft_nms(rounded, narrow.float(), 0.3, 0.5, 1e-3, 'linear', 0)
    assert kept.tolist() == indices
    assert dets.dtype == dtype
    torch.testing.assert_close(dets[:, 4].float(), decayed, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize('split_thr', [10000, 10])
@pytest.mark.parametrize('kind', ['nms', 'soft_nms'])
def test_batched_nms_keeps_classes_apart(split_thr, kind):
    boxes, scores = random_boxes(40)
    labels = torch.arange(40) % 3
    config = dict(type=kind, iou_threshold=0.5, split_thr=split_thr)
    dets, kept = mmcv.ops.batched_nms(boxes, scores, labels, config)
    expected = {}
    for label in range(3):
        mine = (labels == label).nonzero()[:, 0]
        if kind == 'nms':
            indices = plain_nms(boxes[mine], scores[mine], 0.5, 0)
            values = scores[mine][indices]
        else:
            indices, values = plain_soft_nms(boxes[mine], scores[mine], 0.5, 0.5, 1e-3, 'linear', 0)
        expected.update(zip(mine[indices].tolist(), values.tolist(), strict=True))
    assert sorted(kept.tolist()) == sorted(expected)
    found = dict(zip(kept.tolist(), dets[:, 4].tolist(), strict=True))
    # Classes are shifted apart before the IoUs are taken, which rounds the boxes.
    assert found == pytest.approx(expected, rel=1e-4)


def plain_focal(prob, positive, gamma, alpha):
    """Focal loss of one yes-or-no question, arXiv 1708.02002, equation 5."""
    p_t = prob if positive else 1 - prob
    return -(alpha if positive else 1 - alpha) * (1 - p_t) ** gamma * math.log(p_t)


@pytest.mark.parametrize(('gamma', 'alpha'), [(2.0, 0.25), (0.5, 0.75)])
@pytest.mark.parametrize('weighted', [False, True])
def test_sigmoid_focal_loss_is_the_formula(gamma, alpha, weighted):
    logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 2, 1, 1, 0, 2] if weighted else [0, 3, 2, -1, 1, 1])
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64) if weighted else None
    loss = mmcv.ops.sigmoid_focal_loss(logits, target, gamma, alpha, weight, 'none')
    expected = [
        [
            plain_focal(1 / (1 + math.exp(-x)), label == column, gamma, alpha)
            * (weight[label].item() if weighted else 1)
            for column, x in enumerate(row)
        ]
        for row, label in zip(logits.tolist(), target.tolist(), strict=True)
    ]
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))
    for reduction in ('none', 'mean', 'sum'):
        assert torch.autograd.gradcheck(
            lambda x, r=reduction: mmcv.ops.sigmoid_focal_loss(x, target, gamma, alpha, weight, r),
            logits,
        )


def test_sigmoid_focal_loss_in_float32_ends_where_mmcv_ends_it():
    logits = torch.tensor([[-200.0, 30.0], [0.0, -30.0]])
    loss = mmcv.ops.sigmoid_focal_loss(logits, torch.tensor([0, 2]), 2.0, 0.25, None, 'none')
    end = -math.log(torch.finfo(torch.float32).tiny)
    expected = torch.tensor([[0.25 * end, 0.75 * end], [0.75 * 0.25 * math.log(2), 0.0]])
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_focal_loss_in_low_precision(dtype):
    logits = (torch.randn(5, 4) * 2).to(dtype)
    target = torch.tensor([0, 1, 2, 3, 3])
    narrow, wide = logits.clone().requires_grad_(), logits.float().requires_grad_()
    value, expected = (
        mmcv.ops.sigmoid_focal_loss(x, target, 2.0, 0.25, None, 'sum') for x in (narrow, wide)
    )
    value.backward()
    expected.backward()
    assert value.dtype == narrow.grad.dtype == dtype
    torch.testing.assert_close(value.float(), expected, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(narrow.grad.float(), wide.grad, rtol=2e-2, atol=2e-2)


def test_focal_loss_refuses_labels_out_of_range():
    logits, weight = torch.zeros(2, 3), torch.ones(3)
    for label, weights in ((4, None), (3, weight)):
        with pytest.raises(ValueError, match=f'label {label} with 3 classes'):
            mmcv.ops.sigmoid_focal_loss(logits, torch.tensor([0, label]), 2.0, 0.25, weights, 'sum')
    empty = mmcv.ops.sigmoid_focal_loss(
        logits[:0], torch.empty(0, dtype=torch.long), 2.0, 0.25, None, 'none'
    )
    assert empty.shape == (0, 3)


def bilinear(plane, y, x, margin_of_border):
    """Value of a map between its pixels, outside that of the border (RoIAlign) or with zeros."""
    height, width = plane.shape
    if margin_of_border:
        if not (-1 <= y <= height and -1 <= x <= width):
            return 0.0
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    value = 0.0
    top, left = math.floor(y), math.floor(x)
    for row, column in itertools.product((top, top + 1), (left, left + 1)):
        if 0 <= row < height and 0 <= column < width:
            value += (1 - abs(y - row)) * (1 - abs(x - column)) * plane[row, column].item()
    return value


def plain_roi_align(maps, rois, grid, scale, sampling_ratio, aligned):
    output = torch.zeros(len(rois), maps.size(1), *grid, **double)
    for r, channel, ph, pw in itertools.product(*map(range, output.shape)):
        index, x1, y1, x2, y2 = rois[r].tolist()
        x1, y1, x2, y2 = (v * scale - (0.5 if aligned else 0) for v in (x1, y1, x2, y2))
        height, width = y2 - y1, x2 - x1
        if not aligned:
            height, width = max(height, 1), max(width, 1)
        bin_h, bin_w = height / grid[0], width / grid[1]
        rows, columns = sampling_ratio or math.ceil(bin_h), sampling_ratio or math.ceil(bin_w)
        ys = [y1 + (ph + (i + 0.5) / rows) * bin_h for i in range(rows)]
        xs = [x1 + (pw + (j + 0.5) / columns) * bin_w for j in range(columns)]
        samples = [bilinear(maps[int(index), channel], y, x, True) for y in ys for x in xs]
        output[r, channel, ph, pw] = sum(samples) / len(samples)
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


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
@pytest.mark.parametrize('scale', [1.0, 0.25, 0.375])
def test_roi_align_is_the_plain_loop(aligned, sampling_ratio, scale):
    maps = torch.randn(2, 2, 6, 8, **double)
    rois = ROIS * torch.tensor([1, *[0.25 / scale] * 4], **double)
    arguments = ((3, 2), scale, sampling_ratio)
    output = mmcv.ops.roi_align(maps, rois, *arguments, 'avg', aligned)
    expected = plain_roi_align(maps, rois, *arguments, aligned)
    assert expected.abs().amax((1, 2, 3)).count_nonzero() >= 4
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    single = mmcv.ops.roi_align(maps.float(), rois.float(), *arguments, 'avg', aligned)
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
def test_roi_align_gradients(aligned, sampling_ratio):
    maps = torch.randn(2, 1, 5, 6, requires_grad=True, **double)
    assert torch.autograd.gradcheck(
        lambda x: mmcv.ops.roi_align(x, ROIS, (2, 3), 0.25, sampling_ratio, 'avg', aligned), maps
    )


@pytest.mark.parametrize('batch', [0, 2])
def test_roi_align_without_rois(batch):
    maps = torch.randn(batch, 3, 5, 6, requires_grad=True)
    output = mmcv.ops.RoIAlign(7, 0.5, 0, 'avg')(maps, torch.empty(0, 5))
    output.sum().backward()
    assert output.shape == (0, 3, 7, 7)
    assert torch.equal(maps.grad, torch.zeros_like(maps))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_roi_align_in_low_precision(dtype):
    maps, rois = torch.randn(2, 3, 6, 8).to(dtype), ROIS.to(dtype)
    narrow, wide = maps.clone().requires_grad_(), maps.float().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        output = mmcv.ops.roi_align(narrow, rois, 3, 0.25, 2, 'avg', True)
    expected = mmcv.ops.roi_align(wide, rois.float(), 3, 0.25, 2, 'avg', True)
    assert torch.equal(output, expected.to(dtype))
    output.sum().backward()
    expected.sum().backward()
    assert narrow.grad.dtype == dtype
    torch.testing.assert_close(narrow.grad.float(), wide.grad, rtol=2e-2, atol=2e-2)
    # Single-precision RoIs and half-precision maps, as a head without a cast sends them.
    assert torch.equal(mmcv.ops.roi_align(maps, rois.float(), 3, 0.25, 2, 'avg', True), output)


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

    plain = torch.ones_like(mask[0]), weight.detach(), bias.new_zeros(2)
    expected = plain_deform_conv(maps[0], offset[0].detach(), *plain, *layout)
    operands = maps, offset, weight
    output = mmcv.ops.deform_conv2d(*operands, *layout)
    torch.testing.assert_close(output[0], expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda *t: mmcv.ops.deform_conv2d(*t, *layout), operands, fast_mode=True
    )


def test_deformable_convolutions_without_displacement_are_convolutions():
    maps = torch.randn(2, 4, 6, 5).to(memory_format=torch.channels_last)
    kinds = (mmcv.ops.DeformConv2dPack, 1.0), (mmcv.ops.ModulatedDeformConv2dPack, 0.5)
    for kind, strength in kinds:  # sigmoid(0)
        layer = kind(4, 3, 3, padding=1)
        output = layer(maps)
        bias = getattr(layer, 'bias', None)
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
            assert (grad[0, 1, :, 0, 1].abs().sum() == 0) == (scale == 1)  # at the upper edge


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
