"""Embedded data for the quickstart (digits, scenes made of them), and your own data."""

from coc_mm.datasets.coco import check_categories, mend_plain
from coc_mm.datasets.custom import dicts, inner_datasets, resolve_custom, set_classes
from coc_mm.datasets.digits.datasets import digit_scenes_coco, digit_scenes_seg
from coc_mm.datasets.digits.digits import DigitsDataset, load_digits_split
from coc_mm.datasets.digits.render import SceneDigit, SceneSpec, compose_scene
from coc_mm.datasets.digits.scenes import ensure_digit_scenes
from coc_mm.datasets.folder_datasets import ImageMaskFolders

__all__ = [
    'DigitsDataset',
    'ImageMaskFolders',
    'SceneDigit',
    'SceneSpec',
    'check_categories',
    'compose_scene',
    'dicts',
    'digit_scenes_coco',
    'digit_scenes_seg',
    'ensure_digit_scenes',
    'inner_datasets',
    'load_digits_split',
    'mend_plain',
    'resolve_custom',
    'set_classes',
]
