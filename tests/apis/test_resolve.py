"""How the flags reach a config, for each library."""

import os

import pytest
import torch
from shrunk_configs import CONFIGS
from tiny_projects import SCOPES, write_project

from coc_mm.apis import resolve
from coc_mm.apis.config import load_config
from coc_mm.apis.resolve import resolve_test, resolve_train
from coc_mm.cli.test import parse as parse_test
from coc_mm.cli.train import parse as parse_train
from coc_mm.errors import UserError


@pytest.fixture(scope='module')
def configs(tmp_path_factory):
    return {scope: write_project(tmp_path_factory.mktemp(scope), scope) for scope in SCOPES}


@pytest.fixture
def trained(configs):
    def merge(scope, *argv):
        args = parse_train([str(configs[scope]), *argv])
        return resolve_train(load_config(args.config, args.cfg_options), args)

    return merge


@pytest.fixture
def tested(configs):
    def merge(config, *argv):
        args = parse_test([str(configs.get(config, config)), 'weights.pth', *argv])
        return resolve_test(load_config(args.config, args.cfg_options), args)

    return merge


@pytest.mark.parametrize('scope', SCOPES)
def test_work_dir_from_flag_config_or_name(trained, tested, scope):
    for merge in (trained, tested):
        assert merge(scope).work_dir == f'./work_dirs/tiny_{scope}'
        assert merge(scope, '--work-dir', 'w').work_dir == 'w'
        assert merge(scope, '--work-dir', 'w', '--cfg-options', 'work_dir=o').work_dir == 'o'


@pytest.mark.parametrize('scope', SCOPES)
def test_train_flags(trained, scope):
    plain = trained(scope)
    assert (plain.optim_wrapper.type, plain.launcher) == ('OptimWrapper', 'none')
    assert 'enable' not in plain.auto_scale_lr
    assert plain.val_cfg is not None
    assert not plain.get('resume')
    flags = ('--amp', '--auto-scale-lr', '--no-validate', '--resume', 'a.pth')
    config = trained(scope, *flags, '--launcher', 'pytorch')
    assert config.auto_scale_lr == dict(base_batch_size=16, enable=True)
    assert config.val_cfg is config.val_dataloader is config.val_evaluator is None
    assert (config.resume, config.load_from) == (True, 'a.pth')
    assert config.launcher == 'pytorch'


@pytest.mark.parametrize(
    ('flags', 'resume', 'load_from'),
    [
        ('--resume', 'auto', None),
        ('--resume auto', 'auto', None),
        ('--cfg-options resume=True', 'auto', None),
        ('--resume --cfg-options load_from=a.pth', True, 'a.pth'),
        ('--resume a.pth', True, 'a.pth'),
        ('--cfg-options resume=True load_from=a.pth', True, 'a.pth'),
        ('--cfg-options load_from=a.pth', None, 'a.pth'),
    ],
)
def test_what_is_resumed(trained, flags, resume, load_from):
    config = trained('mmpretrain', *flags.split())
    assert (config.get('resume'), config.get('load_from')) == (resume, load_from)


@pytest.mark.parametrize('scope', SCOPES)
@pytest.mark.parametrize(
    ('flags', 'option', 'key', 'value'),
    [
        (['--work-dir', 'flag'], 'work_dir=option', 'work_dir', 'option'),
        (['--amp'], 'optim_wrapper.type=OptimWrapper', 'optim_wrapper.type', 'OptimWrapper'),
        (['--auto-scale-lr'], 'auto_scale_lr.enable=False', 'auto_scale_lr.enable', False),
        (['--resume', 'flag.pth'], 'load_from=option.pth', 'load_from', 'option.pth'),
        (['--resume'], 'resume=False', 'resume', False),
        (['--launcher', 'slurm'], 'launcher=none', 'launcher', 'none'),
    ],
)
def test_options_come_last(trained, scope, flags, option, key, value):
    config = trained(scope, *flags, '--cfg-options', option)
    for step in key.split('.'):
        config = config[step]
    assert config == value


def test_loaders_get_the_defaults_of_mmpretrain_there_alone(trained, tested):
    options = ('--cfg-options', 'train_dataloader.num_workers=2', 'test_dataloader.num_workers=2')
    loader = trained('mmpretrain', *options).train_dataloader
    assert loader.persistent_workers is True
    assert loader.collate_fn == dict(type='default_collate')
    assert loader.pin_memory == torch.cuda.is_available()
    assert 'persistent_workers' not in tested('mmpretrain', *options).test_dataloader
    assert 'collate_fn' not in trained('mmdet', *options).train_dataloader


@pytest.mark.parametrize('scope', SCOPES)
def test_no_workers_no_persistence(trained, scope):
    options = ['num_workers=0', 'persistent_workers=True', 'prefetch_factor=4']
    loader = 'train_dataloader'
    config = trained(scope, '--cfg-options', *[f'{loader}.{option}' for option in options])
    assert config[loader].persistent_workers is False
    assert 'prefetch_factor' not in config[loader]


def test_options_reach_nested_entries(trained):
    options = ('default_hooks.checkpoint.interval=5', 'train_pipeline.1.keys=(a,b)')
    more = ('model.data_preprocessor.mean.0=5', 'train_pipeline.0._delete_=True')
    config = trained('mmseg', '--cfg-options', *options, *more, 'train_pipeline.0.type=X')
    assert config.default_hooks.checkpoint.interval == 5
    assert config.train_pipeline[1].keys() == {'type', 'keys'}
    assert config.train_pipeline[1]['keys'] == ('a', 'b')
    assert config.train_pipeline[0] == dict(type='X')
    assert config.model.data_preprocessor.mean == [5, 127, 127]


def test_test_flags(tested):
    config = tested('mmdet')
    assert (config.load_from, config.resume) == ('weights.pth', False)


def test_drawing_as_each_library_does_it(tested):
    flags = ('--show', '--show-dir', 'shown', '--wait-time', '5')
    configs = {scope: tested(scope, *flags) for scope in SCOPES}
    hooks = {scope: config.default_hooks.visualization for scope, config in configs.items()}
    assert all((hook.show, hook.wait_time) == (True, 5.0) for hook in hooks.values())
    assert hooks['mmpretrain'].enable is hooks['mmdet'].draw is hooks['mmseg'].draw is True
    assert hooks['mmpretrain'].out_dir == hooks['mmdet'].test_out_dir == 'shown'
    assert configs['mmseg'].visualizer.save_dir == 'shown'
    hook = tested('mmdet', '--show-dir', 'shown').default_hooks.visualization
    assert 'show' not in hook


def test_out_of_mmseg_goes_to_its_metric(tested, configs, tmp_path):
    config = tested('mmseg', '--out', str(tmp_path / 'maps'))
    (metric,) = config.test_evaluator
    assert metric.output_dir == str(tmp_path / 'maps')
    assert metric.keep_results is True
    several = tmp_path / 'several.py'
    text = configs['mmseg'].read_text()
    several.write_text(text + "test_evaluator = [val_evaluator, dict(type='CityscapesMetric')]\n")
    first, second = tested(several, '--out', 'maps').test_evaluator
    assert first.output_dir == 'maps'
    assert 'output_dir' not in second


def test_tta_of_mmpretrain(tested):
    option = ('--cfg-options', 'model.backbone.arch=tiny')
    config = tested('mmpretrain', '--tta', *option)
    assert config.model.type == 'mmpretrain.AverageClsScoreTTA'
    assert config.model.module.backbone.arch == 'tiny'  # the option reached the model
    pipeline = config.test_dataloader.dataset.pipeline
    assert [step.type for step in pipeline] == ['LoadImageFromFile', 'TestTimeAug']
    assert [step.type for step in pipeline[-1].transforms[1]] == ['PackInputs']
    assert [flip.prob for flip in pipeline[-1].transforms[0]] == [1.0, 0.0]


def test_tta_of_mmdet(tested, configs, tmp_path):
    boxes = tmp_path / 'boxes.py'
    boxes.write_text(configs['mmdet'].read_text() + 'model["roi_head"].pop("mask_head")\n')
    config = tested(boxes, '--tta')
    assert config.model.type == 'DetTTAModel'
    assert config.model.module.type == 'MaskRCNN'
    last = config.test_dataloader.dataset.pipeline[-1]
    assert last.type == 'TestTimeAug'
    assert 'flip_direction' in last.transforms[1][0].meta_keys


def test_tta_of_mmseg(tested, configs, tmp_path):
    config = tested('mmseg', '--tta')
    assert (config.model.type, config.model.module.type) == ('SegTTAModel', 'EncoderDecoder')
    assert config.test_dataloader.dataset.pipeline == config.tta_pipeline
    bare = tmp_path / 'bare.py'
    bare.write_text(configs['mmseg'].read_text().replace('tta_model =', 'unused ='))
    with pytest.raises(UserError, match='--tta: it sets no tta_model'):
        tested(bare, '--tta')


def test_amp_on_the_cpu_is_bfloat16(trained, monkeypatch, capsys):
    monkeypatch.setattr(resolve, 'get_device', lambda: 'cpu')
    option = ('--cfg-options', 'optim_wrapper.loss_scale=512.0')
    wrapper = trained('mmseg', '--amp', *option).optim_wrapper
    assert wrapper.type == 'coc_mm.CpuAmpOptimWrapper'
    assert 'loss_scale' not in wrapper
    assert 'bfloat16 on the CPU' in capsys.readouterr().out


def test_amp_elsewhere_is_mmengines(trained, monkeypatch):
    monkeypatch.setattr(resolve, 'get_device', lambda: 'cuda')
    # The second as in the copy of a config that was trained on a CPU.
    dumped = ('--cfg-options', 'optim_wrapper.type=coc_mm.apis.amp.CpuAmpOptimWrapper')
    for flags in (('--amp',), dumped):
        assert trained('mmseg', *flags).optim_wrapper.type == 'AmpOptimWrapper'
    assert trained('mmseg', '--amp').optim_wrapper.loss_scale == 'dynamic'
    option = ('--cfg-options', 'optim_wrapper.loss_scale=512.0')
    assert trained('mmseg', '--amp', *option).optim_wrapper.loss_scale == 512
    monkeypatch.setattr(resolve, 'get_device', lambda: 'mps')
    with pytest.raises(UserError, match='train without --amp'):
        trained('mmseg', '--amp')


def test_hooks(trained):
    hooks = trained('mmseg').default_hooks
    assert hooks.nonfinite == dict(type='coc_mm.NonFiniteHook')
    assert hooks.checkpoint.type == 'coc_mm.AtomicCheckpointHook'
    for name in ('numbers', 'nonfinite'):  # the former is its old name
        hooks = trained('mmseg', '--cfg-options', f'default_hooks.{name}.action=skip').default_hooks
        assert hooks.nonfinite == dict(type='coc_mm.NonFiniteHook', action='skip')
        hooks = trained('mmseg', '--cfg-options', f'default_hooks.{name}=None').default_hooks
        assert not {'numbers', 'nonfinite'} & hooks.keys()
    hooks = trained('mmseg', '--cfg-options', 'default_hooks.visualization=None').default_hooks
    assert 'visualization' not in hooks


def test_deterministic(trained, monkeypatch):
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG', raising=False)
    options = ('env_cfg.cudnn_benchmark=True', 'randomness.seed=None')
    config = trained('mmseg', '--deterministic', '--cfg-options', *options)
    assert config.randomness == dict(seed=0, deterministic=True)
    assert config.env_cfg.cudnn_benchmark is False
    assert os.environ['CUBLAS_WORKSPACE_CONFIG'] == ':4096:8'
    options = ('randomness.seed=7', 'randomness.diff_rank_seed=True')
    config = trained('mmseg', '--deterministic', '--cfg-options', *options)
    assert config.randomness == dict(seed=7, diff_rank_seed=True, deterministic=True)


def test_out_is_one_more_metric(tested):
    assert tested('mmdet', '--out', 'x.pkl').test_evaluator[1:] == [
        dict(type='DumpDetResults', out_file_path='x.pkl')
    ]
    (coco,) = tested('mmdet', '--out', 'x.json').test_evaluator
    assert coco.outfile_prefix == 'x'
    for scope, name in (('mmdet', 'x.csv'), ('mmpretrain', 'x.json')):
        dump = tested(scope, '--out', name).test_evaluator[-1]
        assert dump == dict(type='coc_mm.DumpPredictions', out_file_path=name)
    options = ('--cfg-options', 'test_evaluator.topk=(1,)')
    first, second = tested('mmpretrain', '--out', 'x.pkl', *options).test_evaluator
    assert (first.topk, second.type) == ((1,), 'DumpResults')


@pytest.mark.parametrize(
    'key', ['data_root', 'ann_file', 'data_prefix.img', 'dataset.metainfo.classes']
)
def test_what_is_found_out_of_own_data_cannot_be_set(key, tmp_path):
    config = str(CONFIGS / 'detection/retinanet_coc-s-c4_fpn_1xb2-12e_custom.py')
    options = [f'data_root={tmp_path}', f'train_dataloader.dataset.{key}=x']
    args = parse_train([config, '--cfg-options', *options])
    with pytest.raises(UserError, match=r'is found out from the entries at the top: data_root='):
        resolve_train(load_config(args.config, args.cfg_options), args)
