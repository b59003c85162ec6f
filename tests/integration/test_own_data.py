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


def _gradient(width=40, height=24, start=0):
    ramp = np.linspace(start, 255, width).astype(np.uint8)
    return Image.fromarray(np.tile(ramp, (height, 1)))


def _turned(path, start=0):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    _gradient(start=start).convert('RGB').save(path, exif=exif)


# Kind -> the file's suffix and the image, 24 pixels high and 40 wide but for the first two.
ODD = {
    'one pixel': ('png', Image.new('RGB', (1, 1), 'red')),
    'a strip': ('png', Image.new('RGB', (20000, 10))),
    'gray': ('jpg', _gradient()),
    'two colors': ('png', _gradient().convert('1')),
    'palette': ('png', _gradient().convert('P')),
    'cmyk': ('jpg', _gradient().convert('CMYK')),
    '16 bit': ('png', Image.fromarray(np.asarray(_gradient()).astype(np.uint16) * 257)),
    'alpha': ('png', _gradient().convert('RGBA')),
    'gray and alpha': ('png', _gradient().convert('LA')),
    'turned': ('jpg', None),
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
    suffix, image = ODD[kind]
    path = tmp_path / f'a.{suffix}'
    _turned(path) if image is None else image.save(path)
    size = (40, 24) if image is None else image.size[::-1]
    for name, pipeline in pipelines.items():
        sample = pipeline(dict(img_path=str(path), img_id=0, gt_label=0, seg_fields=[]))
        inputs = sample['inputs']
        assert inputs.shape[0] == 3
        assert str(inputs.dtype) == 'torch.uint8'
        if name != 'train':
            assert tuple(sample['data_samples'].ori_shape[:2]) == size
        if name == 'mmseg' and 24 in size:
            across = inputs.float().mean(0)
            ramp = across.mean(0) if kind != 'turned' else across.mean(1)
            assert ramp[0] < 60 < 190 < ramp[-1] or kind == 'two colors', 'dark left, light right'


def refused(says, scope, root):
    """The first sample of the training data raises an error that names its files."""
    cfg, _ = resolved(NAMES[scope], root)
    with DefaultScope.overwrite_default_scope(scope):
        data = DATASETS.build(cfg.train_dataloader.dataset)
    with naming_bad_files(), pytest.raises(UserError, match=says):
        data[0]


@pytest.mark.parametrize('turned', [False, True])
def test_masks_of_another_size_are_named(turned, tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'annotations').mkdir()
    for k in range(3):
        path = tmp_path / 'images' / f'{k}.jpg'
        _turned(path, 50 * k) if turned else _gradient(64, 64, 50 * k).convert('RGB').save(path)
        size = (40, 24) if turned else (64, 48)
        Image.new('L', size, 1).save(tmp_path / 'annotations' / f'{k}.png')
    says = r'mask .*\d\.png has 48 x 64 pixels and its image .*\d\.jpg 64 x 64'
    refused('turned as its EXIF says' if turned else says, 'mmseg', tmp_path)


def test_images_of_another_size_than_recorded_are_named(tmp_path):
    write_coco(tmp_path, splits=('train',))
    for k, path in enumerate((tmp_path / 'train').iterdir()):
        _gradient(64, 48, 20 * k).convert('RGB').save(path)
    refused(r'48 x 64 pixels .* says 64 x 64', 'mmdet', tmp_path)
