"""A sheet of training images with their labels, as a config's dataset reads them."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, VISUALIZERS, DefaultScope

from coc_mm.datasets import inner_datasets
from coc_mm.visualization.sheets import contact_sheet, fit, picture_of, save_picture

_PACK = dict(mmpretrain='PackInputs', mmdet='PackDetInputs', mmseg='PackSegInputs')
_DRAW = dict(mmdet='DetLocalVisualizer', mmseg='SegLocalVisualizer')
_SIDE = 320  # pixels


def save_data_sheet(cfg: Config, path: Path, count: int = 8) -> Path:
    """Write ``count`` images spread over the training data, not augmented, with their labels."""
    scope, given = cfg.default_scope, cfg.train_dataloader.dataset
    dataset: Any = deepcopy(inner_datasets(given)[0])
    steps = [s for s in dataset.get('pipeline') or given.pipeline if 'Load' in s['type']]
    steps.append(dict(type='Resize', scale=(_SIDE, _SIDE), keep_ratio=True))
    steps.append(dict(type=_PACK[scope], meta_keys=('img_path',)))
    with DefaultScope.overwrite_default_scope(scope):
        data = DATASETS.build(dict(dataset, pipeline=steps))
        draw = (
            VISUALIZERS.build(dict(type=_DRAW[scope], name=str(path))) if scope in _DRAW else None
        )
    tiles = []
    for i in dict.fromkeys(np.linspace(0, len(data) - 1, count).round().astype(int).tolist()):
        sample = data[i]
        picture, found = picture_of(sample['inputs']), sample['data_samples']
        caption = Path(found.img_path).name
        if draw is None:
            caption = f'{data.metainfo["classes"][int(found.gt_label)]}: {caption}'
        else:
            draw.dataset_meta = data.metainfo
            if 'gt_instances' in found:
                boxes = found.gt_instances.bboxes
                found.gt_instances.bboxes = getattr(boxes, 'tensor', boxes)
            draw.add_datasample('', picture, found, draw_pred=False)
            picture = draw.get_image()
        tiles.append((fit(picture, longest=_SIDE), caption))
    rows = [tiles[i : i + 4] for i in range(0, len(tiles), 4)]
    title = f'{len(tiles)} of {len(data)} images for training'
    return save_picture(path, contact_sheet(rows, title))
