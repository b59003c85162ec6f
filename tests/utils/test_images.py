import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from coc_mm.errors import UserError
from coc_mm.utils.images import find_images, read_image, to_picture


def test_images_of_a_folder(tmp_path):
    for name in ('b.JPG', 'a.webp', '._a.webp', 'notes.txt', 'c.jfif', 'd.avif', 'e.gif'):
        (tmp_path / name).touch()
    (tmp_path / 'more').mkdir()
    names = [path.name for path in find_images(str(tmp_path))]
    assert names == ['a.webp', 'b.JPG', 'c.jfif', 'd.avif', 'e.gif']
    assert find_images(str(tmp_path / 'notes.txt')) == [tmp_path / 'notes.txt']
    with pytest.raises(UserError, match='holds no images'):
        find_images(str(tmp_path / 'more'))
    with pytest.raises(UserError, match='does not exist'):
        find_images(str(tmp_path / 'none.png'))


def test_what_a_loader_reads_may_be_no_picture(tmp_path):
    path = tmp_path / 'data.tif'
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    Image.fromarray(values).save(path)
    with pytest.raises(UserError, match='values of 32 bits'):
        read_image(path)
    load = LoadImageFromFile(color_type='unchanged')
    np.testing.assert_array_equal(read_image(path, load)['img'], values)
    values[0, 0] = np.nan
    Image.fromarray(values).save(path)
    with pytest.raises(UserError, match='NaN or infinite'):
        read_image(path, load)
    path.write_text('no image')
    with pytest.raises(UserError, match='is not an image in a format that can be read'):
        read_image(path, load)


def test_pictures():
    rng = np.random.default_rng(0)
    bgr = rng.integers(0, 255, (4, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(to_picture(bgr), bgr[..., ::-1])
    np.testing.assert_array_equal(to_picture(bgr.astype(np.float32), bgr=False), bgr)  # to_float32
    np.testing.assert_array_equal(to_picture(bgr[..., 0]), bgr[..., :1].repeat(3, -1))
    bands = rng.integers(0, 2**16, (4, 5, 7), dtype=np.uint16)
    picture = to_picture(bands, bgr=False)
    assert picture.shape == (4, 5, 3)
    assert (picture.min(), picture.max()) == (0, 255)
