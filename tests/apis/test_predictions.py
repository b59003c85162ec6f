"""Predictions as records and files, against what the libraries themselves give."""

import csv
import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import BaseDataElement, PixelData
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from skimage import data

from coc_mm.apis import predictions as module
from coc_mm.apis.infer import TASKS, load_model
from coc_mm.apis.predictions import Prediction, predict, predict_each, write_predictions
from coc_mm.apis.sources import Picture
from coc_mm.errors import UserError


@pytest.fixture
def load(projects):
    def build(scope):
        project = projects[scope]
        init_default_scope(scope)
        return load_model(Config.fromfile(project.config), str(project.checkpoint))

    return build


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / 'one.png', tmp_path / 'two.png']
    for path, image in zip(paths, (data.chelsea(), data.astronaut()), strict=True):
        cv2.imwrite(str(path), cv2.resize(image, (64, 64))[..., ::-1])
    return [str(path) for path in paths]


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', 'mmseg'])
def test_records_are_what_the_library_says(scope, load, files):
    net = load(scope)
    task = TASKS[scope](net, topk=2, score_thr=0)
    together = predict(net, files, batch_size=2, topk=2, score_thr=0)
    arrays = predict(net, [cv2.imread(x) for x in files], topk=2, score_thr=0)
    assert [x.image for x in together] == ['one.png', 'two.png']
    for path, one, array in zip(files, together, arrays, strict=True):
        sample = task.predict(path)
        assert one.size == (64, 64)
        assert one.indices == array.indices
        np.testing.assert_allclose(one.scores, array.scores, atol=1e-5)
        if scope == 'mmpretrain':
            assert one.scores == pytest.approx(sorted(sample.pred_score.tolist())[::-1], abs=1e-5)
            assert one.indices[0] == int(sample.pred_label)
        elif scope == 'mmdet':
            found = sample.pred_instances
            assert len(one.indices) == len(found) == len(one.masks)
            order = found.scores.argsort(descending=True)
            np.testing.assert_allclose(one.boxes, found.bboxes[order].numpy(), atol=1e-3)
        else:
            np.testing.assert_array_equal(one.segments, sample.pred_sem_seg.data[0].numpy())
            assert sum(one.scores) == pytest.approx(1)
        names = task.names(max(one.indices, default=-1) + 1)
        assert one.labels == [names[i] for i in one.indices]
    assert predict(net, files, topk=1, score_thr=1)[0].rows() is not None


def detections():
    masks = np.zeros((2, 8, 10), bool)
    masks[0, 2:5, 1:4], masks[1, :, :5] = True, True
    boxes = np.array([[1, 2, 4, 5], [0, 0, 5, 8]], np.float32)
    found = Prediction('a/ä.png', (8, 10), [2, 0], ['dog', 'cat'], [0.9, 0.5], boxes, masks)
    return [found, Prediction('b.png', (4, 4), [], [], [], boxes[:0], masks[:0])]


def test_detections_as_coco_json_and_csv(tmp_path):
    paths = write_predictions(detections(), tmp_path, ['coco', 'json', 'csv'])
    assert [x.name for x in paths] == [f'predictions.{x}' for x in ('coco.json', 'json', 'csv')]
    coco = COCO(str(paths[0]))
    results = coco.loadRes(json.loads(paths[0].read_text())['annotations'])
    assert [x['name'] for x in coco.cats.values()] == ['cat', 'dog']
    first = results.anns[1]
    assert first['bbox'] == [1, 2, 3, 3]
    assert coco.cats[first['category_id']]['name'] == 'dog'
    assert mask_util.area(first['segmentation']) == first['area'] == 9
    one, two = json.loads(paths[1].read_text())
    assert (one['image'], one['height'], one['width']) == ('a/ä.png', 8, 10)
    assert one['predictions'][1]['label'] == 'cat'
    assert two['predictions'] == []
    rows = list(csv.DictReader(paths[2].read_text().splitlines()))
    assert [row['mask_pixels'] for row in rows] == ['9', '40']
    assert rows[0]['label'] == 'dog'


def test_masks_as_png(tmp_path):
    segments = np.array([[0, 1], [2, 2]])
    one = Prediction('x/y.jpg', (2, 2), [2, 0, 1], ['c', 'a', 'b'], [0.5, 0.25, 0.25])
    with pytest.raises(UserError, match='what a segmentor predicts'):
        write_predictions([one], tmp_path, ['png'])
    one.segments = segments
    (path,) = write_predictions([one], tmp_path, ['png'])
    assert path == tmp_path / 'masks' / 'x' / 'y.jpg.png'
    np.testing.assert_array_equal(cv2.imread(str(path), -1), segments)


def test_supervision(files):
    sv = pytest.importorskip('supervision')
    found = detections()[0].to_supervision()
    assert isinstance(found, sv.Detections)
    assert found.class_id.tolist() == [2, 0]
    assert found.mask.sum() == 49


def test_one_bad_image_of_a_batch(load):
    """It is told, and the others are predicted."""
    net, told = load('mmpretrain'), []
    good, small = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)[:8, :8]
    pictures = [Picture('a', good), Picture('b', small), Picture('c', good), Picture('d', '/no')]
    found = predict_each(
        TASKS['mmpretrain'](net), pictures, 3, lambda x, error: told.append((x.name, str(error)))
    )
    assert [x.picture.name for x in found] == ['a', 'c']
    assert [name for name, _ in told] == ['b', 'd']
    assert '32 x 32' in told[0][1]
    with pytest.raises(ValueError, match='32 x 32'):
        predict(net, [small])


def test_a_name_needs_weights(monkeypatch):
    asked = []
    monkeypatch.setattr(module, 'get_model', lambda *given, **more: asked.append((given, more)))
    with pytest.raises(AttributeError):
        predict('coc-tiny_8xb128_in1k', 'x.png')
    assert asked == [(('coc-tiny_8xb128_in1k',), dict(pretrained=True))]


def test_panoptic_segments_are_of_classes():
    found = PixelData(sem_seg=torch.tensor([[[1001, 2001, 0], [2, 2, 2]]]))  # 2: of no class
    names = ['cat', 'sky']
    model = SimpleNamespace(dataset_meta=dict(classes=names))
    task = SimpleNamespace(model=model, names=lambda count: names[:count])
    sample = BaseDataElement(pred_panoptic_seg=found)
    record = module._record(task, 'x.png', (2, 3), sample)
    assert record.labels == ['sky', 'cat']
    assert record.scores == pytest.approx([2 / 6, 1 / 6])
    assert record.segments.tolist() == [[1, 1, 0], [2, 2, 2]]
