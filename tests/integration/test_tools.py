"""The tools as subprocesses: once per library, and the quickstart, shrunk."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
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


ROOT = Path(__file__).resolve().parents[2]
QUICK_SIZES = dict(classification=(64, 20, 20), detection=(8, 4, 6), segmentation=(8, 4, 6))
SHRUNK = [
    *(f'{name}.train_cfg.max_epochs=1' for name in QUICK_SIZES),
    *(
        f'{name}.{part}_dataloader.dataset.indices={size}'
        for name, sizes in QUICK_SIZES.items()
        for part, size in zip(('train', 'val', 'test'), sizes, strict=True)
    ),
]
QUICK_METRICS = dict(
    classification={'top1'}, detection={'bbox_mAP_50', 'segm_mAP_50'}, segmentation={'mIoU'}
)


def _quickstart(folder, *arguments):
    command = [sys.executable, str(ROOT / 'tools' / 'quickstart.py'), *arguments]
    done = subprocess.run(
        [*command, '--work-dir', 'runs', '--cfg-options', *SHRUNK],
        env={**os.environ, 'COLUMNS': '200', 'PYTHONPATH': str(ROOT)},
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(1200)
def test_quickstart_from_data_to_pictures(tmp_path):
    for library in ('mmpretrain', 'mmdet', 'mmseg'):
        pytest.importorskip(library)
    out = _quickstart(tmp_path)
    assert 'after epoch 1: top1' in out
    summary = json.loads((tmp_path / 'runs' / 'summary.json').read_text())
    assert set(summary) == set(QUICK_METRICS)
    for name, metrics in QUICK_METRICS.items():
        assert metrics <= set(summary[name])
        assert all(0 <= summary[name][metric] <= 100 for metric in metrics)
        assert summary[name]['seconds'] > 0
    assert f'{summary["classification"]["top1"]:.2f} %' in out
    pictures = sorted((tmp_path / 'runs' / 'pictures').iterdir())
    assert {path.stem for path in pictures} == {*QUICK_METRICS, 'training', 'clusters'}
    for path in pictures:
        pixels = cv2.imread(str(path))
        assert min(pixels.shape[:2]) > 200
        assert pixels.std() > 20  # something is drawn
    drawn = [path.stat().st_mtime_ns for path in pictures]

    out = _quickstart(tmp_path)
    assert out.count('reusing the finished run') == 3
    assert json.loads((tmp_path / 'runs' / 'summary.json').read_text()) == summary
    assert [path.stat().st_mtime_ns for path in pictures] == drawn
