"""One stage of the quickstart for real, shrunk: training, test, summary, pictures, reuse."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

ROOT = Path(__file__).resolve().parents[1]
SHRUNK = [
    'classification.train_cfg.max_epochs=1',
    'classification.train_dataloader.dataset.indices=64',
    'classification.val_dataloader.dataset.indices=20',
    'classification.test_dataloader.dataset.indices=20',
]


def run(folder, *arguments):
    """Run the tool in a folder; fail with its output unless it succeeds."""
    command = [sys.executable, str(ROOT / 'tools' / 'quickstart.py'), 'classification']
    done = subprocess.run(
        [*command, '--work-dir', 'runs', *arguments],
        cwd=folder,
        env={**os.environ, 'COLUMNS': '200', 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_classification_from_data_to_pictures(tmp_path):
    pytest.importorskip('mmpretrain')
    out = run(tmp_path, '--cfg-options', *SHRUNK)
    assert 'after epoch 1: top1' in out
    summary = json.loads((tmp_path / 'runs' / 'summary.json').read_text())
    assert set(summary) == {'classification'}
    assert 0 <= summary['classification']['top1'] <= 100
    assert summary['classification']['seconds'] > 0
    assert f'{summary["classification"]["top1"]:.2f} %' in out
    pictures = sorted((tmp_path / 'runs' / 'pictures').iterdir())
    assert [path.name for path in pictures] == ['classification.png', 'training.png']
    for path in pictures:
        pixels = cv2.imread(str(path))
        assert min(pixels.shape[:2]) > 200
        assert pixels.std() > 20  # something is drawn
    drawn = [path.stat().st_mtime_ns for path in pictures]

    out = run(tmp_path, '--cfg-options', *SHRUNK)
    assert 'reusing the finished run' in out
    assert json.loads((tmp_path / 'runs' / 'summary.json').read_text()) == summary
    assert [path.stat().st_mtime_ns for path in pictures] == drawn
