"""The benchmark tool as users run it, and what it refuses."""

import json

import torch

TOOL = 'analysis_tools/benchmark'


def test_figures(projects, tool, capsys, tmp_path):
    """Of a classifier with weights, and of a detector in training with every flag."""
    project, out = projects['mmpretrain'], tmp_path / 'out.json'
    argv = (project.config, project.checkpoint, '--shape', 64, '--batch-size', 3, '--rounds', 5)
    assert tool(TOOL)([str(x) for x in (*argv, '--device', 'cpu', '--json', out)]) == 0
    said = capsys.readouterr().out
    assert all(text in said for text in ('images/s', 'latency p99'))
    wanted = dict(shape=[3, 3, 64, 64], measured='whole model', threads=torch.get_num_threads())
    assert json.loads(out.read_text()).items() >= wanted.items()
    assert [path.name for path in tmp_path.iterdir()] == ['out.json']
    argv = (projects['mmdet'].config, '--shape', 64, 96, '--rounds', 2, '--device', 'cpu')
    more = ('--training', '--amp', '--backend', 'reference', '--json', out)
    assert tool(TOOL)([str(x) for x in (*argv, *more)]) == 0
    wanted = dict(mode='training', dtype='bfloat16', backend='reference', shape=[1, 3, 64, 96])
    wanted['measured'] = 'backbone and neck'
    assert json.loads(out.read_text()).items() >= wanted.items()


def test_refusals(projects, refused, misused, tmp_path):
    config = projects['mmpretrain'].config
    refused(TOOL, config, projects['mmseg'].checkpoint, says=['another model'])
    refused(TOOL, config, '--backend', 'magic', says=['magic', 'fused', 'reference'])
    refused(TOOL, config, '--json', 'no/such/out.json', says=['no/such/out.json'])
    for bad in (['--shape', 8], ['--batch-size', 0], ['--rounds', 1]):
        misused(TOOL, config, *bad, says=bad[0])
    assert not list(tmp_path.iterdir())
