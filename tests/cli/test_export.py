"""Exported models of each library beside PyTorch, and what the command refuses."""

import json
from copy import deepcopy
from pathlib import Path

import onnx
import pytest
import torch
from mmengine.config import Config
from torch import nn

from coc_mm.apis import export
from coc_mm.apis.export_check import (
    Exported,
    batch_of,
    check,
    library_outputs,
    load_pictures,
    replaying,
)
from coc_mm.apis.start import build_model
from coc_mm.models import ContextCluster
from coc_mm.models.layers import ContextClusterBlock
from coc_mm.ops.backends.linear_at_centers import ExportableStage

TOOL = 'deployment/export'


def _enliven(model):
    """Give weights that make every half of a block count: layer scales start near zero."""
    for name, p in model.named_parameters():
        if 'layer_scale' in name:
            nn.init.constant_(p, 0.5)
        elif p.dim() > 1:
            nn.init.normal_(p, std=p[0].numel() ** -0.5)
        elif 'norm' in name or 'bias' in name or 'sim_' in name:
            nn.init.normal_(p, mean=p.data.mean().item(), std=0.2)
    return model.eval()


@pytest.fixture
def model(projects):
    """Build the tiny model of a library with livelier weights, folds as given."""

    def build(scope, folds=None):
        config = Config.fromfile(projects[scope].config)
        if folds:
            config.model.backbone.arch.folds = folds
        return _enliven(build_model(config))

    return build


@pytest.mark.parametrize('denominator', ['similarity', 'count'])
@pytest.mark.parametrize(('proposals', 'folds'), [((2, 2), (2, 2)), ((3, 2), (1, 1))])
def test_stage(proposals, folds, denominator):
    """Any size, from regions of one point to regions of unequal size, gives the block's map."""
    block = ContextClusterBlock(8, 2, 4, 2, proposals, folds, denominator=denominator)
    block = _enliven(block).double()
    stage = ExportableStage([export._exportable(block)], proposals, folds).double()
    sizes = [(2, 2), (4, 4), (5, 7), (3, 9), (16, 8)]
    for size in sizes:
        x = torch.randn(2, *size, 8, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(stage(x), block(x))
    if denominator == 'count' or folds == (1, 1):
        return  # tracing is slow, and a whole segmentor is traced below
    free = {0: torch.export.Dim('b', min=1), 1: torch.export.Dim('h', min=4, max=99)}
    free[2] = torch.export.Dim('w', min=4, max=99)
    with torch.no_grad():
        program = torch.export.export(
            *(stage, (torch.randn(2, 6, 7, 8, dtype=torch.float64),)),
            dynamic_shapes=(free,),
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    module = program.module()
    assert not any('scatter' in str(node.target) for node in program.graph.nodes)
    for size in ((4, 4), (5, 7), (16, 8)):
        x = torch.randn(3, *size, 8, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(module(x), block(x))


@pytest.fixture(scope='module')
def exported_file(projects, tmp_path_factory):
    """Export a lively classifier as users do, once per format; return it and the file."""
    made = {}
    net = _enliven(build_model(Config.fromfile(projects['mmpretrain'].config)))

    def export_as(format):
        if format not in made:
            folder = tmp_path_factory.mktemp('exported')
            weights = folder / 'weights.pth'
            torch.save(dict(meta={}, state_dict=net.state_dict()), weights)
            out = folder / 'deep' / f'model{export.SUFFIXES[format]}'
            argv = (projects['mmpretrain'].config, weights, '--format', format, '--shape', 64)
            export.run_export([*map(str, (*argv, '--out', out, '--rounds', 1))])
            made[format] = out
        return net, made[format]

    return export_as


def test_choices_are_replayed(exported_file):
    """Taking PyTorch's own choices changes nothing; another choice changes the map and is seen."""
    net, out = exported_file('torch-export')
    image = batch_of(load_pictures()[:2], (64, 64))
    plain = library_outputs(net, 'mmpretrain', image)[0]
    (found,), choices = Exported('torch-export', out, watched=True)(image)
    torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-4)
    assert len(choices) == 4
    with replaying(choices) as ties:
        same = library_outputs(net, 'mmpretrain', image)[0]
    assert ties.widest < 1e-5
    torch.testing.assert_close(same, found, rtol=1e-4, atol=1e-5)
    with replaying([3 - x for x in choices]) as ties:
        other = library_outputs(net, 'mmpretrain', image)[0]
    assert ties.other > ties.points / 2
    assert ties.widest > 1e-3
    assert (other - plain).abs().max() > 1e-4


@pytest.mark.parametrize('format', ['torch-export', 'onnx'])
def test_classifier(exported_file, capsys, format):
    net, out = exported_file(format)
    said = capsys.readouterr().out
    if said:  # the fixture may have run before
        assert '4 of 4 equal' in said
        assert 'PyTorch' in said
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    exported = Exported(format, out)
    for count in (1, 3, 5):
        pictures = load_pictures() * 2
        image = batch_of(pictures[:count], (64, 64))
        found = exported(image)[0][0]
        assert found.shape == (count, 2)
        torch.testing.assert_close(found.sum(1), torch.ones(count))
        wanted = library_outputs(net, 'mmpretrain', image)[0]
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    if format == 'onnx':
        written = onnx.load(out)
        facts = {prop.key: prop.value for prop in written.metadata_props}
        assert facts['input'].startswith('RGB')
        assert isinstance(json.loads(facts['classes']), list)
        assert [x.name for x in written.graph.input] == ['image']
        assert [x.name for x in written.graph.output] == ['scores']
        assert not any('Scatter' in node.op_type for node in written.graph.node)


def _checked(net, scope, format, path):
    """Export a dense model and hold it against PyTorch in sizes that folds do not divide."""
    deployable = export.DeployModel(net, scope)
    program = export.export_program(deployable, (64, 96))
    if format == 'onnx':
        export.write_onnx(program, deployable.output_names, path, {})
    else:
        torch.export.save(program, path)
    seen = 0
    pictures = load_pictures()
    for shape in ((64, 96), (75, 53)):
        report = check(net, scope, format, path, deployable.output_names, pictures, shape)
        assert report.passed, report.reason
        seen += len(report.rows)
    assert seen == 4
    found = Exported(format, path)(batch_of(pictures[:3], (61, 47)))[0]
    return found


def test_segmentor_onnx(model, tmp_path):
    found = _checked(model('mmseg', (2, 1, 1, 1)), 'mmseg', 'onnx', tmp_path / 'm.onnx')
    assert len(found) == 1
    assert found[0].shape[0] == 3
    assert found[0].shape[2:] == (61, 47)


def test_detector(model):
    """Backbone and neck at sizes that folds do not divide; free sizes are traced above."""
    net = model('mmdet')
    deployable = export.DeployModel(net, 'mmdet')
    for size in ((64, 96), (61, 47)):
        image = batch_of(load_pictures()[:3], size)
        with torch.no_grad():
            found = deployable(image)
        assert len(found) == len(deployable.output_names)
        wanted = library_outputs(net, 'mmdet', image)
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert [tuple(x.shape[2:]) for x in found] == [(15, 11), (8, 6), (4, 3), (2, 2)]


def test_bgr_models_get_bgr(projects):
    """The exported input is RGB also where the model itself was trained on BGR."""
    config = Config.fromfile(projects['mmpretrain'].config)
    config.model.data_preprocessor.to_rgb = False
    net = _enliven(build_model(config))
    image = batch_of(load_pictures()[:1], (64, 64))
    with torch.no_grad():
        found = export.DeployModel(net, 'mmpretrain')(image)[0]
    wanted = library_outputs(net, 'mmpretrain', image)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_least_size():
    """Every stage has more rows than regions at the least size, and no less would do."""
    for folds, least in (((8, 4, 2, 1), 36), ((7, 7, 1, 1), 60), ((1, 1, 1, 1), 36)):
        pairs = [(n, n) for n in folds]
        assert export.least_size(pairs) == least
        rows = least // 4
        for n in folds:
            assert rows > n
            rows = (rows + 1) // 2


def test_a_wrong_file_is_seen(exported_file):
    """A file of other weights fails the check."""
    net, out = exported_file('torch-export')
    other = deepcopy(net)
    other.head.fc.weight.data.neg_()
    rest = ('mmpretrain', 'torch-export', out, ['scores'], load_pictures())
    assert check(net, *rest, (64, 64)).passed
    report = check(other, *rest, (64, 64))
    assert not report.passed
    assert 'differ' in report.reason


def test_refusals(projects, refused, tmp_path, monkeypatch):
    project = projects['mmpretrain']
    rest = ('--format', 'onnx', '--shape', 64)
    out = tmp_path / 'm.onnx'
    given = (project.config, project.checkpoint, *rest)
    refused(TOOL, *given, '--out', 'm.pt2', says=['.onnx file'], leaves=['m.pt2'])
    refused(TOOL, *given, '--out', tmp_path, says=['is a folder'])
    refused(TOOL, 'none.py', project.checkpoint, *rest, says=['none.py', 'does not exist'])
    refused(TOOL, project.config, 'none.pth', *rest, '--out', out, says=['none.pth'], leaves=[out])
    other = projects['mmseg'].checkpoint
    refused(TOOL, project.config, other, *rest, '--out', out, says=['another model'], leaves=[out])
    empty = tmp_path / 'empty'
    empty.mkdir()
    refused(TOOL, *given, '--out', out, '--images', empty, says=['no images'], leaves=[out])
    small = (project.config, project.checkpoint, '--format', 'onnx', '--shape', 8)
    refused(TOOL, *small, '--out', out, says=['--shape', '32'], leaves=[out])
    for bad in (['--format', 'tflite'], ['--format', 'onnx', '--rounds', '0']):
        with pytest.raises(SystemExit) as stopped:
            export.run_export([str(project.config), str(project.checkpoint), *bad])
        assert stopped.value.code == 2

    def fail(*_):
        raise RuntimeError('cannot be traced')

    monkeypatch.setattr(export, 'export_program', fail)
    deep = tmp_path / 'new'
    refused(TOOL, *given, '--out', deep / 'm.onnx', says=['cannot be exported'])
    assert not list(deep.glob('*')), 'something half-written is left'


def test_another_backbone_is_refused(tmp_path, refused):
    config = tmp_path / 'resnet.py'
    config.write_text(
        "default_scope = 'mmpretrain'\n"
        "model = dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=18),\n"
        "    neck=dict(type='GlobalAveragePooling'),\n"
        "    head=dict(type='LinearClsHead', num_classes=2, in_channels=512))\n"
    )
    weights = tmp_path / 'w.pth'
    net = build_model(Config.fromfile(config))
    assert not isinstance(net.backbone, ContextCluster)
    torch.save(dict(meta={}, state_dict=net.state_dict()), weights)
    refused(TOOL, config, weights, '--format', 'onnx', says=['no Context Cluster'])
    assert not Path('work_dirs').exists()
