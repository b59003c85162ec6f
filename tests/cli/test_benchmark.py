"""The benchmark tool as users run it, and what it refuses."""

import json

import pytest
import torch
from tool_fixtures import run_tool

TOOL = 'analysis_tools/benchmark'


def test_as_a_process(projects, tmp_path):
    project = projects['mmpretrain']
    argv = (project.config, project.checkpoint, '--shape', 64, '--batch-size', 3)
    done = run_tool(
        TOOL, *argv, '--rounds', 5, '--device', 'cpu', '--json', 'out.json', cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert 'images/s' in done.stdout
    found = json.loads((tmp_path / 'out.json').read_text())
    assert found['shape'] == [3, 3, 64, 64]
    assert found['measured'] == 'whole model'
    assert found['threads'] == 1
    half, most, worst = (found['latency_ms'][name] for name in ('p50', 'p90', 'p99'))
    assert 0 < half <= most <= worst
    assert found['images_per_second'] == pytest.approx(3000 / half, rel=0.01)
    assert [path.name for path in tmp_path.iterdir()] == ['out.json']


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', 'mmseg'])
def test_every_library(projects, tool, scope, capsys, tmp_path):
    """Training, mixed precision and a backend by name, of an untrained model."""
    out = tmp_path / 'out.json'
    argv = (projects[scope].config, '--shape', 64, 96, '--rounds', 2, '--device', 'cpu')
    more = ('--training', '--amp', '--backend', 'reference', '--json', out)
    assert tool(TOOL)([str(x) for x in (*argv, *more)]) == 0
    found = json.loads(out.read_text())
    assert found['mode'] == 'training'
    assert found['dtype'] == 'bfloat16'
    assert found['backend'] == 'reference'
    assert found['shape'] == [1, 3, 64, 96]
    assert ('neck' in found['measured']) == (scope == 'mmdet')
    assert 'latency p99' in capsys.readouterr().out


def test_refusals(projects, refused, tool, tmp_path):
    project = projects['mmpretrain']
    config = project.config
    refused(TOOL, 'none.py', says=['does not exist'])
    refused(TOOL, config, 'none.pth', says=['none.pth'])
    refused(TOOL, config, projects['mmseg'].checkpoint, says=['another model'])
    refused(TOOL, config, '--backend', 'magic', says=['magic', 'fused', 'reference'])
    refused(TOOL, config, '--json', 'no/such/out.json', says=['no/such/out.json'])
    if not torch.cuda.is_available():
        refused(TOOL, config, '--device', 'cuda', says=['--device cuda'])
    for bad in (['--shape', '8'], ['--batch-size', '0'], ['--rounds', '1']):
        with pytest.raises(SystemExit) as stopped:
            tool(TOOL)([str(config), *bad])
        assert stopped.value.code == 2
    assert not list(tmp_path.iterdir())
