"""Images, masks and annotation files as they should not be: used as shown, or refused by name."""

import json
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope
from PIL import Image

from coc_mm.datasets import resolve_custom
from coc_mm.errors import UserError
from coc_mm.utils.image_checks import naming_bad_files

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
NAMES = dict(
    mmpretrain='classification/coc-small_1xb64-50e_custom.py',
    mmdet='detection/mask-rcnn_coc-s-c4_fpn_1xb2-12e_custom.py',
    mmseg='segmentation/fpn_coc-s-c4_1xb4-50e-512x512_custom.py',
)


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


def resolved(scope, root):
    cfg = Config.fromfile(CONFIGS / NAMES[scope])
    cfg.data_root = str(root)
    return cfg, '\n'.join(resolve_custom(cfg))


def dataset(scope, root):
    cfg, _ = resolved(scope, root)
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


@pytest.mark.parametrize('value', [-1, 256, 70000])
def test_values_that_are_no_class_are_named(masks, value):
    Image.fromarray(np.full((64, 64), value, np.int32)).save(masks / 'annotations' / '1.tif')
    (masks / 'annotations' / '1.tif').rename(masks / 'annotations' / '1.png')
    with pytest.raises(ValueError, match=rf'mask .*1\.png has the value {value}'):
        resolved('mmseg', masks)


@pytest.fixture
def coco(tmp_path):
    """A COCO folder; call it with a change of its content."""
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'train').mkdir()
    content = dict(images=[], annotations=[], categories=[dict(id=1, name='x')])
    for k in (1, 2):
        _gradient(64, 48).convert('RGB').save(tmp_path / 'train' / f'{k}.jpg')
        content['images'].append(dict(id=k, file_name=f'{k}.jpg', height=48, width=64))
        outline = [[4, 4, 40, 4, 40, 40, 4, 40]]
        entry = dict(id=k, image_id=k, category_id=1, iscrowd=0, bbox=[4, 4, 36, 36], area=1296)
        content['annotations'].append(dict(entry, segmentation=outline))

    def write(change=lambda content: None):
        change(content)
        (tmp_path / 'annotations' / 'train.json').write_text(json.dumps(content))
        return tmp_path

    return write


def _set(name, key, value):
    return lambda content: content[name][1].__setitem__(key, value)


WRONG = {
    'a missing image': (_set('images', 'file_name', 'none.jpg'), r'1 of 2 images .* none\.jpg'),
    'an unknown image': (_set('annotations', 'image_id', 7), 'annotation 2 is of image 7'),
    'an unknown category': (_set('annotations', 'category_id', 9), 'is of category 9'),
    'a box of three': (_set('annotations', 'bbox', [1, 2, 3]), r'has the bbox \[1, 2, 3\]'),
    'a box of nan': (_set('annotations', 'bbox', [1, 2, 3, float('nan')]), 'has the bbox'),
    'no height': (lambda c: c['images'][1].pop('height'), 'image 2 has no height'),
    'an image twice': (_set('images', 'id', 1), 'two entries of images have the id 1'),
    'text': (lambda c: c.update(images='none'), 'images is no list'),
    'numbers': (lambda c: c.update(annotations=[1]), 'annotations holds 1, which is no object'),
}


@pytest.mark.parametrize('kind', WRONG)
def test_wrong_annotation_files_are_refused(kind, coco):
    change, says = WRONG[kind]
    root = coco(change)
    with pytest.raises(ValueError, match=rf'train\.json.*{says}'):
        resolved('mmdet', root)


@pytest.mark.parametrize('content', ['', '[]', '[1]', '{"images": [', '{"images": 1e999}'])
def test_files_that_are_no_annotations_are_refused(content, coco):
    root = coco()
    (root / 'annotations' / 'train.json').write_text(content)
    with pytest.raises(ValueError, match=r'train\.json is not a COCO annotation file'):
        resolved('mmdet', root)


@pytest.mark.parametrize('box', [[70, 4, 10, 10], [-20, 4, 10, 10], [4, 4, 0, 10], [4, 4, -3, 9]])
def test_boxes_that_cannot_be_learned_are_counted(box, coco):
    root = coco(_set('annotations', 'bbox', box))
    assert 'train.json: 1 of 2 boxes lie outside of their image' in resolved('mmdet', root)[1]
    data = dataset('mmdet', root)
    found = [len(data.get_data_info(k)['instances']) for k in (0, 1)]
    assert found == [1, 0]


def test_images_of_another_size_than_recorded_are_named(coco):
    root = coco(lambda content: [image.update(height=64, width=48) for image in content['images']])
    data = dataset('mmdet', root)
    with naming_bad_files(), pytest.raises(UserError, match=r'48 x 64 pixels .* says 64 x 48'):
        data[0]
