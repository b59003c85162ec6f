"""The stand-in operators, called through mmcv.ops, against loops written out plainly."""

import itertools
import math

import mmcv.ops
import numpy as np
import pytest
import torch

pytestmark = pytest.mark.usefixtures('stand_in')


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
    above = [i for i in kept if scores[i] > 0.5]
    found = mmcv.ops.nms(boxes, scores, 0.4, score_threshold=0.5)[1]
    assert found.tolist() == above
    dets, indices = mmcv.ops.nms(boxes.numpy(), scores.numpy(), 0.4)
    assert isinstance(dets, np.ndarray)
    assert indices.tolist() == kept


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


def test_soft_nms_neither_prefers_nor_passes_over_a_nan_score():
    boxes = torch.tensor([[1.0, 1, 1, 1], [5, 5, 9, 9], [1, 1, 1, 1], [15, 5, 19, 9]])
    dets, kept = mmcv.ops.soft_nms(boxes, torch.tensor([0.9, 0.7, 0.8, 0.6]), method='gaussian')
    # The third box's score becomes NaN (its IoU with the first is 0 / 0): not greater
    # than the second's, but then again nothing is greater than it in its turn.
    assert kept.tolist() == [0, 1, 2, 3]
    assert dets[:, 4].isnan().tolist() == [False, False, True, False]


def test_nms_match_is_the_plain_loop():
    for seed, kind in itertools.product(range(4), ('real', 'whole')):
        boxes, scores = random_boxes(40, kind, seed)
        groups = mmcv.ops.nms_match(torch.cat([boxes, scores[:, None]], 1), 0.5)
        left = scores.sort(descending=True).indices.tolist()
        for group in groups:
            best, *rest = left
            hit = [plain_iou(boxes[best].numpy(), boxes[i].numpy(), 0) >= 0.5 for i in rest]
            assert group.tolist() == [best, *itertools.compress(rest, hit)]
            left = [i for i, h in zip(rest, hit, strict=True) if not h]
        assert left == []
        assert len(groups) < 40


def test_boxes_none_at_all():
    boxes, scores = torch.empty(0, 4), torch.empty(0)
    for operator in (mmcv.ops.nms, mmcv.ops.soft_nms):
        dets, kept = operator(boxes, scores, 0.5)
        assert dets.shape == (0, 5)
        assert kept.shape == (0,)
        assert kept.dtype == torch.int64
    labels = torch.empty(0, dtype=torch.long)
    # batched_nms cannot take the maximum of nothing unless it is class-agnostic.
    dets, kept = mmcv.ops.batched_nms(
        boxes, scores, labels, dict(type='nms', iou_threshold=0.5), True
    )
    assert dets.shape == (0, 5)
    assert mmcv.ops.nms_match(torch.empty(0, 5), 0.5) == []


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_boxes_of_other_types(dtype):
    boxes, scores = random_boxes(40)
    narrow = scores.to(dtype)
    # Under autocast boxes are float32 and scores are not.
    with torch.autocast('cpu', torch.bfloat16):
        kept = mmcv.ops.nms(boxes, narrow, 0.5)[1]
    assert kept.tolist() == plain_nms(boxes, narrow, 0.5, 0)
    rounded = boxes.to(dtype).float()
    kept = mmcv.ops.nms(boxes.to(dtype), narrow, 0.5)[1]
    assert kept.tolist() == plain_nms(rounded, narrow, 0.5, 0)
    dets, kept = mmcv.ops.soft_nms(boxes.to(dtype), narrow)
    indices, decayed = plain_soft_nms(rounded, narrow.float(), 0.3, 0.5, 1e-3, 'linear', 0)
    assert kept.tolist() == indices
    assert dets.dtype == dtype
    torch.testing.assert_close(dets[:, 4].float(), decayed, rtol=1e-2, atol=1e-3)


def test_boxes_that_are_not_contiguous():
    boxes, scores = random_boxes(40)
    table = torch.cat([boxes, scores[:, None]], 1)
    for operator in (mmcv.ops.nms, mmcv.ops.soft_nms):
        for ours, theirs in zip(
            operator(table[:, :4], table[:, 4], 0.5), operator(boxes, scores, 0.5), strict=True
        ):
            assert torch.equal(ours, theirs)


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


def test_multiclass_nms_of_mmdet():
    layers = pytest.importorskip('mmdet.models.layers')
    boxes, _ = random_boxes(20)
    scores = torch.rand(20, 4)  # three classes and the background
    dets, labels = layers.multiclass_nms(
        boxes, scores, 0.3, dict(type='nms', iou_threshold=0.5), max_num=5
    )
    assert dets.shape == (5, 5)
    expected = [
        (scores[i, c].item(), c)
        for c in range(3)
        for i in plain_nms(boxes, torch.where(scores[:, c] > 0.3, scores[:, c], -1), 0.5, 0)
        if scores[i, c] > 0.3
    ]
    best = sorted(expected, reverse=True)[:5]
    assert dets[:, 4].tolist() == [score for score, _ in best]
    assert labels.tolist() == [label for _, label in best]


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
def test_focal_losses_in_low_precision(dtype):
    logits = (torch.randn(5, 4) * 2).to(dtype)
    target = torch.tensor([0, 1, 2, 3, 3])
    for loss in (mmcv.ops.sigmoid_focal_loss, mmcv.ops.softmax_focal_loss):
        narrow, wide = logits.clone().requires_grad_(), logits.float().requires_grad_()
        value = loss(narrow, target, 2.0, 0.25, None, 'sum')
        expected = loss(wide, target, 2.0, 0.25, None, 'sum')
        value.backward()
        expected.backward()
        assert value.dtype == narrow.grad.dtype == dtype
        torch.testing.assert_close(value.float(), expected, rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(narrow.grad.float(), wide.grad, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize('weighted', [False, True])
def test_softmax_focal_loss_is_the_formula(weighted):
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 2, 1, 1, -1])
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64) if weighted else None
    loss = mmcv.ops.softmax_focal_loss(logits, target, 2.0, 0.25, weight, 'none')
    expected = [
        plain_focal(prob[label].item(), True, 2.0, 0.25) * (weight[label] if weighted else 1)
        for prob, label in zip(logits.softmax(1), target[:4], strict=False)
    ]
    torch.testing.assert_close(loss, torch.tensor([*expected, 0.0], dtype=torch.float64))
    assert torch.autograd.gradcheck(
        lambda x: mmcv.ops.softmax_focal_loss(x, target, 2.0, 0.25, weight, 'sum'), logits
    )


def test_focal_losses_refuse_labels_out_of_range():
    logits, weight = torch.zeros(2, 3), torch.ones(3)
    for loss, label, weights in (
        (mmcv.ops.sigmoid_focal_loss, 4, None),
        (mmcv.ops.sigmoid_focal_loss, 3, weight),
        (mmcv.ops.softmax_focal_loss, 3, None),
    ):
        with pytest.raises(ValueError, match=f'label {label} with 3 classes'):
            loss(logits, torch.tensor([0, label]), 2.0, 0.25, weights, 'sum')
    empty = mmcv.ops.sigmoid_focal_loss(
        logits[:0], torch.empty(0, dtype=torch.long), 2.0, 0.25, None, 'none'
    )
    assert empty.shape == (0, 3)
