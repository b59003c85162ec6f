"""What users get wrong: one message, exit status 2, nothing left behind."""

import functools
import http.server
import importlib.util
import os
import pickle
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_projects import SCOPES, write_project

WORK = 'work_dirs/made_by_this_run'


def _train(refused, project, *argv, says):
    argv = ('--work-dir', WORK, *argv)
    return refused('train', project.config, *argv, says=says, leaves=['work_dirs'])


def _test(refused, project, checkpoint, *argv, says):
    argv = (project.config, checkpoint, '--work-dir', WORK, *argv)
    return refused('test', *argv, says=says, leaves=['work_dirs'])


# Configs


@pytest.mark.parametrize('name', ['train', 'test', 'infer'])
def test_missing_config(refused, name, tmp_path):
    (tmp_path / 'coc-small.py').write_text('')
    argv = {'train': (), 'test': ('x.pth',), 'infer': ('x.pth',)}[name]
    first = ()
    if name == 'infer':
        Image.new('RGB', (40, 40)).save(tmp_path / 'a.png')
        first = ('a.png',)
    says = ['coc-smal.py does not exist', 'did you mean coc-small.py?']
    refused(name, *first, 'coc-smal.py', *argv, says=says, leaves=['work_dirs'])


@pytest.mark.parametrize(
    ('name', 'content', 'says'),
    [
        ('notes.txt', 'hello', ['notes.txt is no config file']),
        ('broken.py', 'a = 1\nmodel = dict(\n', ['syntax error in', 'broken.py', 'line 2']),
        ('binary.py', '\x00\x01\x02', ['binary.py cannot be read']),
        ('name.py', 'a = 1\nmodel = undefined_name\n', ['undefined_name', 'name.py, line 2']),
        ('base.py', "_base_ = './absent.py'\n", ['base.py cannot be read', 'absent.py']),
        ('bare.py', 'model = dict()\n', ['sets no default_scope', "'mmpretrain', 'mmdet'"]),
        ('scope.py', "default_scope = 'mmcls'\n", ["'mmcls'", 'known are mmpretrain']),
        ('hollow.py', "default_scope = 'mmdet'\n", ['for training', 'no model']),
    ],
)
def test_unusable_config(refused, tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    refused('train', name, says=says, leaves=['work_dirs'])


def test_config_that_is_a_folder(refused, tmp_path):
    refused('train', tmp_path, says=['is a folder; name a .py file'])


def test_library_that_is_not_installed(refused, projects, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name, *a: None if name == 'mmseg' else find_spec(name)
    )
    says = ['needs mmseg, which is not installed', 'pip install "coc-mm[seg]"']
    _train(refused, projects['mmseg'], says=says)


# Models


@pytest.mark.parametrize(
    ('option', 'says'),
    [
        ('model.backbone.arch=smal', ['smal', 'tiny_plain', 'medium']),
        ('model.backbone.proposals=0', ['proposals', '0']),
        ('model.backbone.proposals="[2,2,2]"', ['proposals has the wrong length', '[2, 2, 2]']),
        ('model.backbone.folds="[-1,2,1,1]"', ['folds', '-1']),
        ('model.backbone.out_indices="[0,7]"', ['out_indices', '7']),
        ('model.backbone.archh=tiny', ["unexpected keyword argument 'archh'"]),
        ('model.backbone.type=coc_mm.Cluster', ["type='coc_mm.Cluster'", 'no installed library']),
        ('model.head.type=NoSuchHead', ["type='NoSuchHead'", 'no installed library']),
    ],
)
def test_unusable_model(refused, projects, option, says):
    _train(refused, projects['mmpretrain'], '--cfg-options', option, says=says)


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_unknown_arch_of_a_dense_model(refused, projects, scope):
    option = 'model.backbone.arch=large'
    _train(refused, projects[scope], '--cfg-options', option, says=['large', 'tiny_plain'])


def test_images_below_32_pixels(refused, projects, tmp_path):
    for path in projects['mmpretrain'].data.rglob('*.png'):
        small = tmp_path / 'small' / path.parent.name / path.name
        small.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).resize((24, 24)).save(small)
    option = 'train_dataloader.dataset.data_root=small'
    _train(refused, projects['mmpretrain'], '--cfg-options', option, says=['32 x 32', '24 x 24'])


# Checkpoints


def _damaged(kind, good, folder):
    path = folder / f'{kind}.pth'
    content = good.read_bytes()
    if kind == 'truncated':
        path.write_bytes(content[: len(content) // 2])
    elif kind == 'empty':
        path.write_bytes(b'')
    elif kind == 'page':
        path.write_text('<!DOCTYPE html><html>Google Drive - Virus scan warning</html>')
    elif kind == 'zip':
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('readme.txt', 'weights.pth')
    elif kind == 'text':
        path.write_text('these are not weights')
    elif kind == 'list':
        torch.save([1, 2, 3], path)
    elif kind == 'weightless':
        torch.save(dict(meta=dict(epoch=1)), path)
    elif kind == 'legacy':
        torch.save(dict(a=torch.ones(9)), path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:-20])
    return path


DAMAGE = {
    'missing': 'does not exist',
    'truncated': 'truncated or damaged',
    'legacy': 'truncated or damaged',
    'empty': 'is empty (0 bytes)',
    'page': 'is a web page',
    'zip': 'a zip archive without a PyTorch checkpoint',
    'text': 'is not a PyTorch checkpoint',
    'list': 'holds a list',
    'weightless': 'holds no weights',
}


@pytest.mark.parametrize('kind', DAMAGE)
def test_damaged_checkpoint(refused, projects, tmp_path, kind):
    project = projects['mmpretrain']
    path = _damaged(kind, project.checkpoint, tmp_path)
    _test(refused, project, path, says=[str(path), DAMAGE[kind]])


@pytest.mark.parametrize('kind', ['missing', 'truncated', 'page'])
def test_damaged_checkpoint_elsewhere(refused, projects, tmp_path, kind):
    project = projects['mmpretrain']
    path = _damaged(kind, project.checkpoint, tmp_path)
    _train(refused, project, '--resume', path, says=[str(path), DAMAGE[kind]])
    _train(refused, project, '--cfg-options', f'load_from={path}', says=[DAMAGE[kind]])
    start = 'model.backbone.init_cfg'
    options = [f'{start}.type=Pretrained', f'{start}.checkpoint={path}']
    _train(refused, project, '--cfg-options', *options, says=[DAMAGE[kind]])
    image = next(project.data.rglob('*.png'))
    says = [str(path), DAMAGE[kind]]
    refused('infer', image, project.config, path, says=says, leaves=['work_dirs'])


class _Attack:
    def __reduce__(self):
        return os.mkdir, ('made_by_a_pickle',)


def test_checkpoint_with_code_is_not_run(refused, projects, tmp_path):
    path = tmp_path / 'attack.pth'
    torch.save(dict(state_dict={}, meta=_Attack()), path)
    for argv in ((), ('--cfg-options', f'load_from={path}')):
        checkpoint = projects['mmpretrain'].checkpoint if argv else path
        _test(refused, projects['mmpretrain'], checkpoint, *argv, says=['refused', 'mkdir'])
    _train(refused, projects['mmpretrain'], '--resume', path, says=['refused', 'mkdir'])
    assert not Path('made_by_a_pickle').exists()
    with zipfile.ZipFile(path) as archive:
        pickle.loads(archive.read('attack/data.pkl'))
    assert Path('made_by_a_pickle').exists()  # it would have worked


def test_download_with_code_is_not_run(refused, projects, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    torch.save(dict(state_dict={}, meta=_Attack()), tmp_path / 'attack.pth')
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f'http://127.0.0.1:{server.server_port}/attack.pth'
        options = ('--cfg-options', f'load_from={address}')
        _train(refused, projects['mmpretrain'], *options, says=['refused', 'mkdir'])
        server.shutdown()
    assert not Path('made_by_a_pickle').exists()


@pytest.mark.parametrize('scope', SCOPES)
def test_checkpoint_of_another_model(refused, projects, scope):
    other = projects['mmseg' if scope == 'mmpretrain' else 'mmpretrain'].checkpoint
    says = ['of another model', 'weights match', 'missing (', 'unexpected (']
    _test(refused, projects[scope], other, says=says)


def test_checkpoint_of_another_width(refused, projects):
    project = projects['mmpretrain']
    options = ('--cfg-options', 'model.head.num_classes=7')
    says = ['2 of another shape (head.fc.weight is 2x16, the model has 7x16']
    _test(refused, project, project.checkpoint, *options, says=says)


def test_start_from_another_architecture(refused, projects):
    project = projects['mmpretrain']
    start = project.checkpoint
    options = ['model.backbone.arch=tiny', 'model.head.in_channels=320']
    says = ['of another model', 'weights match']
    _train(refused, project, '--cfg-options', *options, f'load_from={start}', says=says)
    init = [
        'model.backbone.init_cfg.type=Pretrained',
        f'model.backbone.init_cfg.checkpoint={start}',
        'model.backbone.init_cfg.prefix=backbone.',
    ]
    _train(refused, project, '--cfg-options', *options, *init, says=says)
    says = ['no weights under the prefix', 'neck.', 'it has backbone, head']
    init[2] = 'model.backbone.init_cfg.prefix=neck.'
    _train(refused, project, '--cfg-options', *init, says=says)


def test_resume_from_weights_alone(refused, projects):
    project = projects['mmpretrain']
    says = ['cannot be resumed', 'no message_hub', f'load_from={project.checkpoint}']
    _train(refused, project, '--resume', project.checkpoint, says=says)


def test_resume_with_a_record_of_a_lost_checkpoint(refused, projects):
    Path(WORK).mkdir(parents=True)
    record = Path(WORK, 'last_checkpoint')
    record.write_text('/gone/epoch_3.pth')
    says = ['last_checkpoint names /gone/epoch_3.pth', '--resume PATH']
    _train(refused, projects['mmpretrain'], '--resume', says=says)
    assert record.read_text() == '/gone/epoch_3.pth'


# Options


@pytest.mark.parametrize(
    ('option', 'says'),
    [
        ('modle.backbone.arch=tiny', ["no entry 'modle'", 'did you mean model?']),
        ('val_cfg_extra_zzz=1', ["no entry 'val_cfg_extra_zzz'"]),
        ('train_pipeline.9.type=X', ['train_pipeline has 2 entries', 'no 9']),
        ('train_pipeline.type=X', ['train_pipeline is a list', "'type'"]),
        ('train_dataloader.batch_size.x=1', ['train_dataloader.batch_size is 2', "'x'"]),
        ('model.data_preprocessor.mean.3=5', ['mean has 3 entries', 'no 3']),
        ('custom_hooks.0.type=X', ['custom_hooks is not set', 'custom_hooks="[...]"']),
        ('val_evaluator.0.type=X', ['val_evaluator has the entries type, topk', 'is no list']),
        ('train_cfg.val_interval=0', ['train_cfg.val_interval is 0', 'at least 1']),
        ('optim_wrapper.accumulate=2', ["unexpected keyword argument 'accumulate'"]),
        ('visualizer.vis_backends.0.type=WandbVisBackend', ['not installed', 'pip install wandb']),
    ],
)
def test_unusable_options(refused, projects, option, says):
    _train(refused, projects['mmpretrain'], '--cfg-options', option, says=says)


@pytest.mark.parametrize('option', ['model', '=3', 'a="[1,2"'])
def test_malformed_options_are_usage_errors(tool, projects, capsys, option):
    with pytest.raises(SystemExit) as stop:
        tool('train')([str(projects['mmpretrain'].config), '--cfg-options', option])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert 'usage: train.py' in captured.err
    assert 'error: argument --cfg-options' in captured.err
    assert 'Traceback' not in captured.err


def test_flags_without_ground_in_the_config(refused, projects):
    project = projects['mmpretrain']
    bare = project.config.with_name('bare.py')
    text = project.config.read_text()
    text = text.replace('auto_scale_lr =', 'unused =').replace(
        "'OptimWrapper'", "'ApexOptimWrapper'"
    )
    bare.write_text(text.replace('visualization=', 'visualise='))
    refused('train', bare, '--auto-scale-lr', says=['--auto-scale-lr', 'base_batch_size=N'])
    refused('train', bare, '--amp', says=['--amp', 'ApexOptimWrapper'])
    refused('test', bare, 'x.pth', '--show-dir', 'x', says=['no visualization hook'])
    refused('test', project.config, 'x.pth', '--out', 'x.json', says=['--out x.json', '.pkl'])
    refused('test', project.config, 'x.pth', '--tta', '--show', says=['--tta', '--show'])
    says = ['masks', 'leave --tta out']
    refused('test', projects['mmdet'].config, 'x.pth', '--tta', says=says)
    refused('test', projects['mmseg'].config, 'x.pth', '--out', bare, says=['is a file'])


@pytest.mark.parametrize(
    ('launcher', 'says'), [('pytorch', ['RANK', 'torchrun']), ('slurm', ['SLURM_PROCID', 'srun'])]
)
def test_launcher_without_its_program(refused, projects, monkeypatch, launcher, says):
    for name in ('RANK', 'SLURM_PROCID'):
        monkeypatch.delenv(name, raising=False)
    _train(refused, projects['mmpretrain'], '--launcher', launcher, says=says)


def test_launcher_with_half_its_variables(refused, projects, monkeypatch):
    monkeypatch.setenv('RANK', '0')
    monkeypatch.delenv('WORLD_SIZE', raising=False)
    says = ['WORLD_SIZE is not set', 'torchrun']
    _train(refused, projects['mmpretrain'], '--launcher', 'pytorch', says=says)


# Data


@pytest.mark.parametrize('scope', SCOPES)
def test_missing_dataset(refused, projects, scope):
    option = 'train_dataloader.dataset.data_root=data/nowhere'
    says = ['data/nowhere', 'does not exist', 'docs/data.md', 'data_root=']
    _train(refused, projects[scope], '--cfg-options', option, says=says)


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize(
    ('scope', 'broken'), [('mmpretrain', 'disc/1.png'), ('mmseg', 'maps/1.png')]
)
def test_dataset_with_a_file_that_is_no_image(refused, tmp_path, scope, broken, workers):
    config = write_project(tmp_path / 'project', scope)
    path = tmp_path / 'project' / 'data' / broken
    path.write_text('no image')
    argv = ('--work-dir', WORK, '--cfg-options', f'train_dataloader.num_workers={workers}')
    says = [str(path), 'is not an image']
    refused('train', config, *argv, says=says, leaves=['work_dirs'])


def test_dataset_with_a_damaged_image_in_validation(refused, projects, tmp_path):
    config = write_project(tmp_path / 'project', 'mmdet')
    path = tmp_path / 'project' / 'data' / 'images' / '0.png'
    path.write_bytes(b'')
    weights = projects['mmdet'].checkpoint
    says = [str(path), 'is empty (0 bytes)']
    refused('test', config, weights, '--work-dir', WORK, says=says, leaves=['work_dirs'])


def test_dataset_that_lost_an_image(refused, tmp_path):
    config = write_project(tmp_path / 'project', 'mmdet')
    path = tmp_path / 'project' / 'data' / 'images' / '0.png'
    path.unlink()
    says = [str(path), 'does not exist']
    refused('train', config, '--work-dir', WORK, says=says, leaves=['work_dirs'])


# What is not the user's mistake


def test_programming_error_keeps_its_traceback_and_the_logs(tool, tmp_path, monkeypatch):
    config = write_project(tmp_path / 'project', 'mmpretrain')
    hooks = (
        "custom_imports = dict(imports=['failing_hook'])\ncustom_hooks = [dict(type='FailingHook')]"
    )
    config.write_text(f'{config.read_text()}\n{hooks}\n')
    (tmp_path / 'failing_hook.py').write_text(
        'from mmengine.hooks import Hook\n'
        'from mmengine.registry import HOOKS\n\n\n'
        '@HOOKS.register_module()\n'
        'class FailingHook(Hook):\n'
        '    def before_train_iter(self, runner, batch_idx, data_batch=None):\n'
        "        {}['a key that is not there']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyError, match='a key that is not there'):
        tool('train')([str(config), '--work-dir', WORK])
    assert list(Path(WORK).rglob('*.log'))


def test_traceback_on_request(tool, monkeypatch):
    from coc_mm.errors import UserError

    monkeypatch.setenv('COC_MM_TRACEBACK', '1')
    with pytest.raises(UserError, match='does not exist'):
        tool('train')(['absent.py'])


def test_earlier_work_is_kept(refused, projects):
    folder = Path(WORK)
    folder.mkdir(parents=True)
    dump = folder / projects['mmpretrain'].config.name
    dump.write_text('earlier = True\n')
    (folder / 'epoch_9.pth').write_bytes(b'weights')
    option = 'train_dataloader.dataset.data_root=data/nowhere'
    _train(refused, projects['mmpretrain'], '--cfg-options', option, says=['data/nowhere'])
    assert {path.name for path in folder.iterdir()} == {dump.name, 'epoch_9.pth'}
    assert dump.read_text() == 'earlier = True\n'
