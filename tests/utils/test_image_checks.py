import mmcv
import numpy as np
import pytest
from mmcv.transforms import BaseTransform, Compose, LoadImageFromFile
from PIL import Image

from coc_mm.errors import UserError
from coc_mm.utils.image_checks import naming_bad_files, validate_image


@pytest.mark.parametrize('suffix', ['png', 'jpg', 'bmp', 'gif', 'tif', 'webp', 'ppm'])
def test_images_are_images(tmp_path, suffix):
    path = tmp_path / f'image.{suffix}'
    Image.new('RGB', (9, 5), 'red').save(path)
    assert validate_image(path) is None


def test_a_format_of_opencv_alone_is_an_image(tmp_path):
    path = tmp_path / 'image.hdr'
    mmcv.imwrite(np.ones((5, 9, 3), np.float32), str(path))
    with pytest.raises(OSError, match='cannot identify'):
        Image.open(path)
    assert validate_image(path) is None


def test_reasons(tmp_path):
    whole, path = tmp_path / 'whole.jpg', tmp_path / 'image.jpg'
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole)
    assert validate_image(path) == 'does not exist'
    assert validate_image(tmp_path) == 'is a folder'
    path.write_bytes(b'')
    assert validate_image(path) == 'is empty (0 bytes)'
    path.write_text('<html>')
    assert validate_image(path) == 'is not an image in a format that can be read'
    path.write_bytes(whole.read_bytes()[:1500])
    assert validate_image(path).startswith('is a damaged image (')


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
def test_the_file_is_named(tmp_path, backend):
    path = tmp_path / 'image.png'
    path.write_text('no image')
    pipeline = Compose([LoadImageFromFile(imdecode_backend=backend)])
    with naming_bad_files(), pytest.raises(UserError, match=rf'names {path}, which is not an'):
        pipeline(dict(img_path=str(path)))


class _LoadNothing(BaseTransform):
    def transform(self, results):
        return results['no such key']


class _Flip(BaseTransform):
    def transform(self, results):
        raise ZeroDivisionError


def test_other_failures_pass_unchanged(tmp_path):
    good, bad = tmp_path / 'good.png', tmp_path / 'bad.png'
    Image.new('RGB', (9, 5)).save(good)
    bad.write_text('no image')
    call = BaseTransform.__call__
    with naming_bad_files():
        with pytest.raises(KeyError, match='no such key'):
            _LoadNothing()(dict(img_path=str(good)))
        with pytest.raises(ZeroDivisionError):  # not a transform that loads
            _Flip()(dict(img_path=str(bad)))
        assert LoadImageFromFile()(dict(img_path=str(good)))['img'].shape == (5, 9, 3)
    assert BaseTransform.__call__ is call
