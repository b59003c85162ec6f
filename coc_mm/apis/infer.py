"""Load a trained model of mmpretrain, mmdet or mmseg and predict on images."""

import colorsys
import itertools
import re
from collections.abc import Collection, Sequence
from copy import deepcopy
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope
from torch import nn

from coc_mm.apis.start import build_model
from coc_mm.checkpoints.load import (
    apply_record,
    check_weights,
    load_checkpoint_safely,
    state_dict_of,
    use_safe_loading,
)
from coc_mm.datasets import inner_datasets, set_classes
from coc_mm.errors import UserError
from coc_mm.utils.images import read_picture, to_picture

_LEGIBLE = 256  # short side of a picture on which text can be read


def find_device(name: str | None) -> str:
    """Return a device that works: the one named, else a GPU if there is one, else the CPU."""
    name = name or get_device()
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split('\n')[0]
        raise UserError(f'--device {name} cannot be used here ({reason}); try cpu.') from None
    return name


def load_model(
    config: Config,
    checkpoint: str | None,
    device: str | torch.device = 'cpu',
    keep: Collection[str] = (),
) -> nn.Module:
    """Build the model of a config with the weights of a checkpoint, ready to predict.

    The inference functions of its library take it. Class names come from the checkpoint, else
    from the config's test dataset; without either, classes are numbered.

    Args:
        checkpoint (str, optional): A local file or a URL, official ones included; None for random
            weights. The denominator and the centers that it records go before the config's.
        keep (Collection[str]): Arguments of the backbone that the record leaves alone.

    Returns:
        nn.Module: In evaluation mode, with ``dataset_meta`` and ``cfg`` (mmpretrain:
        ``_dataset_meta`` and ``_config``).

    Raises:
        UserError: The library is none of the three, or the checkpoint is of another model.
        CheckpointError: The file cannot be read.
    """
    use_safe_loading()
    content = load_checkpoint_safely(checkpoint) if checkpoint else {}
    scope = config.get('default_scope')
    if scope not in TASKS:
        raise UserError(
            f'prediction works for configs of {", ".join(TASKS)}, not for default_scope {scope!r}.'
        )
    config = deepcopy(config)
    apply_record(config, content, checkpoint or '', keep)
    meta = content.get('meta') or {}
    classes = (meta.get('dataset_meta') or {}).get('classes')
    if config.get('custom_data') is not None and classes:  # the data itself may be elsewhere
        set_classes(config, classes)
    model: Any = revert_sync_batchnorm(build_model(config))
    if checkpoint:
        check_weights(model, content, checkpoint, strict=True)
        model.load_state_dict(state_dict_of(content, checkpoint), strict=False)
    if scope == 'mmpretrain':
        model._config = config
    else:
        model.cfg = config
    if scope == 'mmseg' and config.get('test_pipeline') is None:  # inference_model reads this
        config.test_pipeline = _test_dataset(config).get('pipeline')
    TASKS[scope].set_classes(model, meta, config)
    return model.to(device).eval()


def _test_dataset(config: Config) -> dict:
    """Find the first dataset of a config's test behind its wrappers."""
    return inner_datasets((config.get('test_dataloader') or {}).get('dataset') or {})[0]


def _dataset_meta(meta: dict, config: Config) -> dict:
    """Gather class names and colors: checkpoint, then config, then dataset class."""
    dataset = _test_dataset(config)
    with DATASETS.switch_scope_and_registry(config.default_scope) as registry:
        kind = registry.get(dataset['type']) if 'type' in dataset else None
    old = {key: meta[key] for key in ('CLASSES', 'PALETTE') if key in meta}
    found: dict[str, Any] = {}
    for source in (
        getattr(kind, 'METAINFO', None),
        dataset.get('metainfo'),
        old,
        meta.get('dataset_meta'),
    ):
        found |= {k.lower(): v for k, v in (source or {}).items() if v is not None}
    return found


def _names(classes: Sequence[str] | None, count: int) -> list[str]:
    """Class names, or numbers where there are none or not as many as outputs."""
    if classes is None or len(classes) < count:
        return [str(index) for index in range(count)]
    return [str(name) for name in classes]


class _Task:
    """A model from :func:`load_model` with the test pipeline of its config.

    ``topk`` classes of a classifier are told, boxes need ``score_thr``, 0 to 1.
    """

    def __init__(self, model: nn.Module, topk: int = 5, score_thr: float = 0.3) -> None:
        self.model: Any = model
        self.topk, self.score_thr = topk, score_thr
        config: Config = getattr(model, 'cfg', None) or self.model._config
        pipeline = _test_dataset(config).get('pipeline') or config.get('test_pipeline')
        if not pipeline:
            raise UserError('the config sets neither test_pipeline nor a test_dataloader.')
        kept = [step for step in pipeline if not re.search(r'Load\w*Annotations$', step['type'])]
        with DefaultScope.overwrite_default_scope(config.default_scope):
            self.load, *self.steps = [TRANSFORMS.build(step) for step in kept]

    def read(self, image: str | np.ndarray) -> tuple[dict, np.ndarray]:
        """Read a file as the config's loader does: for :meth:`predict`; as (H, W, 3), RGB.

        An array, (H, W, 3) BGR, is taken as it is, or as gray where the loader reads that.
        """
        if isinstance(image, np.ndarray):
            gray = getattr(self.load, 'color_type', 'color') == 'grayscale'
            pixels = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if gray else image
            if min(pixels.shape[:2]) < 1:
                raise UserError('an image without pixels')
            shape = pixels.shape[:2]
            data = dict(img=pixels, img_path='', img_id=0, img_shape=shape, ori_shape=shape)
            return data, to_picture(pixels)
        return read_picture(image, self.load)

    def predict(self, image: str | dict) -> Any:
        """Predict on an image file, or what :meth:`read` gave, as ``tools/test.py`` does."""
        data = self.read(image)[0] if isinstance(image, str) else image
        return self.predict_batch([data])[0]

    def predict_batch(self, images: Sequence[dict]) -> list[Any]:
        """Predict on what :meth:`read` gave; neighbors that become equally large go together."""
        found: list[Any] = []
        for data in images:
            for step in self.steps:
                data = step(data)
            found.append(data)
        samples = []
        for _, group in itertools.groupby(found, lambda data: data['inputs'].shape):
            listed = list(group)
            batch = {key: [data[key] for data in listed] for key in ('inputs', 'data_samples')}
            with torch.no_grad():
                samples += self.model.test_step(batch)
        return samples

    def names(self, count: int) -> list[str]:
        """Names of the first classes."""
        meta = getattr(self.model, 'dataset_meta', None) or self.model._dataset_meta
        return _names(meta.get('classes'), count)

    def _draw(self, visualizer: Any, image: np.ndarray, sample: Any, **settings: Any) -> None:
        visualizer.dataset_meta = self.model.dataset_meta
        visualizer.add_datasample(
            'prediction', image, data_sample=sample, draw_gt=False, **settings
        )


class Classification(_Task):
    """A classifier of mmpretrain."""

    @staticmethod
    def set_classes(model: Any, meta: dict, config: Config) -> None:
        """Give the model class names."""
        model._dataset_meta = _dataset_meta(meta, config)

    def draw(self, image: np.ndarray, sample: Any, out_file: str) -> None:
        """Write a picture, (H, W, 3) RGB, with the class on it."""
        from mmpretrain.visualization import UniversalVisualizer

        resize = _LEGIBLE if min(image.shape[:2]) < _LEGIBLE else None
        names = self.names(len(sample.pred_score))
        settings = dict(classes=names, resize=resize, out_file=out_file)
        UniversalVisualizer().visualize_cls(image, sample, draw_gt=False, **settings)


class Detection(_Task):
    """A detector of mmdet."""

    @staticmethod
    def set_classes(model: Any, meta: dict, config: Config) -> None:
        """Give the model class names and colors."""
        found = dict(classes=None, palette='random') | _dataset_meta(meta, config)
        if not isinstance(found['palette'], str):  # mmdet takes tuples, one for each class
            colors = [tuple(color) for color in found['palette']]
            enough = len(colors) >= len(found['classes'] or ())
            found['palette'] = colors if enough else 'random'
        model.dataset_meta = found

    def draw(self, image: np.ndarray, sample: Any, out_file: str) -> None:
        """Write a picture, (H, W, 3) RGB, with boxes and masks on it."""
        from mmdet.visualization import DetLocalVisualizer

        settings = dict(pred_score_thr=self.score_thr, out_file=out_file)
        self._draw(DetLocalVisualizer(), image, sample, **settings)


class Segmentation(_Task):
    """A segmentor of mmseg."""

    @staticmethod
    def set_classes(model: Any, meta: dict, config: Config) -> None:
        """Give the model class names and colors."""
        found = _dataset_meta(meta, config)
        found['classes'] = _names(found.get('classes'), model.num_classes)
        count = len(found['classes'])
        if len(found.get('palette') or ()) != count:
            wheel = [colorsys.hsv_to_rgb(i / count, 0.8, 0.95) for i in range(count)]
            found['palette'] = [tuple(round(255 * x) for x in color) for color in wheel]
        model.dataset_meta = found

    def draw(self, image: np.ndarray, sample: Any, out_file: str) -> None:
        """Write a picture, (H, W, 3) RGB, with the classes painted over it."""
        from mmseg.visualization import SegLocalVisualizer

        # mmseg prints names on regions; on images smaller than a word they hide all.
        settings = dict(with_labels=min(image.shape[:2]) >= _LEGIBLE, out_file=out_file)
        self._draw(SegLocalVisualizer(alpha=0.5), image, sample, **settings)


#: The task of each default scope.
TASKS: dict[str, Any] = dict(mmpretrain=Classification, mmdet=Detection, mmseg=Segmentation)
