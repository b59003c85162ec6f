"""The tools as subprocesses, once per library."""

import pickle

import pytest
import torch
from tiny_projects import SCOPES

METRIC = {'mmpretrain': 'accuracy/top1', 'mmdet': 'coco/segm_mAP_50', 'mmseg': 'mIoU'}


def _text(run):
    return run.stdout + run.stderr


@pytest.mark.parametrize('scope', SCOPES)
def test_train_writes_a_checkpoint_and_a_metric(runs, scope):
    run = runs[scope]
    assert run.train.returncode == 0, _text(run.train)
    assert (run.work_dir / 'epoch_1.pth').is_file()
    assert (run.work_dir / f'tiny_{scope}.py').is_file()
    assert METRIC[scope] in _text(run.train)


@pytest.mark.parametrize('scope', SCOPES)
def test_resume_continues_where_training_stopped(runs, scope):
    run = runs[scope]
    assert run.resume.returncode == 0, _text(run.resume)
    assert f'resume: continuing from {run.work_dir / "epoch_1.pth"}' in run.resume.stdout
    assert 'Epoch(train) [2]' in _text(run.resume)
    assert 'Epoch(train) [1]' not in _text(run.resume)
    first, second = (
        torch.load(run.work_dir / f'epoch_{n}.pth', weights_only=False)['meta'] for n in (1, 2)
    )
    assert (first['epoch'], second['epoch']) == (1, 2)
    assert second['iter'] == 2 * first['iter']


@pytest.mark.parametrize('scope', SCOPES)
def test_test_reports_metrics_and_writes_predictions(runs, scope):
    run = runs[scope]
    assert run.test.returncode == 0, _text(run.test)
    assert METRIC[scope] in _text(run.test)
    if scope == 'mmseg':
        assert sorted(path.name for path in run.out.iterdir()) == ['0.png', '1.png']
    else:
        predictions = pickle.loads(run.out.read_bytes())
        assert len(predictions) == {'mmpretrain': 4, 'mmdet': 2}[scope]


@pytest.mark.parametrize('scope', SCOPES)
def test_show_dir_gets_pictures(runs, scope):
    run = runs[scope]
    # mmdet counts the folder from its log folder, as its own tool says.
    top = run.folder / ('tested' if scope == 'mmdet' else 'shown')
    pictures = [path for path in top.rglob('*.png') if path.stat().st_size > 0]
    assert pictures, _text(run.test)
