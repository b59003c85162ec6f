"""Files as users have them."""

import io

import numpy as np
import pytest

pytest.importorskip('mmpretrain')
from cluster_demo.examples import write_examples
from cluster_demo.uploads import Limits, read_upload
from PIL import Image

from coc_mm.errors import UserError


def picture(height=40, width=60):
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2] = (250, 10, 20)
    return pixels


def coded(pixels, form, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize('form', ['PNG', 'TIFF', 'GIF'])
def test_formats_whatever_the_name(form, tmp_path):
    path = tmp_path / 'image.jpg'
    path.write_bytes(coded(picture(), form))
    pixels, remark = read_upload(path)
    np.testing.assert_array_equal(pixels, picture())
    assert remark == ''


def test_modes_become_rgb(tmp_path):
    path = tmp_path / 'x.png'
    Image.fromarray(np.full((20, 30), 77, np.uint8)).save(path)
    assert (read_upload(path)[0] == 77).all()
    deep = np.linspace(0, 60000, 600).reshape(20, 30).astype(np.uint16)
    Image.fromarray(deep).save(path)
    pixels, _ = read_upload(path)
    assert (pixels[0, 0, 0], pixels[-1, -1, 0]) == (0, 60000 // 256)  # as training reads it
    Image.fromarray(deep / np.float32(7)).save(path := tmp_path / 'x.tif')
    pixels, _ = read_upload(path)
    assert (pixels[0, 0, 0], pixels[-1, -1, 0]) == (0, 255)
    path = tmp_path / 'x.png'
    clear = np.zeros((20, 30, 4), np.uint8)
    clear[:, :15] = (1, 2, 3, 255)
    Image.fromarray(clear).save(path)
    pixels, _ = read_upload(path)
    assert tuple(pixels[0, 0]) == (1, 2, 3)
    assert tuple(pixels[0, 29]) == (0, 0, 0)  # transparency is dropped, as in training


def test_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter, as phones store portraits
    (tmp_path / 'x.png').write_bytes(coded(picture(), 'PNG', exif=exif))
    assert read_upload(tmp_path / 'x.png')[0].shape == (60, 40, 3)


def test_large_images_shrink_and_say_so(tmp_path):
    (tmp_path / 'x.png').write_bytes(coded(picture(300, 600), 'PNG'))
    pixels, remark = read_upload(tmp_path / 'x.png', Limits(longest=200))
    assert pixels.shape == (100, 200, 3)
    assert remark == 'Shrunk from 600 x 300 to 200 x 100 pixels.'


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'is empty'),
        (b'no image at all', 'not an image that can be read'),
        (coded(picture(), 'JPEG')[:400], 'is damaged'),
        (coded(picture(4, 4), 'PNG'), 'the least'),
        (coded(picture(10, 600), 'PNG'), 'a strip'),
    ],
)
def test_one_clear_message(content, message, tmp_path):
    (tmp_path / 'x.png').write_bytes(content)
    with pytest.raises(UserError, match=message) as told:
        read_upload(tmp_path / 'x.png')
    assert '\n' not in str(told.value)
    assert str(tmp_path) not in str(told.value)


def test_examples_can_be_read(tmp_path):
    pytest.importorskip('sklearn')
    written = write_examples(tmp_path / 'examples')
    assert len(written) >= 6  # two scenes, two digits and scikit-learn's photographs at least
    for path in written:
        assert read_upload(path)[1] == ''
