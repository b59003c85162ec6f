"""COCO files as people have them: used as they are meant, or refused by name."""

import json
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from own_data import change_entries, write_coco

from coc_mm.datasets.coco import check_categories, count_training, mend_plain, read_coco

mask_utils = pytest.importorskip('pycocotools.mask')


@pytest.fixture
def read(tmp_path):
    """Write a COCO file with a change and read it."""

    def call(change=lambda content: None, with_masks=True):
        file = write_coco(tmp_path, change, splits=('train',)) / 'annotations' / 'train.json'
        used, content, _, remarks = read_coco(file, with_masks)
        assert json.loads(used.read_text()) == content
        return used == file, content, '\n'.join(remarks)

    return call


def _set(name, key, value):
    return lambda content: content[name][1].__setitem__(key, value)


def test_a_normal_file_is_used_itself(read):
    same, _, remarks = read()
    assert same
    assert remarks == ''


WRONG = {
    'an unknown image': (_set('annotations', 'image_id', 7), 'annotation 2 is of image 7'),
    'an unknown category': (_set('annotations', 'category_id', 9), 'is of category 9'),
    'a box of three': (_set('annotations', 'bbox', [1, 2, 3]), r'has the bbox \[1, 2, 3\]'),
    'no height': (lambda c: c['images'][1].pop('height'), 'image 2 has no height'),
    'an image twice': (_set('images', 'id', 1), 'two entries of images have the id 1'),
    'text': (lambda c: c.update(images='none'), 'images is no list'),
    'numbers': (lambda c: c.update(annotations=[1]), 'annotations holds 1, which is no object'),
    'nothing': (lambda c: c.update(annotations=[]), 'it has no annotations'),
    'no masks': (change_entries(segmentation=[]), '8 of 8 annotations have no segmentation'),
    'masks of text': (_set('annotations', 'segmentation', 'x'), 'neither polygons nor run lengths'),
    'a flat polygon': (_set('annotations', 'segmentation', [1, 2]), 'mask that is no list of poly'),
    'another size': (
        _set('annotations', 'segmentation', dict(size=[9, 64], counts=[576])),
        r'annotation 2 has a mask that says its size is \[9, 64\]; its image has',
    ),
    'run lengths that end early': (
        _set('annotations', 'segmentation', dict(size=[64, 64], counts=[99])),
        'run lengths that do not fill its 64 x 64 pixels',
    ),
}


@pytest.mark.parametrize('kind', WRONG)
def test_wrong_files_are_refused(kind, read):
    change, says = WRONG[kind]
    with pytest.raises(ValueError, match=rf'train\.json.*{says}'):
        read(change)


@pytest.mark.parametrize('content', ['[1]', '{"images": ['])
def test_files_that_are_no_annotations_are_refused(content, tmp_path):
    (tmp_path / 'train.json').write_text(content)
    with pytest.raises(ValueError, match=r'train\.json is not a COCO annotation file'):
        read_coco(tmp_path / 'train.json', False)


@pytest.mark.parametrize('box', [[70, 4, 10, 10], [-20, 4, 10, 10], [4, 4, 0, 10], [4, 4, -3, 9]])
def test_boxes_that_cannot_be_learned_are_left_out(box, read):
    _, content, remarks = read(_set('annotations', 'bbox', box))
    assert 'train.json: 1 of 8 boxes lie outside of their image or have no extent' in remarks
    assert [entry['id'] for entry in content['annotations']] == [1, 3, 4, 5, 6, 7, 8]


IDS = {
    'from zero': lambda entry: entry['id'] - 1,  # which pycocotools takes for no match
    'per image': lambda entry: (entry['id'] - 1) % 2 + 1,
    'none': None,
}


@pytest.mark.parametrize('kind', IDS)
def test_annotation_ids_are_numbered_anew(kind, read):
    _, content, remarks = read(change_entries(id=IDS[kind]))
    assert [entry['id'] for entry in content['annotations']] == list(range(1, 9))
    assert 'numbered anew' in remarks


def test_text_ids_of_images_and_categories(read):
    def change(content):
        for name, key in (('images', 'image_id'), ('categories', 'category_id')):
            for entry in content[name]:
                entry['id'] = f'x{entry["id"]}'
            for entry in content['annotations']:
                entry[key] = f'x{entry[key]}'

    _, content, _ = read(change)
    assert [image['id'] for image in content['images']] == [1, 2, 3, 4]
    assert [entry['category_id'] for entry in content['annotations']] == [1, 2] * 4


@pytest.mark.parametrize('area', [None, 0, -1, 'x'])
def test_what_is_missing_is_filled_in(read, area):
    _, content, remarks = read(change_entries(iscrowd=None, area=area))
    assert ('8 of 8 areas are not above 0' in remarks) == (area is not None)
    assert {(entry['iscrowd'], entry['area']) for entry in content['annotations']} == {(0, 21 * 21)}
    _, content, _ = read(change_entries(ignore=1, area=area))
    assert {(entry['iscrowd'], entry['area']) for entry in content['annotations']} == {(1, 21 * 21)}


def test_polygons_that_enclose_nothing_are_left_out(read):
    good = [1, 1, 9, 1, 9, 9]

    def change(content):
        for i, bad in enumerate(([1, 1, 9, 9], [1, 1, 9, 1, 9], [])):
            content['annotations'][i]['segmentation'] = [bad]
        content['annotations'][3]['segmentation'] = [good, [1, 1]]

    _, content, remarks = read(change)
    assert '3 of 8 masks have no polygon of three points' in remarks
    assert content['annotations'][0]['segmentation'] == [good]
    assert read(change, with_masks=False)[0], 'of no matter to boxes alone'


@pytest.mark.parametrize('compressed', [True, False])
def test_run_lengths(read, compressed):
    mask = np.zeros((64, 64), np.uint8)
    mask[5:9, 3:20] = 1
    runs = mask_utils.encode(np.asfortranarray(mask))
    runs['counts'] = runs['counts'].decode()
    if not compressed:
        flat = np.flatnonzero(np.diff(mask.ravel('F'))) + 1
        runs['counts'] = np.diff([0, *flat, mask.size]).tolist()
    assert read(change_entries(segmentation=runs))[0]


def test_counts_of_training(read, tmp_path):
    _, content, _ = read()
    content['annotations'][0]['iscrowd'] = 1
    content['images'][3]['height'] = 20
    settings = dict(filter_cfg=dict(min_size=32, filter_empty_gt=True))
    count, (said,) = count_training('x.json', content, ['a', 'b'], settings)
    assert count == 3
    assert '1 images below 32 pixels' in said
    assert '1 boxes of a crowd' in said
    for indices, expected in ((2, 2), (-1, 1), ([0, 2], 2), (None, 4)):
        assert count_training('x.json', content, ['a', 'b'], dict(indices=indices))[0] == expected
    with pytest.raises(ValueError, match='no box is left to train on, of 4 images: 4 images below'):
        count_training('x.json', content, ['a'], dict(filter_cfg=dict(min_size=99)))


def test_classes_that_a_file_lacks(tmp_path):
    write_coco(tmp_path, lambda content: content.setdefault('info', dict(note='"categories": []')))
    dataset = dict(data_root=str(tmp_path), ann_file='annotations/train.json')
    check_categories(dataset, ('a', 'b'))
    check_categories(dict(dataset, ann_file='none.json'), ('cat',))  # said when it is opened
    says = r'train\.json has no category for 2 of the 3 classes \(cat, dog\); it has a, b'
    with pytest.raises(ValueError, match=says):
        check_categories(dataset, ('cat', 'a', 'dog'))


MENDED = {  # a change of a plain config's file -> what is said, None: it is used itself
    'nothing': (lambda content: None, None),
    'ids from 0': (change_entries(id=lambda e: e['id'] - 1), 'below 1; they are numbered anew'),
    'the same id': (change_entries(id=7), 'numbered anew'),
    'no iscrowd': (change_entries(iscrowd=None), ''),
    'flat masks': (_set('annotations', 'segmentation', [[]]), '1 of 8 masks have no polygon'),
    'tiny boxes': (_set('annotations', 'bbox', [1, 1, 0.5, 0.5]), None),  # as COCO's
    'no annotations': (lambda content: content.update(annotations=[]), None),
}


@pytest.mark.parametrize('kind', MENDED)
def test_files_of_plain_configs(kind, tmp_path, monkeypatch):
    monkeypatch.setenv('COC_MM_CACHE', str(tmp_path / 'cache'))
    change, says = MENDED[kind]
    file = write_coco(tmp_path, change, splits=('train',)) / 'annotations' / 'train.json'
    before = file.read_bytes()
    data = dict(type='CocoDataset', data_root=str(tmp_path), ann_file='annotations/train.json')
    wrapped = dict(type='RepeatDataset', dataset=dict(data, pipeline=[dict(with_mask=True)]))
    config = Config(
        dict(
            train_dataloader=dict(dataset=wrapped),
            val_dataloader=dict(dataset=data),
            test_dataloader=None,
            val_evaluator=[dict(type='CocoMetric', ann_file=str(file)), dict(type='X')],
        )
    )
    remarks = mend_plain(config)
    used = {
        config.train_dataloader.dataset.dataset.ann_file,
        config.val_dataloader.dataset.ann_file,
        config.val_evaluator[0].ann_file,
    }
    assert file.read_bytes() == before
    if says is None:
        assert (used, remarks) == ({'annotations/train.json', str(file)}, [])
        monkeypatch.setattr('coc_mm.datasets.coco._is_sound', None)  # read once
        assert mend_plain(config) == []
        return
    assert says in '\n'.join(remarks)
    (copy,) = used
    entries = json.loads(Path(copy).read_text())['annotations']
    assert [entry['id'] for entry in entries][:2] == [1, 2 if len(entries) == 8 else 3]
    assert {entry['iscrowd'] for entry in entries} == {0}
