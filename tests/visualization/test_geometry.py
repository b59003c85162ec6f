"""Where a pipeline puts a picture."""

import cv2
import numpy as np
import pytest

from coc_mm.visualization.geometry import Placement, locate


def resize(image, size):
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


@pytest.mark.parametrize('order', [1, -1])
@pytest.mark.parametrize('size', [(8, 8), (30, 47), (375, 500), (3000, 1999)])
def test_scaling_cropping_and_padding_are_seen(size, order):
    def pipeline(image):
        image = resize(image, (256, 320))
        image = image[16:240, 48:272]
        return np.pad(image, ((5, 0), (7, 9), (0, 0)), constant_values=114)[..., ::order]

    placement = locate(pipeline, size)
    assert placement == Placement(5 - 16, 7 - 48, 5 - 16 + 256, 7 - 48 + 320)
    top, left, bottom, right = placement.seen(size, (229, 240))
    np.testing.assert_allclose([top, bottom], np.array([11, 240]) / 256 * size[0], atol=0.51)
    np.testing.assert_allclose([left, right], np.array([41, 281]) / 320 * size[1], atol=0.51)


def test_what_no_box_describes_is_told():
    assert locate(lambda image: image[:, ::-1], (40, 60)) is None
    assert locate(lambda image: image.transpose(1, 0, 2), (40, 60)) is None
    assert locate(lambda image: image[..., :1], (40, 60)) is None
    assert locate(lambda image: image.astype(np.float32), (40, 60)) is None
    assert locate(lambda image: 255 - image, (40, 60)) is None
    assert locate(lambda image: resize(image, (3, 3)), (40, 60)) is None
    turn = cv2.getRotationMatrix2D((30, 20), 30, 1)
    assert locate(lambda image: cv2.warpAffine(image, turn, (60, 40)), (40, 60)) is None


def test_extent_covers_crop_and_padding():
    # 100 x 200 scaled to 50 x 100, columns 20-80 kept, padded to 64 x 64.
    placement = Placement(0, -20, 50, 80)
    part = placement.seen((100, 200), (50, 60))
    assert part == (0, 40, 100, 160)
    assert placement.extent((100, 200), part, (64, 64)) == pytest.approx((0, 0, 1.28, 128 / 120))
