"""Non-maximum suppression: ``nms``, ``softnms`` and ``nms_match``.

They follow ``mmcv/ops/csrc/pytorch/cpu/nms.cpp`` in the order of operations, in
what a tie does and in the order of the results. Boxes are (x1, y1, x2, y2) rows;
widths and heights are ``x2 - x1 + offset``, IoUs of empty boxes (0 / 0) suppress
nothing.
"""

import numpy as np
import torch
import torchvision

from coc_mm.compat.mmcv_operators.precision import c_float, working_dtype


def nms(
    boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float, offset: int
) -> torch.Tensor:
    """Greedy suppression of the boxes that overlap a better one.

    Args:
        boxes (Tensor): Shape (N, 4).
        scores (Tensor): Shape (N,).
        iou_threshold (float): A box goes when its IoU with a kept box is greater.
        offset (int): 0, or 1 for inclusive pixel coordinates.

    Returns:
        Tensor: Shape (K,), int64, on the boxes' device: the kept boxes' indices,
        best score first, equal scores in the order of ``torch.sort``.
    """
    if boxes.numel() == 0:
        return boxes.new_empty(0, dtype=torch.long)
    # torchvision's own sort is stable, mmcv's is not: sort as mmcv does, and let ranks
    # stand for the scores, so that equal scores come out in the same order.
    order = scores.sort(0, descending=True).indices
    ranks = torch.arange(len(order), 0, -1, device=boxes.device)
    # torchvision knows no offset, and adding one in float32 would round the
    # coordinates; in float64 the sum is exact and so is a tie with the threshold.
    dtype = torch.float64 if offset else working_dtype(boxes)
    boxes = boxes[order].to(dtype)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    threshold = c_float(iou_threshold) if dtype == torch.float32 else float(iou_threshold)
    return order[torchvision.ops.nms(boxes, ranks.to(dtype), threshold)]


def softnms(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    dets: torch.Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> torch.Tensor:
    """Lower the scores of boxes that overlap a better one (arXiv 1704.04503).

    The best remaining box is taken, the others are decayed by their IoU with it,
    those that fall below ``min_score`` are dropped. Two details decide the order
    among equal scores, and are mmcv's: the best box changes places with the first
    remaining one, and a dropped box's place is taken by the last one.

    Args:
        boxes (Tensor): Shape (N, 4).
        scores (Tensor): Shape (N,).
        dets (Tensor): Output on the CPU, shape (N, 5): the first K rows become the
            boxes that stay, with their decayed scores, in the order of selection.
        iou_threshold (float): The IoU from which naive and linear act.
        sigma (float): The width of the gaussian.
        min_score (float): A box whose decayed score is lower goes. The best box
            stays whatever its score.
        method (int): 0 naive (score 0), 1 linear (times 1 - IoU), 2 gaussian (times
            exp(-IoU^2 / sigma)).
        offset (int): 0, or 1 for inclusive pixel coordinates.

    Returns:
        Tensor: Shape (K,), int64, on the CPU: the boxes' indices, in that order.
    """
    if boxes.numel() == 0:
        return boxes.new_empty(0, dtype=torch.long)
    dtype = working_dtype(boxes)
    columns = boxes.t().to('cpu', dtype).numpy()
    score = scores[None].to('cpu', dtype).numpy()
    # Rows: x1, y1, x2, y2, score, area; one column a box; a copy, so free to change.
    columns = np.concatenate([columns, score, _areas(columns, offset)[None]])
    number = columns.dtype.type
    iou_threshold, sigma, min_score = map(number, (iou_threshold, sigma, min_score))
    order = np.arange(columns.shape[1])

    chosen = 0
    while chosen < len(order):
        left = columns[4, chosen:]
        # The gaussian of 0 / 0, two boxes without area, is NaN. mmcv compares with
        # `<`, so NaN is never greater, nor is anything greater than NaN.
        best = chosen + (0 if np.isnan(left[0]) else int(np.nanargmax(left)))
        columns[:, [chosen, best]] = columns[:, [best, chosen]]
        order[[chosen, best]] = order[[best, chosen]]
        chosen += 1
        rest = columns[:, chosen:]
        iou = _ious(columns[:, chosen - 1], columns[5, chosen - 1], rest, rest[5], offset)
        if method == 0:
            rest[4, iou >= iou_threshold] *= number(0)
        elif method == 1:
            rest[4] *= np.where(iou >= iou_threshold, 1 - iou, number(1))
        else:
            # numpy's float32 exp is off by an ulp or two, the C library's is not, and
            # an ulp can change who comes first.
            rest[4] *= np.exp((-(iou * iou) / sigma).astype(np.float64)).astype(number)
        stays = _fill_gaps_from_the_end(~(rest[4] < min_score))
        columns = np.concatenate([columns[:, :chosen], rest[:, stays]], axis=1)
        order = np.concatenate([order[:chosen], order[chosen:][stays]])

    dets[: len(order)] = torch.from_numpy(columns[:5].T.copy()).to(dets)
    return torch.from_numpy(order)


def nms_match(dets: torch.Tensor, iou_threshold: float) -> list[list[int]]:
    """Group the boxes by the kept box that suppresses them.

    Args:
        dets (Tensor): Boxes and scores, shape (N, 5).
        iou_threshold (float): A box joins the first kept box with which its IoU is
            at least this.

    Returns:
        list[list[int]]: A group per kept box, best first: its index, then those of
        the boxes it suppresses, by score.
    """
    columns = dets.detach().to('cpu', working_dtype(dets)).numpy().T
    areas = _areas(columns, 0)
    iou_threshold = columns.dtype.type(iou_threshold)
    order = dets[:, 4].detach().cpu().contiguous().sort(0, descending=True).indices.numpy()
    groups = []
    while len(order):
        best, rest = order[0], order[1:]
        joins = _ious(columns[:, best], areas[best], columns[:, rest], areas[rest], 0)
        joins = joins >= iou_threshold
        groups.append([int(best), *rest[joins].tolist()])
        order = rest[~joins]
    return groups


def _areas(columns, offset):
    return (columns[2] - columns[0] + offset) * (columns[3] - columns[1] + offset)


def _ious(box, area, columns, areas, offset):
    """IoU of one box, shape (>= 4,), with those in columns, shape (>= 4, N): (N,)."""
    width = np.minimum(box[2], columns[2]) - np.maximum(box[0], columns[0]) + offset
    height = np.minimum(box[3], columns[3]) - np.maximum(box[1], columns[1]) + offset
    inter = np.maximum(width, 0) * np.maximum(height, 0)
    with np.errstate(divide='ignore', invalid='ignore'):
        return inter / (area + areas - inter)


def _fill_gaps_from_the_end(keep: np.ndarray) -> np.ndarray:
    """Positions that remain when each dropped one is replaced by the last one left.

    Args:
        keep (ndarray): Shape (N,), bool.

    Returns:
        ndarray: Shape (keep.sum(),), integer positions in their new order.
    """
    kept = np.flatnonzero(keep)
    places = np.arange(len(kept))
    # As many gaps lie among the first places as kept positions lie beyond them.
    gaps = ~keep[: len(kept)]
    places[gaps] = kept[kept >= len(kept)][::-1]
    return places
