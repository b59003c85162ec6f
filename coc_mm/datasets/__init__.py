"""Embedded data for the quickstart: handwritten digits, and scenes made of them."""

from coc_mm.datasets.digit_scenes import ensure_digit_scenes
from coc_mm.datasets.digits import DigitsDataset, load_digits_split
from coc_mm.datasets.scene_datasets import digit_scenes_coco, digit_scenes_seg
from coc_mm.datasets.scene_render import SceneDigit, SceneSpec, compose_scene

__all__ = [
    'DigitsDataset',
    'SceneDigit',
    'SceneSpec',
    'compose_scene',
    'digit_scenes_coco',
    'digit_scenes_seg',
    'ensure_digit_scenes',
    'load_digits_split',
]
