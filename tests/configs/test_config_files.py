"""Names, heads, inheritance and parts of the config files."""

import ast
import re
from pathlib import Path

import mmdet
import mmpretrain
import mmseg
import pytest
from mmengine.config import Config
from shrunk_configs import CONFIGS, PATHS, ROOT, name_of

PARTS = sorted((CONFIGS / '_base_').rglob('*.py'))
ARCHS = {'s': 'small', 'm': 'medium'}

# What the paper reports, by the file that reproduces it.
TOP1 = {
    'coc-tiny': (71.8, 73.2),
    'coc-tiny2': (71.7, 72.0),
    'coc-tiny-plain': (73.8,),
    'coc-small': (77.5, 78.1),
    'coc-medium': (81.0, 81.2),
}
BOX_MASK = {
    's-c4': ((35.9, 58.3, 38.3), (33.8, 55.3, 35.8)),
    's-c25': ((37.5, 60.1, 40.0), (35.4, 57.1, 37.9)),
    's-c49': ((37.2, 59.8, 39.7), (34.9, 56.7, 37.0)),
    'm-c4': ((38.6, 61.1, 41.5), (36.1, 58.2, 38.0)),
    'm-c25': ((40.1, 62.8, 43.6), (37.4, 59.9, 40.0)),
    'm-c49': ((40.6, 63.3, 43.9), (37.6, 60.1, 39.9)),
}
MIOU = {'s-c4': 36.6, 's-c25': 36.4, 's-c49': 36.3, 'm-c4': 40.2, 'm-c25': 40.6, 'm-c49': 40.8}


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


VARIANTS = ('amp', 'cp', 'ema', 'fsdp', 'layer-decay', 'retinanet', 'cascade', 'upernet')


def test_variants_take_15_lines():
    found = [path for path in PATHS if any(v in path.stem for v in VARIANTS)]
    found = [path for path in found if not path.stem.endswith('_custom')]
    assert len(found) == 12
    for path in found:
        lines = path.read_text().splitlines()
        assert len(lines) - len(head_of(path).splitlines()) <= 15, path


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
    seen = []
    for path in PATHS:
        found = re.search(
            r'^Published: *(.*?)\nReproduced:', head_of(path), re.DOTALL | re.MULTILINE
        )
        if found is None:
            continue
        numbers = [float(x) for x in re.findall(r'\d+\.\d', found[1])]
        key = re.search(r'coc-([sm]-c\d+)', path.stem)
        if path.parent.name == 'classification':
            expected = TOP1.get(path.stem.split('_')[0], ())
        elif path.parent.name == 'detection':
            expected = sum(BOX_MASK[key[1]], ())
        else:
            expected = (MIOU[key[1]],)
        assert numbers == list(expected), path
        seen.append(path)
    assert len(seen) == 7 + 6 + 6


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
        dense = {
            'mask-rcnn': 'MaskRCNN',
            'cascade-mask-rcnn': 'CascadeRCNN',
            'retinanet': 'RetinaNet',
            'fpn': 'EncoderDecoder',
            'upernet': 'EncoderDecoder',
        }
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


BACKBONE = {'model.backbone', 'model.neck.in_channels'}
ADAMW = {'optim_wrapper.optimizer'}
SEGMENTOR = {'model.backbone', 'model.pretrained', 'model.decode_head.num_classes', 'norm_cfg'}
# Ours, the package's, the prefixes of the keys in which they differ on purpose.
COUNTERPARTS = {
    'cls_runtime.py': (mmpretrain, 'default_runtime.py', {'default_hooks.checkpoint'}),
    'det_runtime.py': (mmdet, 'default_runtime.py', set()),
    'seg_runtime.py': (mmseg, 'default_runtime.py', set()),
    'datasets/imagenet_bs128_coc_224.py': (
        mmpretrain,
        'datasets/imagenet_bs128_poolformer_small_224.py',
        {
            'data_root',  # has a name
            'train_pipeline.1',  # random interpolation
            'train_dataloader.dataset.pipeline.1',
        },
    ),
    'datasets/coco_instance.py': (mmdet, 'datasets/coco_instance.py', set()),
    'datasets/coco_detection.py': (mmdet, 'datasets/coco_detection.py', set()),
    'datasets/ade20k_512x512.py': (
        mmseg,
        'datasets/ade20k.py',
        {
            'train_pipeline.1',  # reduce_zero_label is left to the dataset
            'train_dataloader.dataset.pipeline.1',
            'test_pipeline',  # ResizeToMultiple
            'val_dataloader.dataset.pipeline',
            'test_dataloader.dataset.pipeline',
        },
    ),
    'models/coc_cls.py': (
        mmpretrain,
        'models/poolformer/poolformer_s12.py',
        {'model.backbone', 'model.head', 'model.train_cfg'},
    ),
    'models/mask-rcnn_coc_fpn.py': (mmdet, 'models/mask-rcnn_r50_fpn.py', BACKBONE),
    'models/cascade-mask-rcnn_coc_fpn.py': (mmdet, 'models/cascade-mask-rcnn_r50_fpn.py', BACKBONE),
    'models/retinanet_coc_fpn.py': (mmdet, 'models/retinanet_r50_fpn.py', BACKBONE),
    'models/fpn_coc.py': (
        mmseg,
        'models/fpn_r50.py',
        {
            *SEGMENTOR,
            'model.neck.in_channels',
            'data_preprocessor.size',
            'model.data_preprocessor.size',
        },
    ),
    'models/upernet_coc.py': (
        mmseg,
        'models/upernet_r50.py',
        {
            *(SEGMENTOR - {'norm_cfg'}),
            'model.decode_head.in_channels',
            'model.auxiliary_head.in_channels',
            'model.auxiliary_head.num_classes',
            'data_preprocessor.size',
            'model.data_preprocessor.size',
        },
    ),
    'schedules/imagenet_bs1024_adamw_310e.py': (
        mmpretrain,
        'schedules/imagenet_bs1024_adamw_swin.py',
        {
            'optim_wrapper.type',  # AMP
            'optim_wrapper.loss_scale',
            'optim_wrapper.paramwise_cfg.custom_keys',
            'param_scheduler',
            'train_cfg.max_epochs',
        },
    ),
    'schedules/coco_1x_adamw.py': (mmdet, 'schedules/schedule_1x.py', ADAMW),
    'schedules/ade20k_80k_adamw.py': (
        mmseg,
        'schedules/schedule_80k.py',
        {
            *ADAMW,
            'optimizer',
            'optim_wrapper.clip_grad',
            'param_scheduler.0.eta_min',
            'auto_scale_lr',
        },
    ),
}


def test_every_part_has_a_counterpart():
    assert {str(path.relative_to(CONFIGS / '_base_')) for path in PARTS} == set(COUNTERPARTS)
    assert len(PARTS) == 16


@pytest.mark.parametrize('part', COUNTERPARTS)
def test_parts_agree_with_the_packages(part):
    package, name, purpose = COUNTERPARTS[part]
    ours = flatten(Config.fromfile(CONFIGS / '_base_' / part)._cfg_dict.to_dict())
    file = Path(package.__file__).parent / '.mim' / 'configs' / '_base_' / name
    theirs = flatten(Config.fromfile(file)._cfg_dict.to_dict())
    missing = object()
    differing = {
        key
        for key in ours.keys() | theirs.keys()
        if ours.get(key, missing) != theirs.get(key, missing)
    }
    covered = {
        prefix
        for key in differing
        for prefix in purpose
        if key == prefix or key.startswith(prefix + '.')
    }
    unwanted = {key for key in differing if not any(f'{key}.'.startswith(p + '.') for p in purpose)}
    assert not unwanted
    assert covered == purpose, 'a difference on record that is none'


def test_no_machine_paths():
    files = [*PATHS, *PARTS]
    for path in files:
        assert str(ROOT) not in path.read_text()
        assert '/home/' not in path.read_text()
    assert len(files) == 51
