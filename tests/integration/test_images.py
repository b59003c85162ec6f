"""Images as they should not be, in training, in the tools that predict and draw, in the demo."""

import io
import struct
import sys
import zlib
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


def deep(path):
    grey = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (48, 1))
    Image.fromarray(grey).save(path)


def floating(path, *values):
    pixels = np.tile(np.linspace(0, 255, 64, dtype=np.float32), (48, 1))
    for place, value in enumerate(values):
        pixels[place, place] = value
    Image.fromarray(pixels).save(path, 'TIFF')


def transparent(path):
    image = picture().convert('RGBA')
    image.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (48, 1))))
    image.save(path)


GOOD = {
    'grey.jpg': lambda path: picture().convert('L').save(path),
    'palette.png': lambda path: picture().convert('P').save(path),
    'palette.gif': lambda path: picture().convert('P').save(path),
    'cmyk.jpg': lambda path: picture().convert('CMYK').save(path),
    'two.png': lambda path: picture().convert('1').save(path),
    'deep.png': deep,
    'alpha.png': transparent,
    'grey-alpha.png': lambda path: picture().convert('LA').save(path),
    'turned.jpg': turned,
    'strip.png': lambda path: Image.new('RGB', (2000, 33), RED).save(path),
}


def bomb(width=60_000, height=60_000):
    """A PNG of a few bytes that says it is huge."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack('>I', len(data)) + body + struct.pack('>I', zlib.crc32(body))

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(100_000))
    return (
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')
    )


def _bytes(content):
    return lambda path: path.write_bytes(content)


def _cut(form, left):
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, form)
    return _bytes(file.getvalue()[:left])


def _colors_of_32_bits(width, height, pixels=b''):
    """A TIFF of a kind that Pillow does not know and OpenCV reads."""
    bits = 8 + 2 + 9 * 12 + 4
    entries = [
        *((256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, bits), (259, 3, 1, 1)),
        *((262, 3, 1, 2), (273, 4, 1, bits + 12), (277, 3, 1, 3), (279, 4, 1, len(pixels))),
        (339, 3, 3, bits + 6),
    ]
    table = b''.join(struct.pack('<HHII', *entry) for entry in entries)
    lists = struct.pack('<6H', 32, 32, 32, 3, 3, 3)
    return b'II*\0' + struct.pack('<IH', 8, 9) + table + bytes(4) + lists + pixels


BAD = {
    'empty.png': (_bytes(b''), r'is empty \(0 bytes\)'),
    'text.jpg': (_bytes(b'<html>'), 'is not an image'),
    'cut.png': (_cut('PNG', 4000), 'is a damaged image'),
    'cut.jpg': (_cut('JPEG', 1500), 'is a damaged image'),
    'cut.tif': (_cut('TIFF', 5000), 'is a damaged image|is not an image'),
    'cut.webp': (_cut('WEBP', 1500), 'is a damaged image|is not an image'),
    'bomb.png': (_bytes(bomb()), r'is too large \(Image size \(3600000000 pixels\) exceeds'),
    'nan.tif': (lambda path: floating(path, np.nan), 'holds pixels that are NaN or infinite'),
    'inf.tif': (lambda path: floating(path, np.inf), 'holds pixels that are NaN or infinite'),
    'bomb.tif': (_bytes(_colors_of_32_bits(80_000, 80_000)), 'is too large'),
    'nan-colors.tif': (
        _bytes(_colors_of_32_bits(2, 1, np.array([1, 2, np.nan] * 2, '<f4').tobytes())),
        'NaN or infinite',
    ),
    'cut-colors.tif': (_bytes(_colors_of_32_bits(2, 1)[:40]), 'is not an image'),
    'bomb.hdr': (
        _bytes(b'#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 99999 +X 99999\n' + bytes(99)),
        'is too large',
    ),
    'bomb.pfm': (_bytes(b'PF\n80000 80000\n-1.0\n' + bytes(99)), 'is too large'),
    'nan.pfm': (
        _bytes(b'PF\n2 1\n-1.0\n' + np.array([1, 2, np.nan] * 2, '<f4').tobytes()),
        'NaN or infinite|is not an image',
    ),
    'bomb.exr': (
        _bytes(
            b'\x76\x2f\x31\x01\x02\0\0\0dataWindow\0box2i\0\x10\0\0\0'
            + struct.pack('<4i', 0, 0, 99_999, 99_999)
        ),
        'is not an image',
    ),
}


@pytest.mark.parametrize('name', GOOD)
def test_odd_images_are_images(name, tmp_path):
    GOOD[name](tmp_path / name)
    assert validate_image(tmp_path / name) is None


@pytest.mark.parametrize('name', BAD)
def test_bad_images_are_named_in_one_line(name, tmp_path):
    make, says = BAD[name]
    make(tmp_path / name)
    reason = validate_image(tmp_path / name)
    with pytest.raises(AssertionError, match=says):
        assert reason is None, reason
    assert '\n' not in reason


@pytest.mark.parametrize('name', BAD)
@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
def test_loaders_name_bad_images(name, backend, tmp_path):
    make, says = BAD[name]
    make(tmp_path / name)
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
    suffixes = ('.jpg', '.png', '.gif', '.tif', '.webp')
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
        start = printed.index(f'{name}')
        with pytest.raises(AssertionError, match=says):
            assert not printed[start : start + 200]
    written = {path.name for path in (tmp_path / 'out').iterdir()}
    assert len(written) == len(GOOD)
    if run is run_infer:
        assert {'turned.jpg', 'palette.gif.png'} <= written
    assert not [
        name for name in written if name.startswith(('cut', 'nan', 'bomb', 'empty', 'float'))
    ]


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
    assert 'cluster_demo.uploads' in sys.modules
