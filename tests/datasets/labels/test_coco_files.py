"""COCO as tools export it: found, mended, and held out."""

import shutil

import numpy as np
import pytest
from exported_data import yolo
from own_data import BOXES, COCO, change_entries, dataset, paths, resolved, write_coco

from coc_mm.datasets.coco import read_coco

mask_utils = pytest.importorskip('pycocotools.mask')


def cvat(root, change=lambda content: None):
    """``instances_default.json`` and a Validation subset with a prefix, brush masks as crowds."""

    def brush(content):
        content.update(licenses=[], info=dict(contributor='', year=''))
        runs = mask_utils.encode(np.asfortranarray(np.eye(64, k=3, dtype=np.uint8)))
        runs['counts'] = runs['counts'].decode()
        for entry in content['annotations']:
            entry.update(segmentation=runs, iscrowd=1, attributes=dict(occluded=False))
        change(content)

    write_coco(root, brush)
    labels = root / 'annotations'
    (labels / 'train.json').rename(labels / 'instances_default.json')
    (labels / 'val.json').rename(labels / 'val_instances_Validation.json')
    shutil.move(root / 'train', root / 'images' / 'default')
    shutil.move(root / 'val', root / 'images' / 'Validation')


def roboflow(root, name='shapes'):
    def change(content):
        content['info'] = dict(description='Exported from roboflow.com')
        for entry in content['categories']:
            entry.update(supercategory='shapes')
        content['categories'].insert(0, dict(id=0, name=name, supercategory='none'))
        for entry in content['annotations']:
            entry['bbox'] = [entry['bbox'][0], entry['bbox'][1], *map(str, entry['bbox'][2:])]

    write_coco(root, change)
    for split, ours in (('train', 'train'), ('val', 'valid')):
        (root / split).rename(root / ours)
        (root / 'annotations' / f'{split}.json').rename(root / ours / '_annotations.coco.json')


def roboflow_named_like_a_class(root):
    roboflow(root, 'a')
    for file in root.rglob('*.json'):
        file.write_text(file.read_text().replace('"shapes"', '"a"'))


def detr(root):
    """Renamed by hand: id 0 is a real class."""

    def change(content):
        for entry in content['categories']:
            entry.update(id=entry['id'] - 1, supercategory='N/A')
        for entry in content['annotations']:
            entry['category_id'] -= 1

    write_coco(root, change)
    for split in ('train', 'val'):
        (root / split).rename(root / f'{split}2017')
        labels = root / 'annotations'
        (labels / f'{split}.json').rename(labels / f'custom_{split}.json')


def label_studio(root):
    def change(content):
        content['info'] = dict(contributor='Label Studio')
        for entry in content['images']:
            entry.update(id=entry['id'] - 1, file_name=f'..\\upload\\1\\{entry["file_name"]}')
        for entry in content['annotations']:
            entry.update(id=entry['id'] - 1, image_id=entry['image_id'] - 1, ignore=0)

    write_coco(root, change, splits=('train',))
    (root / 'train').rename(root / 'images')
    (root / 'annotations' / 'train.json').rename(root / 'result.json')


def labelme2coco(root):
    background = dict(id=0, name='_background_', supercategory=None)
    write_coco(root, lambda c: c['categories'].insert(0, background), splits=('train',))
    (root / 'train').rename(root / 'JPEGImages')
    (root / 'annotations' / 'train.json').rename(root / 'annotations.json')


def cvat_in_the_root(root):
    """Images beside the annotations, of which one category has none."""
    cvat(root, lambda c: c['categories'].insert(0, dict(id=9, name='c', supercategory='')))
    (root / 'annotations' / 'val_instances_Validation.json').unlink()
    for path in (root / 'images' / 'default').iterdir():
        path.rename(root / path.name)
    shutil.rmtree(root / 'images')


EXPORTS = {
    'CVAT': (cvat, (4, 4)),
    'Roboflow': (roboflow, (4, 4)),
    'Roboflow, a root of the name of a class': (roboflow_named_like_a_class, (4, 4)),
    'DETR': (detr, (4, 4)),
    'Label Studio': (label_studio, (3, 1)),
    'labelme2coco': (labelme2coco, (3, 1)),
}


@pytest.mark.parametrize('kind', EXPORTS)
@pytest.mark.parametrize('config', [BOXES, COCO])
def test_exports(tmp_path, kind, config):
    write, counts = EXPORTS[kind]
    write(tmp_path)
    cfg, _ = resolved(config, tmp_path)
    assert cfg.classes == ['a', 'b']
    for loader, count in zip(('train_dataloader', 'val_dataloader'), counts, strict=True):
        data = dataset(cfg, loader)
        assert len(data) == count
        for i in range(count):
            found = data.get_data_info(i)['instances']
            assert [(x['bbox_label'], x['ignore_flag']) for x in found] == [(0, 0), (1, 0)]
            assert found[0]['bbox'] == [4, 8, 25, 29]


def _boxes(content, box, count=8):
    for entry in content['annotations'][:count]:
        entry['bbox'] = box


MENDED = {
    'boxes smaller than their polygons': (
        lambda c: _boxes(c, [10, 12, 4, 4]),
        '8 of 8 boxes do not enclose',
        lambda c: c['annotations'][0]['bbox'] == [4, 8, 21, 21],
    ),
    'a box elsewhere': (
        lambda c: _boxes(c, [50, 50, 9, 9], 1),
        '1 of 8 boxes lie apart from their polygons',
        lambda c: c['annotations'][0]['bbox'] == [50, 50, 9, 9],
    ),
    'two categories of one name': (
        lambda c: c['categories'][1].update(name='a'),
        'two categories are named a; they are one class',
        lambda c: {e['category_id'] for e in c['annotations']} == {1} and len(c['categories']) == 1,
    ),
    'crowds of COCO': (
        lambda c: c['annotations'][0].update(iscrowd=1, segmentation=dict(size=[], counts=[])),
        '',
        lambda c: c['annotations'][0]['iscrowd'] == 1,
    ),
    'numbers as text': (
        lambda c: c['images'][0].update(width='64', id='1'),
        '',
        lambda c: (c['images'][0]['width'], c['images'][0]['id']) == (64, 1),
    ),
}


@pytest.mark.parametrize('kind', MENDED)
def test_what_is_mended(tmp_path, kind):
    change, says, holds = MENDED[kind]
    file = write_coco(tmp_path, change, splits=('train',)) / 'annotations' / 'train.json'
    _, mended, _, remarks = read_coco(file, False)
    assert says in '\n'.join(remarks)
    assert bool(says) == bool(remarks)
    assert holds(mended)


def test_named_files_and_folders(tmp_path):
    write_coco(tmp_path)
    (tmp_path / 'annotations').rename(tmp_path / 'json')
    (tmp_path / 'train').rename(tmp_path / 'pictures')
    shutil.copy(tmp_path / 'json' / 'train.json', tmp_path / 'json' / 'train_old.json')
    with pytest.raises(ValueError, match=r'several COCO files for train.*ann_file='):
        resolved(BOXES, tmp_path)
    options = dict(ann_file=['json/train.json', 'json/val.json'], img_dir=['pictures', 'val'])
    cfg, _ = resolved(BOXES, tmp_path, **options)
    assert paths(dataset(cfg))[0] == str(tmp_path / 'pictures' / '1.png')
    assert len(dataset(cfg, 'val_dataloader')) == 4
    with pytest.raises(ValueError, match=r'no\.json: there is no such file'):
        resolved(BOXES, tmp_path, ann_file='no.json')


def test_folds_and_groups(tmp_path):
    def name(content):
        for entry in content['images']:
            entry['patient'] = entry['id'] % 2

    write_coco(tmp_path, name, splits=('train',))
    held = []
    for fold in ('1/2', '2/2'):
        cfg, _ = resolved(BOXES, tmp_path, fold=fold)
        held.append(set(paths(dataset(cfg, 'val_dataloader'))))
        assert not held[-1] & set(paths(dataset(cfg)))
    assert len(held[0] | held[1]) == 4
    cfg, _ = resolved(BOXES, tmp_path, group_by='patient')
    numbers = {path.rsplit('/', 1)[1] for path in paths(dataset(cfg, 'val_dataloader'))}
    assert numbers in ({'1.png', '3.png'}, {'2.png', '4.png'})
    with pytest.raises(ValueError, match='fold=7: K/N is due'):
        resolved(BOXES, tmp_path, fold='7')


def test_annotations_are_kept_as_they_are(tmp_path):
    write_coco(tmp_path, change_entries(note='x'))
    cfg, _ = resolved(BOXES, tmp_path)
    assert cfg.train_dataloader.dataset.ann_file == 'annotations/train.json'


def test_a_subset_in_the_root(tmp_path):
    cvat_in_the_root(tmp_path)
    cfg, report = resolved(COCO, tmp_path)
    assert cfg.classes == ['c', 'a', 'b']
    assert 'no box to train on of c;' in report
    assert len(dataset(cfg)) == 3
    assert dataset(cfg).get_data_info(0)['instances'][0]['bbox_label'] == 1


def test_labels_of_other_formats_are_named_by_their_folder(tmp_path):
    yolo(tmp_path)
    with pytest.raises(ValueError, match=rf'^{tmp_path}: 1 of 1 annotations have no segmentation'):
        resolved(COCO, tmp_path)
