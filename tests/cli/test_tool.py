"""tools/tool.py runs scripts of the three libraries."""

import sys
from pathlib import Path

import pytest


@pytest.fixture
def call(tool, monkeypatch):
    def run(*argv):
        monkeypatch.setattr(sys, 'argv', sys.argv)
        monkeypatch.setattr(sys, 'path', list(sys.path))
        return tool('tool')([str(arg) for arg in argv])

    return run


def test_scripts_are_listed_and_named(call, capsys):
    assert call('mmdet') == 0
    listed = capsys.readouterr().out.splitlines()
    assert {'analysis_tools/confusion_matrix', 'train'} < set(listed)
    assert call('mmdet', 'analysis_tools/confusion_matrx') == 2
    assert 'did you mean analysis_tools/confusion_matrix?' in capsys.readouterr().err


def test_a_script_runs_with_our_model_and_checkpoint(call, projects, capsys):
    project = projects['mmpretrain']
    argv = ('analysis_tools/confusion_matrix', project.config, project.checkpoint)
    assert call('mmpretrain', *argv) == 0
    out = capsys.readouterr().out
    assert 'confusion_matrix/result' in out
    assert sys.argv[0].endswith('confusion_matrix.py')


def test_configs_by_name_and_pictures(call, projects, capsys, tmp_path):
    name = 'coc-tiny_8xb128_in1k'
    assert call('mmpretrain', 'analysis_tools/get_flops', name, '--shape', 64) == 0
    assert 'Params: 5.571M' in capsys.readouterr().out
    script = 'visualization/browse_dataset'
    argv = (projects['mmpretrain'].config, '--not-show', '--output-dir', tmp_path / 'seen')
    assert call('mmpretrain', script, *argv, '--show-number', 2) == 0
    assert len([p for p in Path(tmp_path / 'seen').rglob('*') if p.is_file()]) == 2
