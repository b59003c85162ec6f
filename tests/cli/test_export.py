"""``tools/deployment/export.py``: what it writes and what it refuses."""

import json
from pathlib import Path

import onnx
import pytest
import torch
from mmengine.config import Config

from coc_mm.apis import export
from coc_mm.apis.export_check import Exported, batch_of, library_outputs, load_pictures
from coc_mm.apis.infer import load_model
from coc_mm.apis.start import build_model

TOOL = 'deployment/export'


@pytest.mark.parametrize('format', ['torch-export', 'onnx'])
def test_classifier(tool, projects, tmp_path, capsys, format):
    project = projects['mmpretrain']
    net = load_model(Config.fromfile(project.config), str(project.checkpoint))
    out = tmp_path / 'deep' / f'model{export.SUFFIXES[format]}'
    config = tmp_path / 'resizes.py'
    steps = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=64), dict(type='PackInputs')]
    dataset = dict(dataset=dict(pipeline=steps))
    config.write_text(f'_base_ = {str(project.config)!r}\ntest_dataloader = {dataset}\n')
    argv = (config, project.checkpoint, '--format', format, '--shape', 64, '--out', out)
    assert tool(TOOL)([*map(str, argv), '--rounds', '1']) == 0
    said = capsys.readouterr().out
    assert all(text in said for text in ('4 of 4 equal', 'PyTorch'))
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    exported = Exported(out)
    for count in (1, 3, 5):
        image = batch_of((load_pictures() * 2)[:count], (64, 64))
        found = exported(image)[0][0]
        assert found.shape == (count, 2)
        wanted = library_outputs(net, 'mmpretrain', image)[0]
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    if format == 'onnx':
        written = onnx.load(out)
        facts = {prop.key: prop.value for prop in written.metadata_props}
        assert facts['input'].startswith('RGB')
        assert isinstance(json.loads(facts['classes']), list)
        recorded = json.loads(facts['preprocessing'])
        assert [step['type'] for step in recorded] == ['LoadImageFromFile', 'Resize']
        assert [x.name for x in written.graph.input] == ['image']
        assert [x.name for x in written.graph.output] == ['scores']
        assert not any('Scatter' in node.op_type for node in written.graph.node)


def test_refusals(projects, refused, misused, tmp_path, monkeypatch):
    files = (projects['mmpretrain'].config, projects['mmpretrain'].checkpoint)
    given = (*files, '--format', 'onnx', '--shape', 64)
    out = tmp_path / 'm.onnx'
    refused(TOOL, *given, '--out', 'm.pt2', says=['.onnx file'], leaves=['m.pt2'])
    refused(TOOL, *given, '--out', tmp_path, says=['is a folder'])
    refused(TOOL, *given, '--out', out, '--images', tmp_path, says=['no images'], leaves=[out])
    refused(TOOL, *given, '--out', out, '--shape', 8, says=['--shape', '32'], leaves=[out])
    misused(TOOL, *files, '--format', 'tflite', says='--format')
    misused(TOOL, *given, '--rounds', 0, says='--rounds')

    def fail(*_):
        raise RuntimeError('cannot be traced')

    monkeypatch.setattr(export, 'export_program', fail)
    refused(TOOL, *given, '--out', 'new/m.onnx', says=['cannot be exported'])
    assert not list(Path('new').glob('*')), 'something half-written is left'


def test_another_backbone_is_refused(tmp_path, refused):
    config = tmp_path / 'resnet.py'
    config.write_text(
        "default_scope = 'mmpretrain'\n"
        "model = dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=18),\n"
        "    neck=dict(type='GlobalAveragePooling'),\n"
        "    head=dict(type='LinearClsHead', num_classes=2, in_channels=512))\n"
    )
    net = build_model(Config.fromfile(config))
    torch.save(dict(meta={}, state_dict=net.state_dict()), 'w.pth')
    says = ['no Context Cluster']
    refused(TOOL, config, 'w.pth', '--format', 'onnx', says=says, leaves=['work_dirs'])
