import numpy as np
import pytest
from mmengine.registry import DATASETS, DefaultScope

import coc_mm  # noqa: F401 - before mmdet, for mmcv's operators


def build(scope, **config):
    with DefaultScope.overwrite_default_scope(scope):
        return DATASETS.build(config)


def test_stock_coco_dataset_reads_the_scenes(tiny_scenes, tiny_spec):
    mmdet_datasets = pytest.importorskip('mmdet.datasets')
    dataset = build(
        'mmdet',
        type='coc_mm.DigitScenesCoco',
        data_root=str(tiny_scenes),
        spec=vars(tiny_spec),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='PackDetInputs'),
        ],
    )
    assert type(dataset) is mmdet_datasets.CocoDataset
    assert len(dataset) == 8
    assert dataset.metainfo['classes'] == tuple('0123456789')
    visited = 0
    for sample in dataset:
        instances = sample['data_samples'].gt_instances
        assert sample['inputs'].shape == (3, 96, 112)
        boxes = instances.bboxes.tensor.numpy()
        masks = instances.masks.to_ndarray().astype(bool)
        for box, mask in zip(boxes, masks, strict=True):
            rows, cols = np.nonzero(mask)
            tight = [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]
            np.testing.assert_array_equal(box, tight)
            visited += 1
    assert visited >= 3 * 8


def test_stock_segmentation_dataset_reads_the_scenes(tiny_scenes, tiny_spec):
    mmseg_datasets = pytest.importorskip('mmseg.datasets')
    dataset = build(
        'mmseg',
        type='coc_mm.DigitScenesSeg',
        data_root=str(tiny_scenes),
        split='test',
        spec=vars(tiny_spec),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
    )
    assert type(dataset) is mmseg_datasets.BaseSegDataset
    assert len(dataset) == 4
    assert dataset.metainfo['classes'] == ('background', *'0123456789')
    assert len(dataset.metainfo['palette']) == 11
    labels = set()
    for sample in dataset:
        assert sample['inputs'].shape == (3, 96, 112)
        semantic = sample['data_samples'].gt_sem_seg.data
        assert semantic.shape == (1, 96, 112)
        labels |= set(semantic.unique().tolist())
    assert 0 in labels
    assert labels <= set(range(11))


@pytest.mark.parametrize('name', ['DigitScenesCoco', 'DigitScenesSeg', 'DigitsDataset'])
def test_wrong_split_is_named_and_writes_nothing(name, tmp_path):
    with pytest.raises(ValueError, match="train, test, got 'val'"):
        build('mmengine', type=f'coc_mm.{name}', data_root=str(tmp_path / 'x'), split='val')
    assert not list(tmp_path.iterdir())
