"""Images as they should not be, in training and in the tools that predict and draw."""

import io
import re
import struct

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from coc_mm.errors import UserError
from coc_mm.utils.image_checks import naming_bad_files, validate_image

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))


def _turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    NOISE.rotate(90, expand=True).save(path, exif=exif)


def _floating(path, first=0):
    image = Image.fromarray(np.tile(np.linspace(0, 255, 64, dtype=np.float32), (48, 1)))
    image.putpixel((0, 0), first)
    image.save(path, 'TIFF')


def _in_mode(mode):
    return lambda path: NOISE.convert(mode).save(path)


def _bytes(content):
    return lambda path: path.write_bytes(content)


def _coded(form, left=None):
    file = io.BytesIO()
    NOISE.save(file, form)
    return file.getvalue()[:left]


GOOD = {
    'grey.jpg': _in_mode('L'),
    'palette.gif': _in_mode('P'),
    'cmyk.jpg': _in_mode('CMYK'),
    'two.png': _in_mode('1'),
    'deep.png': lambda path: Image.fromarray(np.eye(48, 64).astype(np.uint16) * 65535).save(path),
    'alpha.png': _in_mode('RGBA'),
    'turned.jpg': _turned,
    'strip.png': lambda path: Image.new('RGB', (2000, 33)).save(path),
}
BOMB = bytearray(_coded('BMP'))
BOMB[18:26] = struct.pack('<2i', 60_000, 60_000)  # what a few bytes say they are
NAN_PFM = b'PF\n2 1\n-1.0\n' + np.array([1, 2, np.nan] * 2, '<f4').tobytes()
BAD = {
    'empty.png': (_bytes(b''), r'is empty \(0 bytes\)'),
    'text.jpg': (_bytes(b'<html>'), 'is not an image'),
    'cut.png': (_bytes(_coded('PNG', 4000)), 'is a damaged image'),
    'cut.jpg': (_bytes(_coded('JPEG', 1500)), 'is a damaged image'),
    'cut.tif': (_bytes(_coded('TIFF', 5000)), 'is a damaged image|is not an image'),
    'bomb.bmp': (_bytes(BOMB), r'is too large \(Image size \(3600000000 pixels\) exceeds'),
    'nan.tif': (lambda path: _floating(path, np.nan), 'holds pixels that are NaN or infinite'),
    'bomb.pfm': (_bytes(b'PF\n80000 80000\n-1.0\n' + bytes(99)), 'is too large'),
    'nan.pfm': (_bytes(NAN_PFM), 'NaN or infinite|is not an image'),
}


@pytest.mark.parametrize('name', BAD)
@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
def test_bad_images_are_named_in_one_line(name, backend, tmp_path):
    make, says = BAD[name]
    make(tmp_path / name)
    reason = validate_image(tmp_path / name)
    assert re.search(says, reason)
    assert '\n' not in reason
    load = LoadImageFromFile(imdecode_backend=backend, color_type='unchanged', to_float32=True)
    with naming_bad_files(), pytest.raises(UserError, match=f'{name}.*({says}|NaN or infinite)'):
        load(dict(img_path=str(tmp_path / name)))


def test_floating_point_is_no_picture_but_may_be_data(tmp_path):
    path = tmp_path / 'float.tif'
    _floating(path)
    with naming_bad_files():
        with pytest.raises(UserError, match=r'float\.tif, which holds values of 32 bits'):
            LoadImageFromFile()(dict(img_path=str(path)))
        found = LoadImageFromFile(color_type='unchanged')(dict(img_path=str(path)))['img']
    np.testing.assert_array_equal(found[0], np.linspace(0, 255, 64, dtype=np.float32))


@pytest.mark.parametrize('name', ['infer', 'visualization/clusters'])
def test_tools_use_the_good_and_name_the_bad(name, tool, projects, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('COLUMNS', '500')
    folder = tmp_path / 'in'
    folder.mkdir()
    for image, make in GOOD.items():
        make(folder / image)
        assert validate_image(folder / image) is None
    said = {bad: says for bad, (_, says) in BAD.items() if not bad.endswith('.pfm')}
    for bad in said:
        BAD[bad][0](folder / bad)
    project = projects['mmpretrain']
    arguments = [folder, project.config, project.checkpoint, '--out-dir', 'out']
    if name != 'infer':
        arguments += ['--stage', '0', '--head', '0', '--height', '32']
    assert tool(name)([*map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert f'{len(said)} of {len(said) + len(GOOD)} images could not be used' in captured.err
    assert 'Traceback' not in captured.err + captured.out
    printed = ' '.join(captured.out.split())
    for bad, says in said.items():
        start = printed.index(bad)
        assert re.search(says, printed[start : start + 200])
    written = {path.name for path in (tmp_path / 'out').iterdir()}
    assert len(written) == len(GOOD)
    assert not [x for x in written if x.startswith(('cut', 'nan', 'bomb', 'empty', 'text'))]
