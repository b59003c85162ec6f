"""Prediction, a table and a picture for each library, by its own inference functions."""

import colorsys
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from rich.table import Table
from torch import nn

from coc_mm.errors import UserError

__all__ = ['TASKS', 'Classification', 'Detection', 'Segmentation']

# Short side of a picture on which the text of a classification can be read.
_LEGIBLE = 256


def _test_dataset(config: Config) -> dict:
    """Find the dataset of a config behind wrappers such as RepeatDataset."""
    dataset = (config.get('test_dataloader') or {}).get('dataset') or {}
    while isinstance(dataset.get('dataset'), dict):
        dataset = dataset['dataset']
    return dataset


def _dataset_meta(meta: dict, config: Config) -> dict:
    """Gather class names and colors: checkpoint, then config, then dataset class."""
    dataset = _test_dataset(config)
    with DATASETS.switch_scope_and_registry(config.default_scope) as registry:
        kind = registry.get(dataset['type']) if 'type' in dataset else None
    found: dict[str, Any] = {}
    old = {key.lower(): meta[key] for key in ('CLASSES', 'PALETTE') if key in meta}
    sources = (meta.get('dataset_meta'), old, dataset.get('metainfo'))
    for source in (*sources, getattr(kind, 'METAINFO', None)):
        for key, value in (source or {}).items():
            if value is not None:
                found.setdefault(key.lower(), value)
    return found


def _names(classes: Sequence[str] | None, count: int) -> list[str]:
    """Class names, or numbers where there are none or not as many as outputs."""
    if classes is None or len(classes) < count:
        return [str(index) for index in range(count)]
    return [str(name) for name in classes]


def _colors(count: int) -> list[tuple[int, int, int]]:
    """Colors around the wheel, as far apart as their number allows."""
    wheel = [colorsys.hsv_to_rgb(i / max(1, count), 0.8, 0.95) for i in range(count)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in wheel]


class _Task:
    """A model at work.

    Args:
        model (nn.Module): From :func:`coc_mm.apis.infer.load_model`.
        topk (int): Classes in the table of a classification. Defaults to 5.
        score_thr (float): Least score of a box, 0 to 1. Defaults to 0.3.
    """

    def __init__(self, model: nn.Module, topk: int = 5, score_thr: float = 0.3) -> None:
        self.model: Any = model  # a library's, with dataset_meta and the like
        self.topk, self.score_thr = topk, score_thr


class Classification(_Task):
    """Prediction by ``mmpretrain.ImageClassificationInferencer``."""

    def __init__(self, model: nn.Module, topk: int = 5, score_thr: float = 0.3) -> None:
        from mmpretrain import ImageClassificationInferencer

        super().__init__(model, topk, score_thr)
        self.inferencer = ImageClassificationInferencer(model)

    @staticmethod
    def build(config: Config) -> nn.Module:
        """Build the model, without weights.

        Args:
            config (Config): May be changed.

        Returns:
            nn.Module: On the CPU.
        """
        from mmpretrain import get_model

        return get_model(config, pretrained=False)

    @staticmethod
    def set_classes(model: Any, meta: dict, config: Config) -> None:
        """Give the model its class names.

        Args:
            model (nn.Module): From :meth:`build`.
            meta (dict): Of the checkpoint.
            config (Config): The config.
        """
        model._dataset_meta = _dataset_meta(meta, config)

    def predict(self, path: str) -> Any:
        """Classify an image file.

        Args:
            path (str): The file.

        Returns:
            DataSample: With ``pred_score`` (classes,) and ``pred_label`` (1,).
        """
        batch = next(iter(self.inferencer.preprocess([path], batch_size=1)))
        return self.inferencer.forward(batch)[0]

    def report(self, sample: Any, title: str) -> Table:
        """Tabulate the likeliest classes.

        Args:
            sample (DataSample): From :meth:`predict`.
            title (str): Of the table.

        Returns:
            Table: For a rich console.
        """
        table = Table('class', 'probability', title=title)
        scores = sample.pred_score.detach().cpu()
        names = _names(self.inferencer.classes, len(scores))
        for score, label in zip(*scores.topk(min(self.topk, len(scores))), strict=True):
            table.add_row(names[label], f'{float(score):.4f}')
        return table

    def draw(self, image: np.ndarray, sample: Any, out_file: str) -> None:
        """Write the image with its class.

        Args:
            image (np.ndarray): (H, W, 3), RGB, uint8.
            sample (DataSample): From :meth:`predict`.
            out_file (str): The picture.
        """
        from mmpretrain.visualization import UniversalVisualizer

        visualizer = UniversalVisualizer()
        resize = _LEGIBLE if min(image.shape[:2]) < _LEGIBLE else None
        names = _names(self.inferencer.classes, len(sample.pred_score))
        visualizer.visualize_cls(
            image, sample, classes=names, draw_gt=False, resize=resize, out_file=out_file
        )


class Detection(_Task):
    """Prediction by ``mmdet.apis.inference_detector``."""

    @staticmethod
    def build(config: Config) -> nn.Module:
        """Build the model, without weights.

        Args:
            config (Config): May be changed.

        Returns:
            nn.Module: On the CPU.
        """
        from mmdet.apis import init_detector

        return init_detector(config, None, device='cpu')

    @staticmethod
    def set_classes(model: Any, meta: dict, config: Config) -> None:
        """Give the model its class names and colors.

        Args:
            model (nn.Module): From :meth:`build`.
            meta (dict): Of the checkpoint.
            config (Config): The config.
        """
        found = _dataset_meta(meta, config)
        found.setdefault('palette', model.dataset_meta.get('palette', 'random'))
        found.setdefault('classes', None)
        model.dataset_meta = found

    def predict(self, path: str) -> Any:
        """Detect objects in an image file.

        Args:
            path (str): The file.

        Returns:
            DetDataSample: With ``pred_instances``, boxes in pixels of the image.
        """
        from mmdet.apis import inference_detector

        return inference_detector(self.model, path)

    def report(self, sample: Any, title: str) -> Table:
        """Tabulate the boxes over the threshold, best first.

        Args:
            sample (DetDataSample): From :meth:`predict`.
            title (str): Of the table.

        Returns:
            Table: For a rich console.
        """
        found = sample.pred_instances.cpu()
        order = [i for i in found.scores.argsort(descending=True).tolist()]
        kept = [i for i in order if found.scores[i] >= self.score_thr]
        masks = found.get('masks')
        columns = ['class', 'score', 'x', 'y', 'width', 'height']
        table = Table(*columns, *([] if masks is None else ['mask pixels']), title=title)
        labels = found.labels.tolist()
        names = _names(self.model.dataset_meta.get('classes'), max(labels, default=-1) + 1)
        for i in kept:
            x, y, right, bottom = found.bboxes[i].tolist()
            row = [names[labels[i]], f'{float(found.scores[i]):.3f}']
            row += [f'{value:.1f}' for value in (x, y, right - x, bottom - y)]
            table.add_row(*row, *([] if masks is None else [str(int(masks[i].sum()))]))
        best = f'; the best has {float(found.scores[order[0]]):.3f}' if order else ''
        if not kept:
            table.caption = f'no object with a score of {self.score_thr} or more{best}'
        return table

    def draw(self, image: np.ndarray, sample: Any, out_file: str) -> None:
        """Write the image with its boxes and masks.

        Args:
            image (np.ndarray): (H, W, 3), RGB, uint8.
            sample (DetDataSample): From :meth:`predict`.
            out_file (str): The picture.
        """
        from mmdet.visualization import DetLocalVisualizer

        visualizer = DetLocalVisualizer()
        visualizer.dataset_meta = self.model.dataset_meta
        visualizer.add_datasample(
            'prediction',
            image,
            data_sample=sample,
            draw_gt=False,
            pred_score_thr=self.score_thr,
            out_file=out_file,
        )


class Segmentation(_Task):
    """Prediction by ``mmseg.apis.inference_model``."""

    @staticmethod
    def build(config: Config) -> nn.Module:
        """Build the model, without weights.

        Args:
            config (Config): May be changed.

        Returns:
            nn.Module: On the CPU.

        Raises:
            UserError: The config says nowhere how an image is prepared.
        """
        from mmseg.apis import init_model

        if config.get('test_pipeline') is None:
            pipeline = _test_dataset(config).get('pipeline')
            if pipeline is None:
                raise UserError('the config sets neither test_pipeline nor a test_dataloader.')
            config.test_pipeline = deepcopy(pipeline)
        return init_model(config, None, device='cpu')

    @staticmethod
    def set_classes(model: Any, meta: dict, config: Config) -> None:
        """Give the model its class names and colors.

        Args:
            model (nn.Module): From :meth:`build`.
            meta (dict): Of the checkpoint.
            config (Config): The config.
        """
        found = _dataset_meta(meta, config)
        count = model.decode_head.num_classes
        found['classes'] = _names(found.get('classes'), count)
        if len(found.get('palette') or ()) != len(found['classes']):
            found['palette'] = _colors(len(found['classes']))
        model.dataset_meta = found

    def predict(self, path: str) -> Any:
        """Segment an image file.

        Args:
            path (str): The file.

        Returns:
            SegDataSample: With ``pred_sem_seg.data`` (1, H, W).
        """
        from mmseg.apis import inference_model

        return inference_model(self.model, path)

    def report(self, sample: Any, title: str) -> Table:
        """Tabulate the area of each class, largest first.

        Args:
            sample (SegDataSample): From :meth:`predict`.
            title (str): Of the table.

        Returns:
            Table: For a rich console.
        """
        labels, counts = sample.pred_sem_seg.data.cpu().unique(return_counts=True)
        names = _names(self.model.dataset_meta['classes'], int(labels.max()) + 1)
        table = Table('class', 'pixels', 'share of the image', title=title)
        for index in torch.argsort(counts, descending=True).tolist():
            share = 100 * int(counts[index]) / int(counts.sum())
            table.add_row(names[int(labels[index])], str(int(counts[index])), f'{share:.1f} %')
        return table

    def draw(self, image: np.ndarray, sample: Any, out_file: str) -> None:
        """Write the image with its classes painted over.

        Args:
            image (np.ndarray): (H, W, 3), RGB, uint8.
            sample (SegDataSample): From :meth:`predict`.
            out_file (str): The picture.
        """
        from mmseg.visualization import SegLocalVisualizer

        visualizer = SegLocalVisualizer(alpha=0.5)
        visualizer.dataset_meta = self.model.dataset_meta
        # mmseg prints names on regions; on images smaller than a word they hide all.
        visualizer.add_datasample(
            'prediction',
            image,
            data_sample=sample,
            draw_gt=False,
            with_labels=min(image.shape[:2]) >= _LEGIBLE,
            out_file=out_file,
        )


#: The task of each default scope.
TASKS: dict[str, type[Classification] | type[Detection] | type[Segmentation]] = {
    'mmpretrain': Classification,
    'mmdet': Detection,
    'mmseg': Segmentation,
}
