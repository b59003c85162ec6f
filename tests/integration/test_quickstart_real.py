"""The quickstart for real, shrunk: training, test, summary, pictures, reuse."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

ROOT = Path(__file__).resolve().parents[2]
SIZES = dict(classification=(64, 20, 20), detection=(8, 4, 6), segmentation=(8, 4, 6))
SHRUNK = [
    *(f'{name}.train_cfg.max_epochs=1' for name in SIZES),
    *(
        f'{name}.{part}_dataloader.dataset.indices={size}'
        for name, sizes in SIZES.items()
        for part, size in zip(('train', 'val', 'test'), sizes, strict=True)
    ),
]
METRICS = dict(
    classification={'top1'}, detection={'bbox_mAP_50', 'segm_mAP_50'}, segmentation={'mIoU'}
)


def run(folder, *arguments):
    command = [sys.executable, str(ROOT / 'tools' / 'quickstart.py'), *arguments]
    done = subprocess.run(
        [*command, '--work-dir', 'runs', '--cfg-options', *SHRUNK],
        env={**os.environ, 'COLUMNS': '200', 'PYTHONPATH': str(ROOT)},
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(1200)
def test_from_data_to_pictures(tmp_path):
    for library in ('mmpretrain', 'mmdet', 'mmseg'):
        pytest.importorskip(library)
    out = run(tmp_path)
    assert 'after epoch 1: top1' in out
    summary = json.loads((tmp_path / 'runs' / 'summary.json').read_text())
    assert set(summary) == set(METRICS)
    for name, metrics in METRICS.items():
        assert metrics <= set(summary[name])
        assert all(0 <= summary[name][metric] <= 100 for metric in metrics)
        assert summary[name]['seconds'] > 0
    assert f'{summary["classification"]["top1"]:.2f} %' in out
    pictures = sorted((tmp_path / 'runs' / 'pictures').iterdir())
    assert {path.stem for path in pictures} == {*METRICS, 'training', 'clusters'}
    for path in pictures:
        pixels = cv2.imread(str(path))
        assert min(pixels.shape[:2]) > 200
        assert pixels.std() > 20  # something is drawn
    drawn = [path.stat().st_mtime_ns for path in pictures]

    out = run(tmp_path)
    assert out.count('reusing the finished run') == 3
    assert json.loads((tmp_path / 'runs' / 'summary.json').read_text()) == summary
    assert [path.stat().st_mtime_ns for path in pictures] == drawn
