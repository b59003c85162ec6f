"""Predictions as plain data: records, and files of them."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.table import Table
from torch import nn

from coc_mm.apis.infer import TASKS
from coc_mm.apis.model_zoo import get_model
from coc_mm.apis.sources import Picture, find_sources, read_sources
from coc_mm.errors import UserError
from coc_mm.utils.atomic_io import atomic_write


@dataclass
class Prediction:
    """What a model says of one image.

    Args:
        image: Name of the image.
        size: Its height and width in pixels.
        indices: Of the classes: the likeliest of a classifier; one for each object of a detector,
            best first; those in the picture for a (panoptic) segmentor, largest first.
        labels: Names of these classes.
        scores: Probabilities; of a segmentor the shares of the pixels.
        boxes: (N, 4), left, top, right, bottom in pixels, of a detector.
        masks: (N, H, W), bool, of a detector that has them.
        segments: (H, W), index of the class of every pixel, of a segmentor.
    """

    image: str
    size: tuple[int, int]
    indices: list[int]
    labels: list[str]
    scores: list[float]
    boxes: np.ndarray | None = None
    masks: np.ndarray | None = None
    segments: np.ndarray | None = None

    def rows(self) -> list[dict[str, Any]]:
        """A dict for each class or object; boxes as x, y, width, height, masks as COCO's RLE."""
        rows: list[dict[str, Any]] = []
        for i, (index, label, score) in enumerate(
            zip(self.indices, self.labels, self.scores, strict=True)
        ):
            rows.append(dict(index=index, label=label, score=round(score, 6)))
            if self.boxes is not None:
                x, y, right, bottom = (round(float(v), 3) for v in self.boxes[i])
                rows[i]['bbox'] = [x, y, round(right - x, 3), round(bottom - y, 3)]
        if self.masks is not None:
            for row, rle in zip(rows, encode_masks(self.masks), strict=True):
                row['segmentation'] = rle
        return rows

    def to_dict(self) -> dict[str, Any]:
        """All but the map of segments, for JSON."""
        height, width = self.size
        return dict(image=self.image, height=height, width=width, predictions=self.rows())

    def to_table(self, title: str = '') -> Table:
        """As a table for the console."""
        rows = [[label] for label in self.labels]
        if self.segments is not None:
            columns = ['class', 'pixels', 'share of the image']
            for row, share in zip(rows, self.scores, strict=True):
                row += [str(round(share * self.segments.size)), f'{100 * share:.1f} %']
        elif self.boxes is None:
            columns = ['class', 'probability']
            rows = [[*row, f'{score:.4f}'] for row, score in zip(rows, self.scores, strict=True)]
        else:
            columns = ['class', 'score', 'x', 'y', 'width', 'height']
            for row, found in zip(rows, self.rows(), strict=True):
                row += [f'{found["score"]:.3f}', *(f'{value:.1f}' for value in found['bbox'])]
        if self.masks is not None:
            columns.append('mask pixels')
            rows = [[*row, str(mask.sum())] for row, mask in zip(rows, self.masks, strict=True)]
        table = Table(*columns, title=title)
        for row in rows:
            table.add_row(*row)
        return table

    def to_supervision(self) -> Any:
        """As ``supervision.Detections`` or, of a classifier, ``supervision.Classifications``."""
        import supervision as sv

        indices, scores = np.array(self.indices, int), np.array(self.scores, np.float32)
        if self.segments is not None:
            masks = self.segments == indices[:, None, None]
            boxes, data = sv.mask_to_xyxy(masks), dict(class_name=np.array(self.labels))
            return sv.Detections(xyxy=boxes, mask=masks, class_id=indices, data=data)
        if self.boxes is None:
            return sv.Classifications(class_id=indices, confidence=scores)
        return sv.Detections(
            xyxy=self.boxes.reshape(-1, 4),
            mask=self.masks,
            confidence=scores,
            class_id=indices,
            data=dict(class_name=np.array(self.labels)),
        )


@dataclass
class Found:
    """A picture, its prediction, the library's own sample, and the picture as (H, W, 3), RGB."""

    picture: Picture
    prediction: Prediction
    sample: Any
    shown: np.ndarray


def encode_masks(masks: np.ndarray) -> list[dict[str, Any]]:
    """Encode masks, (N, H, W), as COCO does."""
    from pycocotools import mask as mask_util

    found = [mask_util.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    return [dict(size=list(x['size']), counts=x['counts'].decode()) for x in found]


def predict(
    model: nn.Module | str,
    images: Any,
    batch_size: int = 1,
    topk: int = 5,
    score_thr: float = 0.3,
) -> list[Prediction]:
    """Predict on images with a model of any of the three libraries.

    Args:
        model (nn.Module | str): From :func:`~coc_mm.apis.get_model` or
            :func:`~coc_mm.apis.infer.load_model`, or a name, with its weights.
        images: A file, folder, glob, URL or video, an array (H, W, 3) BGR, or a list of these.
        batch_size (int): Images at once; only those that become equally large are put together.
        topk (int): Classes of a classifier.
        score_thr (float): Least score of a detector's objects.

    Raises:
        UserError: An image cannot be read, there is none, or the model has no weights.
    """
    net: Any = get_model(model, pretrained=True) if isinstance(model, str) else model
    config = getattr(net, 'cfg', None) or net._config
    task = TASKS[config.default_scope](net, topk=topk, score_thr=score_thr)
    listed = images if isinstance(images, (list, tuple)) else [images]
    pictures: list[Picture] = []
    for i, image in enumerate(listed):
        if isinstance(image, np.ndarray):
            pictures.append(Picture(str(i), image))
        else:
            pictures += read_sources(find_sources([os.fspath(image)]))
    return [found.prediction for found in predict_each(task, pictures, batch_size)]


def predict_each(
    task: Any,
    pictures: Iterable[Picture],
    batch_size: int = 1,
    on_error: Callable[[Picture, Exception], None] | None = None,
) -> Iterator[Found]:
    """Predict in batches; yield what was found for each picture.

    ``on_error`` is called with a picture that cannot be used and the reason, instead of raising.
    """
    batch: list[tuple[Picture, dict, np.ndarray]] = []
    for picture in pictures:
        try:
            batch.append((picture, *task.read(picture.content)))
        except Exception as error:
            if on_error is None:
                raise
            on_error(picture, error)
        if len(batch) == batch_size:
            yield from _predict_batch(task, batch, on_error)
            batch = []
    if batch:
        yield from _predict_batch(task, batch, on_error)


def _predict_batch(task, batch, on_error) -> Iterator[Found]:
    try:
        samples = task.predict_batch([data for _, data, _ in batch])
    except Exception as error:
        if on_error is None:
            raise
        if len(batch) == 1:
            on_error(batch[0][0], error)
            return
        for one in batch:
            yield from _predict_batch(task, [one], on_error)
        return
    for (picture, _, shown), sample in zip(batch, samples, strict=True):
        yield Found(picture, _record(task, picture.name, shown.shape[:2], sample), sample, shown)


def _record(task: Any, name: str, size: tuple[int, int], sample: Any) -> Prediction:
    if 'pred_score' in sample:
        scores = sample.pred_score.detach().cpu()
        values, indices = scores.topk(min(task.topk, len(scores)))
        return Prediction(name, size, *_named(task, indices), values.tolist())
    if 'pred_instances' in sample:
        found = sample.pred_instances.cpu()
        found = found[found.scores >= task.score_thr]
        found = found[found.scores.argsort(descending=True)]
        masks = found.masks.numpy().astype(bool) if 'masks' in found else None
        named = _named(task, found.labels)
        boxes = found.bboxes.detach().numpy()
        return Prediction(name, size, *named, found.scores.tolist(), boxes, masks)
    if 'pred_panoptic_seg' in sample:  # mmdet counts a class's objects in thousands
        segments = sample.pred_panoptic_seg.sem_seg[0].cpu().numpy() % 1000
    else:
        segments = sample.pred_sem_seg.data[0].cpu().numpy()
    indices, counts = np.unique(segments, return_counts=True)
    if 'pred_panoptic_seg' in sample:  # less what is of no class
        kept = indices < len(task.model.dataset_meta['classes'])
        indices, counts = indices[kept], counts[kept]
    order = np.argsort(-counts, kind='stable')
    shares = (counts[order] / segments.size).tolist()
    return Prediction(name, size, *_named(task, indices[order]), shares, segments=segments)


def _named(task, indices) -> tuple[list[int], list[str]]:
    indices = indices.tolist()
    names = task.names(max(indices, default=-1) + 1)
    return indices, [names[i] for i in indices]


def coco_results(found: Sequence[Prediction]) -> dict[str, Any]:
    """Put detections into a COCO file: images, categories, annotations with scores.

    The annotations are what ``COCO.loadRes`` takes.
    """
    labels = {i: label for one in found for i, label in zip(one.indices, one.labels, strict=True)}
    images: list[dict] = []
    annotations: list[dict] = []
    for number, one in enumerate(found, 1):
        height, width = one.size
        images.append(dict(id=number, file_name=one.image, height=height, width=width))
        for i, row in enumerate(one.rows()):
            width, height = row['bbox'][2:]
            area = width * height if one.masks is None else int(one.masks[i].sum())
            more = dict(id=len(annotations) + 1, image_id=number, area=area, iscrowd=0)
            category = dict(category_id=row.pop('index') + 1)
            row.pop('label')
            annotations.append(more | category | row)
    categories = [dict(id=i + 1, name=name) for i, name in sorted(labels.items())]
    return dict(images=images, categories=categories, annotations=annotations)


def write_predictions(found: Sequence[Prediction], folder: Path, formats: Sequence[str]) -> list:
    """Write predictions into a folder; return the paths.

    ``predictions.json`` has all but maps, ``predictions.csv`` a row for each class or object,
    ``predictions.coco.json`` detections, ``masks/NAME.png`` the indices of a segmentor's classes.
    """
    written = []
    for kind in formats:
        for one in found if kind == 'png' else ():
            if one.segments is None:
                raise UserError(
                    'index masks (png) are what a segmentor predicts; save json or coco.'
                )
            written.append(folder / 'masks' / f'{one.image}.png')
            written[-1].parent.mkdir(parents=True, exist_ok=True)
            depth = np.uint8 if one.segments.max() < 256 else np.uint16
            cv2.imwrite(str(written[-1]), one.segments.astype(depth))
        if kind == 'png':
            continue
        name = 'predictions.coco.json' if kind == 'coco' else f'predictions.{kind}'
        if kind == 'coco':
            text = json.dumps(coco_results(found), ensure_ascii=False)
        else:
            text = records_to_text([one.to_dict() for one in found], kind)
        with atomic_write(folder / name) as file:
            file.write_bytes(text.encode())
        written.append(folder / name)
    return written


def records_to_text(records: Sequence[dict[str, Any]], kind: str) -> str:
    """Write what :meth:`Prediction.to_dict` gives as ``'json'`` or ``'csv'``."""
    if kind == 'json':
        return json.dumps(records, ensure_ascii=False)
    rows = []
    for record in records:
        for row in record['predictions']:
            flat = dict(image=record['image'], index=row['index'], label=row['label'])
            flat['score'] = row['score']
            flat.update(zip(('x', 'y', 'width', 'height'), row.get('bbox', ()), strict=False))
            if 'segmentation' in row:
                from pycocotools import mask as mask_util

                flat['mask_pixels'] = int(mask_util.area(row['segmentation']))
            rows.append(flat)
    text = io.StringIO(newline='')
    writer = csv.DictWriter(text, list(rows[0]) if rows else ['image', 'index', 'label', 'score'])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
