"""Embedded data for the quickstart (digits, scenes made of them), and your own data."""

from coc_mm.datasets.custom import resolve_custom, set_classes
from coc_mm.datasets.digits.datasets import digit_scenes_coco, digit_scenes_seg
from coc_mm.datasets.digits.digits import DigitsDataset, load_digits_split
from coc_mm.datasets.digits.render import SceneDigit, SceneSpec, compose_scene
from coc_mm.datasets.digits.scenes import ensure_digit_scenes
from coc_mm.datasets.folder_datasets import ClassFolders, ImageMaskFolders

__all__ = [
    'ClassFolders',
    'DigitsDataset',
    'ImageMaskFolders',
    'SceneDigit',
    'SceneSpec',
    'compose_scene',
    'digit_scenes_coco',
    'digit_scenes_seg',
    'ensure_digit_scenes',
    'load_digits_split',
    'resolve_custom',
    'set_classes',
]
