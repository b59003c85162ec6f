import mmcv
import numpy as np
import pytest
from mmcv.transforms import BaseTransform, LoadImageFromFile
from PIL import Image

from coc_mm.utils.image_checks import naming_bad_files, validate_image


def test_a_format_of_opencv_alone_is_an_image(tmp_path):
    path = tmp_path / 'image.hdr'
    mmcv.imwrite(np.ones((5, 9, 3), np.float32), str(path))
    with pytest.raises(OSError, match='cannot identify'):
        Image.open(path)
    assert validate_image(path) is None
    assert validate_image(tmp_path / 'image.jpg') == 'does not exist'
    assert validate_image(tmp_path) == 'is a folder'


class _LoadNothing(BaseTransform):
    def transform(self, results):
        return results['no such key']


class _Flip(_LoadNothing):
    """Its name does not begin with Load."""


def test_other_failures_pass_unchanged(tmp_path):
    good, bad = tmp_path / 'good.png', tmp_path / 'bad.png'
    Image.new('RGB', (9, 5)).save(good)
    bad.write_text('no image')
    call = BaseTransform.__call__
    with naming_bad_files():
        with pytest.raises(KeyError, match='no such key'):
            _LoadNothing()(dict(img_path=str(good)))
        with pytest.raises(KeyError, match='no such key'):  # not a transform that loads
            _Flip()(dict(img_path=str(bad)))
        assert LoadImageFromFile()(dict(img_path=str(good)))['img'].shape == (5, 9, 3)
    assert BaseTransform.__call__ is call
