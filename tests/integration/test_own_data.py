"""Images and masks as they should not be: used as shown, or refused by name."""

from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope
from own_data import COCO, FOLDERS, MASKS, resolved, write_coco
from PIL import Image

from coc_mm.errors import UserError
from coc_mm.utils.image_checks import naming_bad_files

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
NAMES = dict(mmpretrain=FOLDERS, mmdet=COCO, mmseg=MASKS)


def _gradient(width=40, height=24):
    ramp = np.linspace(0, 255, width).astype(np.uint8)
    return Image.fromarray(np.tile(ramp, (height, 1)))


def _saved(path, image, **options):
    image.save(path, **options)
    return path


def _turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    return _saved(path, _gradient().convert('RGB'), exif=exif)


def _16_bit(path):
    values = np.asarray(_gradient()).astype(np.uint16) * 257
    return _saved(path, Image.fromarray(values))


# Kind -> the file and the height and width that it is read with.
ODD = {
    'one pixel': (lambda d: _saved(d / 'a.png', Image.new('RGB', (1, 1), 'red')), (1, 1)),
    'a strip': (lambda d: _saved(d / 'a.png', Image.new('RGB', (20000, 10))), (10, 20000)),
    'grey': (lambda d: _saved(d / 'a.jpg', _gradient()), (24, 40)),
    'two colors': (lambda d: _saved(d / 'a.png', _gradient().convert('1')), (24, 40)),
    'palette': (lambda d: _saved(d / 'a.png', _gradient().convert('P')), (24, 40)),
    'gif': (lambda d: _saved(d / 'a.gif', _gradient().convert('P')), (24, 40)),
    'cmyk': (lambda d: _saved(d / 'a.jpg', _gradient().convert('CMYK')), (24, 40)),
    '16 bit': (lambda d: _16_bit(d / 'a.png'), (24, 40)),
    'alpha': (lambda d: _saved(d / 'a.png', _gradient().convert('RGBA')), (24, 40)),
    'grey and alpha': (lambda d: _saved(d / 'a.png', _gradient().convert('LA')), (24, 40)),
    'turned': (lambda d: _turned(d / 'a.jpg'), (40, 24)),
}


def _pipeline(scope, loader):
    cfg = Config.fromfile(CONFIGS / NAMES[scope])
    steps = [s for s in cfg[loader].dataset.pipeline if s.type != 'LoadAnnotations']
    with DefaultScope.overwrite_default_scope(scope):
        return Compose([TRANSFORMS.build(step) for step in steps])


@pytest.fixture(scope='module')
def pipelines():
    found = {scope: _pipeline(scope, 'test_dataloader') for scope in NAMES}
    return found | dict(train=_pipeline('mmpretrain', 'train_dataloader'))


@pytest.mark.parametrize('kind', ODD)
def test_odd_images_are_read_as_they_are_shown(kind, pipelines, tmp_path):
    make, size = ODD[kind]
    path = make(tmp_path)
    visited = 0
    for name, pipeline in pipelines.items():
        results = dict(img_path=str(path), img_id=0, gt_label=0, seg_fields=[])
        sample = pipeline(results)
        image = sample['inputs']
        assert image.shape[0] == 3
        assert str(image.dtype) == 'torch.uint8'
        assert min(image.shape[1:]) >= 1
        if name != 'train':
            assert tuple(sample['data_samples'].ori_shape[:2]) == size
            visited += 1
        if name == 'mmseg' and 24 in size:
            across = image.float().mean(0)
            ramp = across.mean(0) if kind != 'turned' else across.mean(1)
            assert ramp[0] < 60 < 190 < ramp[-1] or kind == 'two colors', 'dark left, light right'
    assert visited == 3


BROKEN = {
    'empty': (b'', r'is empty \(0 bytes\)'),
    'text': (b'<html>', 'is not an image'),
    'cut': (None, 'is a damaged image'),
}


@pytest.mark.parametrize('kind', BROKEN)
def test_broken_images_are_named(kind, tmp_path):
    content, says = BROKEN[kind]
    path = tmp_path / 'a.png'
    _gradient().save(path)
    path.write_bytes(path.read_bytes()[:-60] if content is None else content)
    pipeline = _pipeline('mmseg', 'test_dataloader')
    with naming_bad_files(), pytest.raises(UserError, match=rf'names {path}, which {says}'):
        pipeline(dict(img_path=str(path), seg_fields=[]))


def dataset(scope, root):
    cfg, _ = resolved(NAMES[scope], root)
    with DefaultScope.overwrite_default_scope(scope):
        return DATASETS.build(cfg.train_dataloader.dataset)


@pytest.fixture
def masks(tmp_path):
    for folder in ('images', 'annotations'):
        (tmp_path / folder).mkdir()
    for k in range(3):
        _gradient(64, 64).convert('RGB').save(tmp_path / 'images' / f'{k}.jpg')
        values = np.arange(64 * 64).reshape(64, 64) % 3
        Image.fromarray(values.astype(np.uint8)).save(tmp_path / 'annotations' / f'{k}.png')
    return tmp_path


def test_masks_of_another_size_are_named(masks):
    for k in range(3):
        Image.new('L', (64, 48), 1).save(masks / 'annotations' / f'{k}.png')
    data = dataset('mmseg', masks)
    says = r'mask .*\d\.png has 48 x 64 pixels and its image .*\d\.jpg 64 x 64'
    with naming_bad_files(), pytest.raises(UserError, match=says):
        data[0]


def test_masks_of_turned_images_are_named(masks):
    for k in range(3):
        _turned(masks / 'images' / f'{k}.jpg')
        Image.new('L', (40, 24), 1).save(masks / 'annotations' / f'{k}.png')
    data = dataset('mmseg', masks)
    with naming_bad_files(), pytest.raises(UserError, match='turned as its EXIF says'):
        data[0]


def test_images_of_another_size_than_recorded_are_named(tmp_path):
    write_coco(tmp_path, splits=('train',))
    for path in (tmp_path / 'train').iterdir():
        _gradient(64, 48).convert('RGB').save(path)
    data = dataset('mmdet', tmp_path)
    with naming_bad_files(), pytest.raises(UserError, match=r'48 x 64 pixels .* says 64 x 64'):
        data[0]
