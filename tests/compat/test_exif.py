import io
import subprocess
import sys

import mmcv
import numpy as np
import pytest
from PIL import Image, ImageOps

PIXELS = np.kron(
    np.random.default_rng(0).integers(0, 255, (3, 4, 3), dtype=np.uint8),
    np.ones((8, 8, 1), np.uint8),
)


@pytest.mark.parametrize('form', ['jpeg', 'png', 'webp', 'avif'])
def test_every_format_is_turned_as_pillow_turns_it(form):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = io.BytesIO()
        Image.fromarray(PIXELS).save(file, form, exif=exif, quality=95)
        content = file.getvalue()
        shown = np.asarray(ImageOps.exif_transpose(Image.open(file)))
        found = mmcv.imfrombytes(content, channel_order='rgb')
        assert found.shape == shown.shape
        assert np.abs(found.astype(int) - shown).mean() < 1
        np.testing.assert_array_equal(mmcv.imfrombytes(content), found[..., ::-1])
        stored = mmcv.imfrombytes(content, flag='color_ignore_orientation')
        assert stored.shape == PIXELS.shape or form == 'avif'


def test_what_is_no_image_stays_none():
    assert mmcv.imfrombytes(b'RIFF\0\0\0\0WEBPVP8 ') is None


def test_an_mmcv_that_was_imported_first():
    code = (
        'import mmcv; plain = mmcv.imfrombytes; import coc_mm; found = mmcv.imfrombytes; '
        'assert plain is not found is mmcv.image.imfrombytes is mmcv.image.io.imfrombytes'
    )
    subprocess.run([sys.executable, '-c', code], check=True)
