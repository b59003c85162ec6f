"""Images as they should not be, in training, in the tools that predict and draw, in the demo."""

import io
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from PIL import Image
from tiny_projects import forget_singletons, write_project

from coc_mm.apis.start import build_model
from coc_mm.cli.clusters import run as run_clusters
from coc_mm.cli.infer import run as run_infer
from coc_mm.errors import UserError, run_command
from coc_mm.utils.image_checks import naming_bad_files, validate_image

ROOT = Path(__file__).resolve().parents[2]
RED, BLUE = (220, 20, 30), (20, 30, 220)


def picture(width=64, height=48):
    """Red on the left, blue on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2], pixels[:, width // 2 :] = RED, BLUE
    return Image.fromarray(pixels)


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().rotate(90, expand=True).save(path, exif=exif)


def ramp(last, dtype):
    return Image.fromarray(np.tile(np.linspace(0, last, 64).astype(dtype), (48, 1)))


def floating(path, first=0):
    image = ramp(255, np.float32)
    image.putpixel((0, 0), first)
    image.save(path, 'TIFF')


def transparent(path):
    image = picture().convert('RGBA')
    image.putalpha(ramp(255, np.uint8))
    image.save(path)


GOOD = {
    'grey.jpg': lambda path: picture().convert('L').save(path),
    'palette.png': lambda path: picture().convert('P').save(path),
    'palette.gif': lambda path: picture().convert('P').save(path),
    'cmyk.jpg': lambda path: picture().convert('CMYK').save(path),
    'two.png': lambda path: picture().convert('1').save(path),
    'deep.png': lambda path: ramp(65535, np.uint16).save(path),
    'alpha.png': transparent,
    'grey-alpha.png': lambda path: picture().convert('LA').save(path),
    'turned.jpg': turned,
    'strip.png': lambda path: Image.new('RGB', (2000, 33), RED).save(path),
}


def bomb(path):
    """A few bytes that say they are 60 000 x 60 000 pixels."""
    picture().save(path)
    content = bytearray(path.read_bytes())
    content[18:26] = struct.pack('<2i', 60_000, 60_000)
    path.write_bytes(content)


def _bytes(content):
    return lambda path: path.write_bytes(content)


def _cut(form, left):
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, form)
    return _bytes(file.getvalue()[:left])


BAD = {
    'empty.png': (_bytes(b''), r'is empty \(0 bytes\)'),
    'text.jpg': (_bytes(b'<html>'), 'is not an image'),
    'cut.png': (_cut('PNG', 4000), 'is a damaged image'),
    'cut.jpg': (_cut('JPEG', 1500), 'is a damaged image'),
    'cut.tif': (_cut('TIFF', 5000), 'is a damaged image|is not an image'),
    'cut.webp': (_cut('WEBP', 1500), 'is a damaged image|is not an image'),
    'bomb.bmp': (bomb, r'is too large \(Image size \(3600000000 pixels\) exceeds'),
    'nan.tif': (lambda path: floating(path, np.nan), 'holds pixels that are NaN or infinite'),
    'inf.tif': (lambda path: floating(path, np.inf), 'holds pixels that are NaN or infinite'),
    'bomb.pfm': (_bytes(b'PF\n80000 80000\n-1.0\n' + bytes(99)), 'is too large'),
    'nan.pfm': (
        _bytes(b'PF\n2 1\n-1.0\n' + np.array([1, 2, np.nan] * 2, '<f4').tobytes()),
        'NaN or infinite|is not an image',
    ),
}


@pytest.mark.parametrize('name', GOOD)
def test_odd_images_are_images(name, tmp_path):
    GOOD[name](tmp_path / name)
    assert validate_image(tmp_path / name) is None


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
    floating(path)
    assert 'values of 32 bits' in validate_image(path)
    with naming_bad_files():
        with pytest.raises(UserError, match=r'float\.tif, which holds values of 32 bits'):
            LoadImageFromFile()(dict(img_path=str(path)))
        found = LoadImageFromFile(color_type='unchanged')(dict(img_path=str(path)))['img']
    np.testing.assert_array_equal(found[0], np.linspace(0, 255, 64, dtype=np.float32))


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    pytest.importorskip('mmpretrain')
    folder = tmp_path_factory.mktemp('images')
    config = write_project(folder, 'mmpretrain')
    model = build_model(Config.fromfile(config))
    torch.save(dict(meta={}, state_dict=model.state_dict()), folder / 'weights.pth')
    yield config, folder / 'weights.pth'
    forget_singletons()


@pytest.fixture
def folder(tmp_path):
    """All of them in one folder."""
    (tmp_path / 'in').mkdir()
    for name, make in GOOD.items():
        make(tmp_path / 'in' / name)
    for name, (make, _) in BAD.items():
        make(tmp_path / 'in' / name)
    floating(tmp_path / 'in' / 'float.tif')
    return tmp_path / 'in'


@pytest.mark.parametrize('run', [run_infer, run_clusters], ids=['infer', 'clusters'])
def test_tools_use_the_good_and_name_the_bad(run, folder, project, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('COLUMNS', '500')
    suffixes = ('.jpg', '.png', '.gif', '.tif', '.webp', '.bmp')
    said = {name: says for name, (_, says) in BAD.items() if name.endswith(suffixes)}
    said['float.tif'] = 'values of 32 bits'
    arguments = [str(folder), *map(str, project), '--out-dir', str(tmp_path / 'out')]
    if run is run_clusters:
        arguments += ['--stage', '0', '--head', '0', '--height', '32']
    assert run_command(run, arguments) == 2
    captured = capsys.readouterr()
    assert f'{len(said)} of {len(said) + len(GOOD)} images could not be used' in captured.err
    assert 'Traceback' not in captured.err + captured.out
    printed = ' '.join(captured.out.split())
    for name, says in said.items():
        start = printed.index(name)
        assert re.search(says, printed[start : start + 200])
    written = {path.name for path in (tmp_path / 'out').iterdir()}
    assert len(written) == len(GOOD)
    if run is run_infer:
        assert {'turned.jpg', 'palette.gif.png'} <= written
    assert not [x for x in written if x.startswith(('cut', 'nan', 'bomb', 'empty', 'float'))]


@pytest.mark.parametrize('kind', ['turned.jpg', 'alpha.png', 'cmyk.jpg', 'palette.png'])
def test_the_demo_reads_them_as_shown(kind, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'projects' / 'gradio_demo'))
    uploads = pytest.importorskip('cluster_demo.uploads')
    GOOD[kind](tmp_path / kind)
    pixels, _ = uploads.read_upload(tmp_path / kind)
    assert pixels.shape == (48, 64, 3)
    left, right = pixels[24, 2].astype(int), pixels[24, 61].astype(int)
    # What is transparent lies on white.
    expected = (255, 255, 255) if kind == 'alpha.png' else RED
    tolerance = 90 if kind == 'cmyk.jpg' else 40
    assert np.abs(left - expected).max() < tolerance
    assert np.abs(right - BLUE).max() < tolerance


@pytest.mark.parametrize('name', BAD)
def test_the_demo_refuses_bad_images(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'projects' / 'gradio_demo'))
    uploads = pytest.importorskip('cluster_demo.uploads')
    BAD[name][0](tmp_path / name)
    with pytest.raises(UserError, match=r'is empty|not an image|is damaged|million|NaN') as caught:
        uploads.read_upload(tmp_path / name)
    assert '\n' not in str(caught.value)
