"""The benchmark tool as users run it, and what it refuses."""

import json

import pytest
import torch

TOOL = 'analysis_tools/benchmark'


def test_figures(projects, tool, capsys, tmp_path):
    """Of a classifier with weights, and of a detector in training with every flag."""
    project, out = projects['mmpretrain'], tmp_path / 'out.json'
    argv = (project.config, project.checkpoint, '--shape', 64, '--batch-size', 3, '--rounds', 5)
    assert tool(TOOL)([str(x) for x in (*argv, '--device', 'cpu', '--json', out)]) == 0
    said = capsys.readouterr().out
    assert 'images/s' in said
    assert 'latency p99' in said
    found = json.loads(out.read_text())
    assert found['shape'] == [3, 3, 64, 64]
    assert found['measured'] == 'whole model'
    assert found['threads'] == torch.get_num_threads()
    assert [path.name for path in tmp_path.iterdir()] == ['out.json']
    argv = (projects['mmdet'].config, '--shape', 64, 96, '--rounds', 2, '--device', 'cpu')
    more = ('--training', '--amp', '--backend', 'reference', '--json', out)
    assert tool(TOOL)([str(x) for x in (*argv, *more)]) == 0
    found = json.loads(out.read_text())
    assert found['mode'] == 'training'
    assert found['dtype'] == 'bfloat16'
    assert found['backend'] == 'reference'
    assert found['shape'] == [1, 3, 64, 96]
    assert found['measured'] == 'backbone and neck'


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
