"""Official checkpoints through the tools into the libraries' inference functions."""

import golden
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmpretrain import ImageClassificationInferencer

from coc_mm.apis.convert import convert_checkpoint
from coc_mm.apis.infer import load_model
from coc_mm.apis.model_zoo import config_of, find_entry, get_model
from coc_mm.apis.start import build_model
from coc_mm.checkpoints.load import load_checkpoint_safely

CONVERT = 'model_converters/official_to_coc_mm'


DENSE = {'mmdet': 'mask-rcnn_coc-s-c4_fpn_1x_coco', 'mmseg': 'fpn_coc-s-c4_4xb4-80k_ade20k-512x512'}


def published_dense(scope, path, size='small', layout='released'):
    """Save a dense model as mmdet 2.x and mmseg 0.x did: heads of today, official backbone."""
    model = build_model(config_of(DENSE[scope].replace('coc-s-', f'coc-{size[0]}-')))
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith('backbone.')}
    backbone = golden.in_layout(layout, golden.official_state_dict(f'{size}_dense'))
    weights.update({f'backbone.{k}': v.float() for k, v in backbone.items()})
    meta = dict(
        CLASSES=('person',),
        time='Mon Mar  6 10:20:30 2023',
        config=f"model = dict(backbone=dict(type='context_cluster_{size}_feat7'))",
        hook_msgs={},
    )
    torch.save(dict(meta=meta, state_dict=weights, optimizer={}), path)
    return weights


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_classifier_computes_what_the_official_one_does(tool, official_tiny, suffix, capsys):
    target = official_tiny.with_name(f'ours.{suffix}')
    assert tool(CONVERT)([str(official_tiny), str(target)]) == 0
    assert 'denominator: similarity (assumed' in capsys.readouterr().out
    model = get_model('coc-tiny_8xb128_in1k', pretrained=target)
    assert model._dataset_meta['classes'][0].startswith('tench')
    expected = golden.load('coc_tiny_224x224')
    image = golden.image(expected['input_shape'], expected['seed'])
    # The file keeps the precision of the source; loading into float32 rounds.
    model.double().load_state_dict(load_checkpoint_safely(target)['state_dict'])
    with torch.inference_mode():
        logits = model(image, mode='tensor').numpy()
    np.testing.assert_allclose(logits, expected['logits'], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('layout', golden.OTHER_NAMES)
def test_official_files_are_used_as_they_are(layout, tmp_path):
    formula = '' if layout == 'released' else '_count_denominator'
    expected = golden.load(f'coc_tiny{formula}_224x224')
    weights = golden.official_state_dict('coc_tiny', int(expected.get('salt', 0)))
    path = tmp_path / 'coc_tiny.pth'
    torch.save(dict(state_dict=golden.in_layout(layout, weights)), path)
    image = golden.image(expected['input_shape'], expected['seed'])
    for model in (
        get_model('coc-tiny_8xb128_in1k', pretrained=path),
        load_model(config_of('coc-tiny_8xb128_in1k'), str(path)),
    ):
        model.double().load_state_dict(load_checkpoint_safely(path)['state_dict'])
        with torch.inference_mode():
            logits = model(image, mode='tensor').numpy()
        np.testing.assert_allclose(logits, expected['logits'], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('scope', DENSE)
def test_official_dense_files_are_used_as_they_are(scope, tmp_path):
    path = tmp_path / 'latest.pth'
    weights = published_dense(scope, path, layout='submission')
    model = load_model(config_of(DENSE[scope]), str(path))
    assert model.backbone.proposals == ((7, 7),) * 4
    assert model.backbone.blocks[0][0].mixer.denominator == 'count'
    heads = {k: v for k, v in weights.items() if not k.startswith('backbone.')}
    assert len(heads) > 20
    assert all(torch.equal(model.state_dict()[k], v) for k, v in heads.items())


def test_classifier_in_the_library(tool, official_tiny):
    target = official_tiny.with_name('ours.pth')
    assert tool(CONVERT)([str(official_tiny), str(target), '--denominator', 'count']) == 0
    meta = load_checkpoint_safely(target)['meta']
    config = Config.fromstring(meta['cfg'], '.py')
    assert config.model.backbone.denominator == 'count'
    assert meta['coc_mm']['backbone'] == dict(denominator='count')
    # The record goes before the config, which has the newer denominator.
    model = get_model('coc-tiny_8xb128_in1k', pretrained=str(target))
    assert model.backbone.stages[0].blocks[0].mixer.denominator == 'count'
    inferencer = ImageClassificationInferencer(config, str(target), device='cpu')
    result = inferencer(np.zeros((64, 64, 3), np.uint8))[0]
    assert result['pred_class'] == inferencer.classes[result['pred_label']]


def test_detector(tool, tmp_path, capsys):
    weights = published_dense('mmdet', tmp_path / 'epoch_12.pth')
    target = tmp_path / 'ours.pth'
    assert tool(CONVERT)([str(tmp_path / 'epoch_12.pth'), str(target)]) == 0
    printed = capsys.readouterr().out
    assert 'count (inferred: trained on 2023-03-06' in printed
    assert 'centers per region: 49 (7 x 7)' in printed
    from mmdet.apis import DetInferencer, inference_detector, init_detector

    checkpoint = load_checkpoint_safely(target)
    config = Config.fromstring(checkpoint['meta']['cfg'], '.py')
    model = init_detector(config, str(target), device='cpu')
    assert model.backbone.proposals == ((7, 7),) * 4
    assert model.backbone.stages[0].blocks[0].mixer.denominator == 'count'
    assert model.dataset_meta['classes'][:2] == ('person', 'bicycle')
    assert len(model.dataset_meta['palette']) == 80
    name = 'roi_head.mask_head.conv_logits.weight'
    assert torch.equal(model.state_dict()[name], weights[name])
    model.cfg.test_dataloader.dataset.pipeline[1].scale = (64, 64)
    sample = inference_detector(model, np.zeros((64, 64, 3), np.uint8))
    assert sample.pred_instances.masks.shape[1:] == (64, 64)
    # By file alone, and by name with the file: the config of the name leaves the denominator open.
    inferencer = DetInferencer(weights=str(target), device='cpu', show_progress=False)
    assert inferencer.model.backbone.proposals == ((7, 7),) * 4
    model = DetInferencer(DENSE['mmdet'], str(target), device='cpu', show_progress=False).model
    assert model.backbone.blocks[0][0].mixer.denominator == 'count'


def test_segmentor(tool, tmp_path):
    published_dense('mmseg', tmp_path / 'iter_80000.pth')
    target = tmp_path / 'ours.pth'
    flags = ['--proposals', '2', '--denominator', 'similarity']
    assert tool(CONVERT)([str(tmp_path / 'iter_80000.pth'), str(target), *flags]) == 0
    from mmseg.apis import inference_model, init_model

    config = Config.fromstring(load_checkpoint_safely(target)['meta']['cfg'], '.py')
    model = init_model(config, str(target), device='cpu')
    assert model.backbone.proposals == ((2, 2),) * 4
    assert len(model.dataset_meta['classes']) == len(model.dataset_meta['palette']) == 150
    model.cfg.test_pipeline[1].scale = (64, 64)
    sample = inference_model(model, np.zeros((64, 64, 3), np.uint8))
    assert sample.pred_sem_seg.data.shape == (1, 64, 64)


def convs(*names):
    return {f'{name}.{leaf}' for name in names for leaf in ('weight', 'bias')}


# The names of mmdet 2.x and mmseg 0.x, written down; the models of today are to have the same.
NECK = convs(*(f'neck.{kind}_convs.{i}.conv' for kind in ('lateral', 'fpn') for i in range(4)))


LEAVES = ('conv.weight', *(f'bn.{x}' for x in ('weight', 'bias', 'running_mean', 'running_var')))


HEADS = {
    'mmdet': convs(
        *(f'rpn_head.rpn_{x}' for x in ('conv', 'cls', 'reg')),
        *(f'roi_head.bbox_head.{x}' for x in ('fc_cls', 'fc_reg', 'shared_fcs.0', 'shared_fcs.1')),
        *(f'roi_head.mask_head.convs.{i}.conv' for i in range(4)),
        *(f'roi_head.mask_head.{x}' for x in ('upsample', 'conv_logits')),
    ),
    'mmseg': convs('decode_head.conv_seg')
    | {
        f'decode_head.scale_heads.{level}.{leaf}'
        for level in ('0.0', '1.0', '2.0', '2.2', '3.0', '3.2', '3.4')
        for leaf in (*LEAVES, 'bn.num_batches_tracked')
    },
}


@pytest.mark.parametrize('scope', HEADS)
def test_heads_have_the_names_of_the_older_libraries(scope, tmp_path):
    weights = published_dense(scope, tmp_path / 'published.pth', 'medium')
    heads = {name for name in weights if not name.startswith('backbone.')}
    assert heads == NECK | HEADS[scope]
    # The medium model, which mmseg 0.x may have saved before it counted batches.
    content = torch.load(tmp_path / 'published.pth', weights_only=False)
    for name in [name for name in weights if name.endswith('num_batches_tracked')]:
        del content['state_dict'][name]
    torch.save(content, tmp_path / 'published.pth')
    converted = convert_checkpoint(str(tmp_path / 'published.pth'))
    record = converted['meta']['coc_mm']
    assert record['arch'] == 'medium'
    assert record['backbone'] == dict(denominator='count', proposals=7)
    assert len(converted['state_dict']) > 200


def test_colors_survive_safetensors(tool, tmp_path):
    """JSON has no tuples, and mmdet draws with nothing else."""
    published_dense('mmdet', tmp_path / 'epoch_12.pth')
    target = tmp_path / 'ours.safetensors'
    assert tool(CONVERT)([str(tmp_path / 'epoch_12.pth'), str(target)]) == 0
    from mmdet.apis import DetInferencer

    inferencer = DetInferencer(weights=str(target), device='cpu', show_progress=False)
    inferencer.model.test_cfg.rcnn.score_thr = 0.0
    for step in inferencer.pipeline.transforms:
        if type(step).__name__ == 'Resize':
            step.scale = (64, 64)
    image = np.zeros((64, 64, 3), np.uint8)
    (drawn,) = inferencer(image, return_vis=True, pred_score_thr=0.0)['visualization']
    assert drawn.shape == image.shape
    assert drawn.any(), 'nothing was drawn'


@pytest.mark.parametrize('scope', DENSE)
def test_inferencers_of_dense_models_fetch_by_name(scope, tmp_path, monkeypatch):
    from mmdet.apis import DetInferencer
    from mmseg.apis import MMSegInferencer

    name = DENSE[scope].replace('-c4', '-c49')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('COC_MM_MIRROR', str(tmp_path / 'mirror'))
    file = next(iter(find_entry(name).sources.values()))['File']
    (tmp_path / 'mirror').mkdir()
    weights = published_dense(scope, tmp_path / 'mirror' / file, layout='submission')
    kind = DetInferencer if scope == 'mmdet' else MMSegInferencer
    model = kind(name, device='cpu').model
    assert (tmp_path / 'checkpoints' / f'{name}.pth').is_file()
    assert model.backbone.blocks[0][0].mixer.denominator == 'count'
    heads = {k: v for k, v in weights.items() if not k.startswith('backbone.')}
    assert all(torch.equal(model.state_dict()[k], v) for k, v in heads.items())
