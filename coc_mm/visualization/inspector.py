"""Clusters and predictions of a model for one picture, prepared by its test pipeline."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, DefaultScope
from torch import nn

from coc_mm.datasets import inner_datasets
from coc_mm.visualization.geometry import locate
from coc_mm.visualization.maps import ClusterMaps, find_backbone, record_clusters
from coc_mm.visualization.sheets import fit, picture_of

_MIN_SCORE = 0.3


@dataclass(frozen=True)
class Inspection:
    """A picture, its clusters, and the model's prediction.

    Attributes:
        picture: (height, width, 3) uint8, RGB: the part of the image that the network saw, at the
            image's own resolution up to a limit.
        box: That part in the image: top, left, bottom, right, in its pixels.
        extent: The network's input over the picture, for ``draw_clusters``.
        maps: By (stage, block), on the CPU.
        findings: Names with their probability (classification, all classes), score (detection) or
            share of the image (segmentation), highest first.
        sample: The prediction in the library's own form.
    """

    picture: np.ndarray
    box: tuple[int, int, int, int]
    extent: tuple[float, float, float, float]
    maps: dict[tuple[int, int], ClusterMaps]
    findings: list[tuple[str, float]]
    labels: list[int]
    sample: Any


class ClusterInspector:
    """Inspect images with a model, prepared by its own test pipeline; threads may share one.

    Args:
        model: Of mmpretrain, mmdet or mmseg with a ContextCluster inside, in evaluation mode.
        config: Of the model, with ``default_scope`` and a test pipeline.
        longest: Greatest height or width of pictures; larger ones are shrunk.
        size: Longer side of the network's input, in pixels: images are scaled to it as a whole;
            width and height: squashed. None: what the pipeline does.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Config,
        longest: int = 1600,
        size: int | tuple[int, int] | None = None,
    ) -> None:
        self.model: Any = model  # of a library, with test_step and the like
        self.backbone = find_backbone(model)
        self.longest = longest
        dataset = inner_datasets((config.get('test_dataloader') or {}).get('dataset') or {})[0]
        steps = dataset.get('pipeline') or config.get('test_pipeline')
        if not steps:
            raise ValueError('the config sets neither a test_dataloader nor a test_pipeline')
        self._loader = steps[0] if steps[0]['type'].endswith('LoadImageFromFile') else {}
        # Images come as arrays here, and nothing is known about them.
        steps = [step for step in steps if not step['type'].split('.')[-1].startswith('Load')]
        if size is not None:
            scale = (size, size) if isinstance(size, int) else size
            resize = dict(type='Resize', scale=scale, keep_ratio=isinstance(size, int))
            steps = [resize, *(s for s in steps if s['type'].split('.')[-1].startswith('Pack'))]
        with DefaultScope.overwrite_default_scope(config.default_scope):
            self._steps = [TRANSFORMS.build(step) for step in steps]
            #: The config's loader, for files; None where it has another.
            self.load = TRANSFORMS.build(self._loader) if self._loader else None

    @property
    def depths(self) -> list[int]:
        """Number of blocks of each stage."""
        return [len(blocks) for blocks in self.backbone.blocks]

    @property
    def heads(self) -> list[int]:
        """Number of heads of each stage."""
        return [blocks[0].mixer.num_heads for blocks in self.backbone.blocks]

    @property
    def classes(self) -> Sequence[str] | None:
        """Names of the classes, if the model knows any."""
        metas = (getattr(self.model, name, None) for name in ('dataset_meta', '_dataset_meta'))
        return next((meta.get('classes') for meta in metas if meta), None)

    def __call__(
        self,
        image: np.ndarray,
        stage: int | None = None,
        block: int | None = None,
        head: int | None = None,
        loaded: np.ndarray | None = None,
    ) -> Inspection:
        """Run the model on an image (height, width, 3) uint8, RGB.

        ``stage``, ``block`` and ``head`` are those of ``record_clusters``. ``loaded`` is what
        :attr:`load` gave, where the image is a picture of that: of other bands or values.
        """
        data = self._prepare(image, loaded)
        batch = dict(inputs=[data['inputs']], data_samples=[data['data_samples']])
        with torch.no_grad(), record_clusters(self.model, stage, block, head) as record:
            (sample,) = self.model.test_step(batch)
            if record.passes != 1:  # sliding windows: show the image as a whole
                self.backbone.forward(self.model.data_preprocessor(batch)['inputs'])
        maps = {key: value.to('cpu') for key, value in record.maps.items()}
        picture, box, extent = self._place(image, data['inputs'], next(iter(maps.values())))
        labels, values = self._findings(sample)
        classes = self.classes or []
        names = [str(classes[x]) if x < len(classes) else str(x) for x in labels]
        findings = list(zip(names, values, strict=True))
        return Inspection(picture, box, extent, maps, findings, labels, sample)

    def _prepare(self, image: np.ndarray, loaded: np.ndarray | None = None) -> dict:
        """Send an RGB image, or what was loaded, through the pipeline."""
        pixels = np.ascontiguousarray(image[..., ::-1]) if loaded is None else loaded
        size, flag = image.shape[:2], self._loader.get('color_type', 'color')
        if flag != 'color' and loaded is None:
            coded = cv2.imencode('.png', pixels)[1].tobytes()
            pixels = mmcv.imfrombytes(coded, flag=flag)
        if self._loader.get('to_float32'):
            pixels = pixels.astype(np.float32)
        data = dict(img=pixels, img_shape=size, ori_shape=size, img_path='', img_id=0)
        data.update(height=size[0], width=size[1])
        for step in self._steps:
            data = step(data)
        return data

    def _place(self, image: np.ndarray, inputs: torch.Tensor, maps: ClusterMaps) -> tuple:
        """Cut out what the network saw, and tell where its input lies over that."""
        size, made = image.shape[:2], (inputs.shape[1], inputs.shape[2])
        placement = locate(lambda x: self._prepare(x)['inputs'].permute(1, 2, 0).numpy(), size)
        if placement is None:  # show what the pipeline made of the image, then
            extent = (0.0, 0.0, maps.input_size[0] / made[0], maps.input_size[1] / made[1])
            return fit(picture_of(inputs), longest=self.longest), (0, 0, *size), extent
        box = placement.seen(size, made)
        extent = placement.extent(size, box, maps.input_size)
        picture = np.ascontiguousarray(image[box[0] : box[2], box[1] : box[3]])
        return fit(picture, longest=self.longest), box, extent

    @staticmethod
    def _findings(sample) -> tuple[list[int], list[float]]:
        """Labels with their values, highest first."""
        if 'pred_score' in sample:
            values = sample.pred_score.detach().cpu()
            labels = torch.arange(len(values))
        elif 'pred_instances' in sample:
            found = sample.pred_instances
            found = found[found.scores >= _MIN_SCORE].cpu()
            labels, values = found.labels, found.scores
        else:
            labels, counts = sample.pred_sem_seg.data.cpu().unique(return_counts=True)
            values = counts / counts.sum()
        order = values.argsort(descending=True)
        return labels[order].tolist(), values[order].tolist()

    def caption(self, inspection: Inspection) -> str:
        """The class with its probability, the objects or the largest areas, in a few words."""
        found, sample = inspection.findings, inspection.sample
        if 'pred_score' in sample:
            return f'{found[0][0]} ({100 * found[0][1]:.1f} %)'
        if 'pred_instances' in sample:
            named = ', '.join(f'{name} ({score:.2f})' for name, score in found[:3])
            many = f'{len(found)} objects' if len(found) != 1 else '1 object'
            return f'{many}: {named}' if found else f'no object over {_MIN_SCORE}'
        return ', '.join(f'{name} ({100 * share:.0f} %)' for name, share in found[:3])
