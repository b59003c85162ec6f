"""Tests with real runs in this process."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from tiny_projects import write_project

from coc_mm.apis.start import build_model
from coc_mm.checkpoints import load
from coc_mm.checkpoints.safe_pickle import read_file


def test_a_checkpoint_is_read_once(run, projects, monkeypatch):
    read = []
    monkeypatch.setattr(load, 'read_file', lambda *args: read.append(args[0]) or read_file(*args))
    run('test', projects['mmpretrain'], projects['mmpretrain'].checkpoint)
    assert read == [str(projects['mmpretrain'].checkpoint)]
    option = f'load_from={projects["mmpretrain"].checkpoint}'
    run('train', projects['mmpretrain'], '--no-validate', '--cfg-options', option)
    assert len(read) == 2


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmseg'])
def test_test_time_augmentation(run, projects, logs, scope):
    run('test', projects[scope], projects[scope].checkpoint, '--tta')
    assert {'mmpretrain': 'accuracy/top1', 'mmseg': 'mIoU'}[scope] in logs()


def test_test_time_augmentation_of_boxes(run, tmp_path, logs):
    path = write_project(tmp_path / 'project', 'mmdet')
    boxes = (
        "model['roi_head'].pop('mask_head')\nmodel['roi_head'].pop('mask_roi_extractor')\n"
        "val_evaluator['metric'] = 'bbox'\n"
    )
    path.write_text(path.read_text() + boxes)
    torch.save(build_model(Config.fromfile(path)).state_dict(), 'boxes.pth')
    project = SimpleNamespace(config=path)
    run('test', project, 'boxes.pth', '--tta', '--out', 'boxes.pkl')
    assert 'bbox_mAP' in logs()
    assert Path('boxes.pkl').stat().st_size > 0
