"""Boxes and polygons in the layout of each tool, as they come to training."""

import numpy as np
import pytest
from exported_data import (
    BOX,
    cvat,
    detection_csv,
    labelme,
    text,
    via,
    voc,
    yolo,
    yolo_beside,
    yolo_of_cvat,
    yolo_of_label_studio,
)
from own_data import BOXES, dataset, paths, resolved

# Who writes, and what comes out: format, classes, images of training and validation, annotations
# of both, and the first box.
FORMATS = {
    'yolo': (yolo, 'yolo', ['cat', 'dog'], (2, 2), (1, 1), BOX),
    'yolo, polygons': (
        lambda root: yolo(root, 'images/{}', 'labels/{}', polygon=True),
        *('yolo', ['cat', 'dog'], (2, 2), (1, 1), BOX),
    ),
    'yolo of CVAT': (yolo_of_cvat, 'yolo', ['cat', 'dog'], (2, 2), (1, 1), BOX),
    'voc': (voc, 'voc', ['cat', 'dog'], (2, 1), (2, 1), BOX),
    'yolo beside, names in a dict, boxes and polygons': (
        yolo_beside,
        *('yolo', ['cat', 'dog'], (1, 1), (2, 2), BOX),
    ),
    'voc, beside': (lambda root: voc(root, '', ''), 'voc', ['cat', 'dog'], (2, 1), (2, 1), BOX),
    'cvat': (cvat, 'cvat', ['dog', 'cat'], (1, 1), (2, 2), BOX),
    'labelme': (labelme, 'labelme', ['bit', 'cat', 'dog'], (1, 1), (4, 4), BOX),
    'via 1': (via, 'via', ['object'], (2, 2), (2, 2), BOX),
    'via 2': (lambda root: via(root, 2), 'via', ['dog'], (2, 2), (2, 2), BOX),
    'csv': (detection_csv, 'csv', ['dog'], (2, 2), (2, 2), BOX),
    'csv without a header': (
        lambda root: detection_csv(root, False),
        *('csv', ['dog'], (2, 2), (2, 2), BOX),
    ),
}


@pytest.mark.parametrize('kind', FORMATS)
def test_formats(tmp_path, kind):
    write, name, classes, images, annotations, box = FORMATS[kind]
    write(tmp_path)
    before = sorted(tmp_path.rglob('*'))
    cfg, report = resolved(BOXES, tmp_path)
    assert f'{tmp_path}: {name}: train (' in report or 'held out (1 images' in report
    assert cfg.classes == classes
    loaders = 'train_dataloader', 'val_dataloader'
    sets = [dataset(cfg, loader, filter_cfg=None) for loader in loaders]
    assert tuple(map(len, sets)) == images
    found = [[x for i in range(len(d)) for x in d.get_data_info(i)['instances']] for d in sets]
    assert tuple(map(len, found)) == annotations
    np.testing.assert_allclose(found[0][0]['bbox'], box, atol=1e-4)
    assert not set(paths(sets[0])) & set(paths(sets[1]))
    assert sorted(tmp_path.rglob('*')) == before, 'nothing is written or renamed'


def test_shapes_of_labelme_and_cvat(tmp_path):
    labelme(tmp_path / 'a')
    cfg, report = resolved(BOXES, tmp_path / 'a')
    assert '2 annotations of the kind line' in report
    boxes = [x['bbox'] for x in dataset(cfg).get_data_info(0)['instances']]
    np.testing.assert_allclose(boxes[1:], [[30, 20, 50, 40], BOX, [10, 20, 13, 25]])
    cvat(tmp_path / 'b')
    cfg, report = resolved(BOXES, tmp_path / 'b')
    assert '2 annotations of the kind points' in report
    assert dataset(cfg).get_data_info(0)['instances'][1]['bbox'] == [8, 12, 12, 14]


def test_yolo_of_label_studio(tmp_path):
    yolo_of_label_studio(tmp_path)
    assert resolved(BOXES, tmp_path, fold='2/2')[0].classes == ['cat', 'dog']


WRONG = {
    'words': ('cat on a mat', r'0\.txt, line 1 is no YOLO label: cat on a mat'),
    'pixels': ('1 30 40 40 40', 'as shares of the image'),
    'a class too many': ('2 0.3 0.4 0.4 0.4', r"is of class 2; the 2 names are \['cat', 'dog'\]"),
}


@pytest.mark.parametrize('kind', WRONG)
def test_wrong_labels_are_named(tmp_path, kind):
    row, says = WRONG[kind]
    yolo(tmp_path)
    text(tmp_path / 'train/labels/0.txt', row)
    with pytest.raises(ValueError, match=says):
        resolved(BOXES, tmp_path)


def test_a_format_is_chosen(tmp_path):
    yolo(tmp_path)
    with pytest.raises(ValueError, match=r'known here \(voc\); it holds \.jpg \(4\), \.txt \(4\)'):
        resolved(BOXES, tmp_path, format='voc')
    with pytest.raises(ValueError, match='format=xyz: one of coco, yolo'):
        resolved(BOXES, tmp_path, format='xyz')
