"""The tools as subprocesses, once per library."""

import pickle

import pytest
import torch
from tiny_projects import SCOPES

METRIC = {'mmpretrain': 'accuracy/top1', 'mmdet': 'coco/segm_mAP_50', 'mmseg': 'mIoU'}


def _text(run):
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


@pytest.mark.parametrize('scope', SCOPES)
def test_train_resume_test(runs, scope):
    run = runs[scope]
    assert METRIC[scope] in _text(run.train)
    assert (run.work_dir / f'tiny_{scope}.py').is_file()
    resumed = _text(run.resume)
    assert f'resume: continuing from {run.work_dir / "epoch_1.pth"}' in resumed
    assert 'Epoch(train) [2]' in resumed
    assert 'Epoch(train) [1]' not in resumed
    first, second = (
        torch.load(run.work_dir / f'epoch_{n}.pth', weights_only=False)['meta'] for n in (1, 2)
    )
    assert (first['epoch'], second['epoch']) == (1, 2)
    assert second['iter'] == 2 * first['iter']
    assert METRIC[scope] in _text(run.test)
    if scope == 'mmseg':
        assert sorted(path.name for path in run.out.iterdir()) == ['0.png', '1.png']
    else:
        assert len(pickle.loads(run.out.read_bytes())) == dict(mmpretrain=4, mmdet=2)[scope]
    # mmdet counts the folder from its log folder, as its own tool says.
    top = run.folder / ('tested' if scope == 'mmdet' else 'shown')
    assert [path for path in top.rglob('*.png') if path.stat().st_size > 0]
