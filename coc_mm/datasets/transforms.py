"""Augmentation of the digits."""

import numpy as np
from mmcv.transforms import BaseTransform

from coc_mm.datasets.scene_render import draw_background, paint, sharpen
from coc_mm.registry import TRANSFORMS


@TRANSFORMS.register_module()
class PaintDigit(BaseTransform):
    """Paint a digit in a random colour on a cluttered background.

    A backbone that has only seen white on black has to learn everything anew
    on scenes; one that has seen this starts with what it needs there.

    Required and modified key: ``img``, ``(H, W, 3)`` uint8, white ink on black.

    Args:
        prob (float): Probability of painting, 0 to 1. Defaults to 0.8.
        num_backgrounds (int): Backgrounds to cut patches from, drawn once.
            Defaults to 48.
        background_size (int): Their height and width in pixels; images must not
            be larger. Defaults to 128.
    """

    def __init__(self, prob=0.8, num_backgrounds=48, background_size=128):
        self.prob = prob
        self.size = background_size
        rng = np.random.RandomState(0)
        self.backgrounds = [
            draw_background(background_size, background_size, rng) for _ in range(num_backgrounds)
        ]

    def transform(self, results):
        """Paint, or leave the image alone.

        Args:
            results (dict): With ``img``.

        Returns:
            dict: The same.
        """
        image = results['img']
        ink = sharpen(image[..., 0].astype(np.float32) / 255)
        if np.random.rand() >= self.prob or not ink.any():
            return results
        height, width = ink.shape
        top = np.random.randint(self.size - height + 1)
        left = np.random.randint(self.size - width + 1)
        background = self.backgrounds[np.random.randint(len(self.backgrounds))]
        canvas = background[top : top + height, left : left + width].copy()
        paint(canvas, ink, np.random)
        canvas += np.random.normal(0, np.random.uniform(1, 6), (height, width, 1))
        results['img'] = np.clip(canvas, 0, 255).astype(np.uint8)
        return results
