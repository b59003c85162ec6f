"""Names, heads, inheritance and parts of the config files."""

import ast
import re
from pathlib import Path

import mmdet
import mmpretrain
import mmseg
import pytest
from mmengine.config import Config
from shrunk_configs import CONFIGS, PATHS, name_of

from coc_mm.apis.model_zoo import entries

ARCHS = {'s': 'small', 'm': 'medium'}


def head_of(path):
    return ast.get_docstring(ast.parse(path.read_text()))


def bases_of(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == '_base_':
            value = ast.literal_eval(node.value)
            return [value] if isinstance(value, str) else value
    return []


def levels(path):
    return 1 + max((levels((path.parent / base).resolve()) for base in bases_of(path)), default=0)


@pytest.mark.parametrize('path', PATHS, ids=name_of)
def test_inheritance(path):
    bases = bases_of(path)
    assert bases, 'every config is built from parts or a sibling'
    for base in bases:
        file = (path.parent / base).resolve()
        assert file.is_file()
        assert CONFIGS in file.parents
    assert levels(path) <= 3
    if len(bases) == 1 and not path.stem.endswith('_custom'):
        assert len(path.read_text().splitlines()) - len(head_of(path).splitlines()) <= 15


@pytest.mark.parametrize('path', PATHS, ids=name_of)
def test_opens_with_its_command(path):
    head = re.sub(r'\s*\\\n\s*', ' ', head_of(path))
    name = f'configs/{path.parent.name}/{path.name}'
    gpus = re.search(r'^GPUs: +(\d+), (\d+) images', head, re.MULTILINE)
    assert gpus, 'GPUs and images of each'
    cfg = Config.fromfile(path)
    assert int(gpus[2]) == cfg.train_dataloader.batch_size
    base = cfg.auto_scale_lr.base_batch_size
    if path.stem.endswith('_custom'):
        assert f'python tools/train.py {name} --cfg-options data_root=' in head
        assert cfg.auto_scale_lr.enable
    else:
        assert f'bash tools/dist_train.sh {name} {gpus[1]}\n' in head
        assert int(gpus[1]) * int(gpus[2]) == base


def test_published_results():
    """Each file names the figures that its metafile has, of the paper and of its release."""
    seen = 0
    for path in PATHS:
        found = re.search(
            r'^Published: *(.*?)\nReproduced:', head_of(path), re.DOTALL | re.MULTILINE
        )
        if found is not None:
            figures = entries()[path.stem]['Figures']
            known = [x for kind in ('paper', 'released') for x in (figures[kind] or {}).values()]
            assert [float(x) for x in re.findall(r'\d+\.\d', found[1])] == known, path
            seen += 1
    assert seen == 7 + 6 + 6


@pytest.mark.parametrize('path', PATHS, ids=name_of)
def test_name_agrees_with_contents(path):
    cfg = Config.fromfile(path)
    backbone = cfg.model.backbone
    assert backbone.type == 'coc_mm.ContextCluster'
    fields = path.stem.split('_')
    if path.parent.name == 'classification':
        arch, setting, data = fields
        assert backbone.arch == arch.removeprefix('coc-').replace('-', '_')
        assert data in ('in1k', 'custom')
        assert cfg.default_scope == 'mmpretrain'
        algorithm = 'ImageClassifier'
    else:
        arch, centers = re.search(r'_coc-([sm])-c(\d+)_', path.stem).groups()
        assert backbone.arch == ARCHS[arch]
        assert int(centers) == backbone.get('proposals', 2) ** 2
        assert tuple(backbone.out_indices) == (0, 1, 2, 3)
        init = backbone.get('init_cfg')
        if not path.stem.endswith('_custom'):
            assert init.prefix == 'backbone.'
            assert init.checkpoint == f'checkpoints/coc-{ARCHS[arch]}_8xb128_in1k.pth'
        dense = {'mask-rcnn': 'MaskRCNN', 'cascade-mask-rcnn': 'CascadeRCNN'}
        dense.update(retinanet='RetinaNet', fpn='EncoderDecoder', upernet='EncoderDecoder')
        algorithm = dense[fields[0]]
        head = cfg.model.get('decode_head', {}).get('type')
        assert head == {'fpn': 'FPNHead', 'upernet': 'UPerHead'}.get(fields[0])
        setting = '_'.join(fields[2:])
        assert cfg.default_scope == ('mmseg' if head else 'mmdet')
    assert cfg.model.type == algorithm
    assert ('custom_data' in cfg) == path.stem.endswith('_custom')
    batch = re.search(r'(\d+)xb(\d+)', setting)
    gpus, images = map(int, batch.groups()) if batch else (8, 2)
    assert images == cfg.train_dataloader.batch_size
    assert 'custom_data' in cfg or gpus * images == cfg.auto_scale_lr.base_batch_size
    length = re.search(r'-(\d+)e\b|\b(1x)\b|-(80k)\b', setting)
    if length:
        loop = cfg.train_cfg
        expected = {'1x': 12, '80k': 80000}.get(length[0].lstrip('-'), length[1])
        assert int(expected) == loop.get('max_epochs', loop.get('max_iters'))
    wrapper = cfg.optim_wrapper
    in1k = fields[-1] == 'in1k'
    assert (wrapper.type == 'AmpOptimWrapper') == ('amp' in setting or in1k)
    assert ('layer-decay' in setting) == (
        wrapper.get('constructor') == 'coc_mm.LayerDecayOptimWrapperConstructor'
    )
    assert bool(re.search(r'[-_]cp-', setting)) == backbone.get('with_cp', False)
    strategy = cfg.get('strategy', {}).get('type', '')
    assert ('fsdp' in setting) == ('FSDP' in strategy)
    hooks = [hook.type for hook in cfg.get('custom_hooks', [])]
    assert hooks == (['EMAHook'] if 'ema' in setting else [])


def flatten(node, prefix=''):
    """Flatten a nested config to dotted keys."""
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, (list, tuple)) and any(isinstance(x, (dict, list)) for x in node):
        items = enumerate(node)
    else:
        return {prefix: tuple(node) if isinstance(node, list) else node}
    flat = {}
    for key, value in items:
        flat.update(flatten(value, f'{prefix}.{key}' if prefix else str(key)))
    return flat


SEGMENTOR = 'model.backbone model.pretrained model.decode_head.num_classes '
SEGMENTOR += 'data_preprocessor.size model.data_preprocessor.size '
DETECTOR = 'model.backbone model.neck.in_channels'
# Ours, the package's, the prefixes of the keys in which they differ on purpose.
COUNTERPARTS = {
    'cls_runtime': (mmpretrain, 'default_runtime', 'default_hooks.checkpoint'),
    'det_runtime': (mmdet, 'default_runtime', ''),
    'seg_runtime': (mmseg, 'default_runtime', ''),
    'datasets/imagenet_bs128_coc_224': (
        mmpretrain,
        'datasets/imagenet_bs128_poolformer_small_224',
        # The root has a name; interpolation is random.
        'data_root train_pipeline.1 train_dataloader.dataset.pipeline.1',
    ),
    'datasets/coco_instance': (mmdet, 'datasets/coco_instance', ''),
    'datasets/coco_detection': (mmdet, 'datasets/coco_detection', ''),
    'datasets/ade20k_512x512': (
        mmseg,
        'datasets/ade20k',
        # reduce_zero_label is left to the dataset; ResizeToMultiple, also of augmentation.
        'tta_pipeline train_pipeline.1 train_dataloader.dataset.pipeline.1 test_pipeline '
        'val_dataloader.dataset.pipeline test_dataloader.dataset.pipeline',
    ),
    'models/coc_cls': (
        mmpretrain,
        'models/poolformer/poolformer_s12',
        'model.backbone model.head model.train_cfg',
    ),
    'models/mask-rcnn_coc_fpn': (mmdet, 'models/mask-rcnn_r50_fpn', DETECTOR),
    'models/cascade-mask-rcnn_coc_fpn': (mmdet, 'models/cascade-mask-rcnn_r50_fpn', DETECTOR),
    'models/retinanet_coc_fpn': (
        mmdet,
        'models/retinanet_r50_fpn',
        f'{DETECTOR} find_unused_parameters',
    ),
    'models/fpn_coc': (mmseg, 'models/fpn_r50', SEGMENTOR + 'norm_cfg model.neck.in_channels'),
    'models/upernet_coc': (
        mmseg,
        'models/upernet_r50',
        SEGMENTOR + 'model.decode_head.in_channels model.auxiliary_head.in_channels '
        'model.auxiliary_head.num_classes',
    ),
    'schedules/imagenet_bs1024_adamw_310e': (
        mmpretrain,
        'schedules/imagenet_bs1024_adamw_swin',
        # AMP has a type and a scale.
        'optim_wrapper.type optim_wrapper.loss_scale optim_wrapper.paramwise_cfg.custom_keys '
        'param_scheduler train_cfg.max_epochs',
    ),
    'schedules/coco_1x_adamw': (mmdet, 'schedules/schedule_1x', 'optim_wrapper.optimizer'),
    'schedules/ade20k_80k_adamw': (
        mmseg,
        'schedules/schedule_80k',
        'optim_wrapper.optimizer optimizer optim_wrapper.clip_grad param_scheduler.0.eta_min '
        'auto_scale_lr',
    ),
}


def test_every_part_has_a_counterpart():
    parts = (CONFIGS / '_base_').rglob('*.py')
    names = {str(path.relative_to(CONFIGS / '_base_').with_suffix('')) for path in parts}
    assert names == {*COUNTERPARTS, 'datasets/custom'}


@pytest.mark.parametrize('part', COUNTERPARTS)
def test_parts_agree_with_the_packages(part):
    package, name, purpose = COUNTERPARTS[part]
    ours = flatten(Config.fromfile(CONFIGS / '_base_' / f'{part}.py')._cfg_dict.to_dict())
    file = Path(package.__file__).parent / '.mim' / 'configs' / '_base_' / f'{name}.py'
    theirs = flatten(Config.fromfile(file)._cfg_dict.to_dict())
    keys, none = ours.keys() | theirs.keys(), object()
    differing = {key for key in keys if ours.get(key, none) != theirs.get(key, none)}
    covered = {
        p for p in purpose.split() if any(f'{key}.'.startswith(f'{p}.') for key in differing)
    }
    assert covered == set(purpose.split()), 'a difference on record that is none'
    assert all(any(f'{key}.'.startswith(f'{p}.') for p in covered) for key in differing), differing
