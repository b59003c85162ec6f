"""A test that writes its predictions as data."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from coc_mm.apis.dump_predictions import DumpPredictions
from coc_mm.apis.predictions import encode_masks

MASKS = np.zeros((2, 6, 8), bool)
MASKS[0, :2], MASKS[1, :, 3] = True, True


def sample(masks):
    boxes = torch.tensor([[0.0, 0, 8, 2], [3, 0, 4, 6]])
    found = dict(bboxes=boxes, labels=torch.tensor([1, 7]), scores=torch.tensor([0.5, 0.25]))
    return dict(img_path='a/b.png', ori_shape=(6, 8), pred_instances=found | dict(masks=masks))


@pytest.mark.parametrize('masks', [torch.from_numpy(MASKS), encode_masks(MASKS)])
def test_detections(masks, tmp_path):
    for name in ('x.json', 'x.csv'):
        metric = DumpPredictions(str(tmp_path / name))
        metric.dataset_meta = dict(classes=('cat', 'dog'))
        metric.process({}, [sample(masks)])
        assert metric.evaluate(1) == {}
    (record,) = json.loads((tmp_path / 'x.json').read_text())
    assert (record['image'], record['height'], record['width']) == ('a/b.png', 6, 8)
    assert [row['label'] for row in record['predictions']] == ['dog', '7']
    assert [row['segmentation'] for row in record['predictions']] == encode_masks(MASKS)
    rows = list(csv.DictReader((tmp_path / 'x.csv').read_text().splitlines()))
    assert [(row['width'], row['mask_pixels']) for row in rows] == [('8.0', '16'), ('1.0', '6')]


def test_by_the_tool(tool, projects, tmp_path):
    project = projects['mmpretrain']
    argv = [str(project.config), str(project.checkpoint), '--out', 'found.json']
    assert tool('test')(argv) == 0
    records = json.loads(Path('found.json').read_text())
    assert all(Path(record['image']).is_file() for record in records)
    assert all(sum(row['score'] for row in r['predictions']) > 0.99 for r in records)
