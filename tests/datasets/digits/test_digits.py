import hashlib
import subprocess
import sys

import numpy as np
import pytest
from mmengine.registry import DATASETS, DefaultScope

from coc_mm.datasets import DigitsDataset, load_digits_split


def test_split_is_disjoint_complete_and_stratified():
    (train, train_labels, train_at), (test, test_labels, test_at) = map(
        load_digits_split, ('train', 'test')
    )
    assert sorted([*train_at, *test_at]) == list(range(1797))
    assert train.shape == (1347, 8, 8)
    assert test.shape == (450, 8, 8)
    share = np.bincount(test_labels) / (np.bincount(test_labels) + np.bincount(train_labels))
    assert share.shape == (10,)
    assert np.abs(share - 0.25).max() < 0.005


def test_split_never_changes():
    # The published figures hold for this split: another one is another benchmark.
    positions = load_digits_split('test')[2].astype('<i8').tobytes()
    assert hashlib.sha256(positions).hexdigest()[:16] == '78d5b4207a8505a6'


def test_images_are_scikit_learns():
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels, positions = load_digits_split('test')
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(np.rint(images * (16 / 255)), digits.images[positions])
    np.testing.assert_array_equal(labels, digits.target[positions])


def test_dataset_feeds_a_stock_pipeline():
    pytest.importorskip('mmpretrain')
    config = dict(
        type='coc_mm.DigitsDataset',
        split='test',
        test_mode=True,
        pipeline=[dict(type='Resize', scale=32), dict(type='PackInputs')],
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = DATASETS.build(config)
    assert len(dataset) == 450
    assert dataset.metainfo['classes'] == tuple('0123456789')
    labels = dataset.get_gt_labels()
    for index in (0, 7, 449):
        sample = dataset[index]
        assert sample['inputs'].shape == (3, 32, 32)
        assert sample['data_samples'].gt_label.item() == labels[index]
        assert sample['data_samples'].img_shape == (32, 32)
        assert dataset.get_cat_ids(index) == [labels[index]]


def test_dataset_works_in_wrappers():
    pytest.importorskip('mmpretrain')
    config = dict(
        type='ClassBalancedDataset',
        oversample_thr=0.2,
        dataset=dict(type='coc_mm.DigitsDataset', pipeline=[]),
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = DATASETS.build(config)
    assert len(dataset) > 1347  # every class is rarer than the threshold


def test_samples_are_copies():
    dataset = DigitsDataset('train', serialize_data=False)
    dataset[0]['img'][:] = 7
    assert not (dataset[0]['img'] == 7).all()


def test_wrong_split_is_named():
    with pytest.raises(ValueError, match="train, test, got 'val'"):
        DigitsDataset('val')


def test_import_needs_no_task_library():
    code = (
        'import sys\n'
        'for name in ("mmpretrain", "mmdet", "mmseg", "sklearn"): sys.modules[name] = None\n'
        'import coc_mm.datasets\n'
        'from mmengine.registry import DATASETS\n'
        'assert DATASETS.get("coc_mm.DigitScenesCoco") is not None\n'
        'try: DATASETS.build(dict(type="coc_mm.DigitsDataset"))\n'
        'except ImportError as error: print(error)\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'pip install scikit-learn' in done.stdout
