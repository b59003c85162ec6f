"""Configs for own data, completed for a folder, and their datasets."""

import json

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from shrunk_configs import CONFIGS

from coc_mm.datasets import resolve_custom

FOLDERS = 'classification/coc-small_1xb64-50e_custom.py'
COCO = 'detection/mask-rcnn_coc-s-c4_fpn_1xb2-12e_custom.py'
BOXES = 'detection/retinanet_coc-s-c4_fpn_1xb2-12e_custom.py'
MASKS = 'segmentation/fpn_coc-s-c4_1xb4-50e-512x512_custom.py'


def resolved(name, root, **options):
    """The completed config and what is said about it, as one text."""
    cfg = Config.fromfile(CONFIGS / name)
    cfg.merge_from_dict(dict(data_root=str(root), **options))
    lines = resolve_custom(cfg)
    return cfg, '\n'.join(lines)


def build(cfg, loader='train_dataloader'):
    """Build the dataset of a loader as it is."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return DATASETS.build(cfg[loader].dataset)


def dataset(cfg, loader='train_dataloader', **overrides):
    """Build the dataset of a loader without its pipeline."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return DATASETS.build({**cfg[loader].dataset, 'pipeline': [], **overrides})


def paths(data):
    return [data.get_data_info(i)['img_path'] for i in range(len(data))]


def labels(data):
    return [data.get_data_info(i)['gt_label'] for i in range(len(data))]


def write_coco(root, change=lambda content: None, size=64, splits=('train', 'val')):
    """Four images with a box and a mask of each of two classes, in ``train`` and ``val``."""
    for split in splits:
        (root / split).mkdir(parents=True, exist_ok=True)
        (root / 'annotations').mkdir(exist_ok=True)
        content = dict(images=[], annotations=[], categories=[])
        content['categories'] = [dict(id=1, name='a'), dict(id=2, name='b')]
        for i in range(1, 5):
            content['images'].append(dict(id=i, file_name=f'{i}.png', height=size, width=size))
            Image.fromarray(np.full((size, size, 3), 40 * i, np.uint8)).save(
                root / split / f'{i}.png'
            )
            for j in (0, 1):
                x, y, w = size // 16 + j * size // 2, size // 8, size // 3
                entry = dict(id=2 * i - 1 + j, image_id=i, category_id=1 + j, iscrowd=0)
                entry.update(bbox=[x, y, w, w], area=w * w)
                entry['segmentation'] = [[x, y, x + w, y, x + w, y + w, x, y + w]]
                content['annotations'].append(entry)
        change(content)
        (root / 'annotations' / f'{split}.json').write_text(json.dumps(content))
    return root


def change_entries(**values):
    """A change of every annotation; a value None removes the key."""

    def change(content):
        for entry in content['annotations']:
            for key, value in values.items():
                entry[key] = value(entry) if callable(value) else value
                if value is None:
                    del entry[key]

    return change
