"""What users get wrong: one message, exit status 2, nothing left behind."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_projects import SCOPES, write_project

WORK = 'work_dirs/made_by_this_run'


@pytest.fixture
def refuse(refused):
    """Call a tool that must leave no folder of runs behind."""

    def call(tool, *argv, says):
        argv = (*argv, '--work-dir', WORK) if tool in ('train', 'test') else argv
        refused(tool, *argv, says=says, leaves=['work_dirs'])

    return call


@pytest.fixture
def train(refuse, projects):
    """Train with options that must be refused."""

    def call(*options, says, scope='mmpretrain', flags=()):
        options = ('--cfg-options', *options) if options else ()
        refuse('train', projects[scope].config, *flags, *options, says=says)

    return call


# Configs


def test_missing_config(refuse, tmp_path):
    (tmp_path / 'coc-small.py').write_text('')
    Image.new('RGB', (40, 40)).save(tmp_path / 'a.png')
    says = ['coc-smal.py does not exist', 'did you mean coc-small.py?']
    refuse('train', 'coc-smal.py', says=says)
    refuse('test', 'coc-smal.py', 'x.pth', says=says)
    refuse('infer', 'a.png', 'coc-smal.py', 'x.pth', says=says)


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
def test_unusable_config(refuse, tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    refuse('train', name, says=says)


def test_config_that_is_a_folder(refuse, tmp_path):
    refuse('train', tmp_path, says=['is a folder; name a .py file'])


def test_library_that_is_not_installed(train, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name, *a: None if name == 'mmseg' else find_spec(name)
    )
    train(
        scope='mmseg',
        says=['needs mmseg, which is not installed', 'pip install onedl-mmsegmentation'],
    )


# Options


@pytest.mark.parametrize(
    ('option', 'says'),
    [
        ('model.backbone.arch=smal', ['smal', 'tiny_plain', 'medium']),
        ('model.backbone.proposals="[2,2,2]"', ['proposals has the wrong length', '[2, 2, 2]']),
        ('model.backbone.folds="[-1,2,1,1]"', ['folds', '-1']),
        ('model.backbone.archh=tiny', ["unexpected keyword argument 'archh'"]),
        ('model.backbone.type=coc_mm.Cluster', ["type='coc_mm.Cluster'", 'no installed library']),
        ('modle.backbone.arch=tiny', ["no entry 'modle'", 'did you mean model?']),
        ('val_cfg_extra_zzz=1', ["no entry 'val_cfg_extra_zzz'"]),
        ('train_pipeline.9.type=X', ['train_pipeline has 2 entries', 'no 9']),
        ('train_pipeline.type=X', ['train_pipeline is a list', "'type'"]),
        ('train_dataloader.batch_size.x=1', ['train_dataloader.batch_size is 2', "'x'"]),
        ('model.data_preprocessor.mean.3=5', ['mean has 3 entries', 'no 3']),
        ('custom_hooks.0.type=X', ['custom_hooks is not set', 'custom_hooks="[...]"']),
        ('val_evaluator.0.type=X', ['val_evaluator has the entries type, topk', 'is no list']),
        ('train_cfg.val_interval=0', ['train_cfg.val_interval is 0', 'at least 1']),
        ('model.backbone.pretrained=open-mmlab://x', ['pretrained=', 'init_cfg=dict(']),
        ('model.backbone.drop_path_rate=abc', ["type='coc_mm.ContextCluster'", 'TypeError']),
        ('optim_wrapper.optimizer.betas=0.9', ["type='AdamW'", 'not subscriptable']),
        ('train_cfg.dynamic_intervals=5', ['train_cfg', 'AssertionError: assert']),
        ('train_dataloader.shuffle=True', ['a dataloader', 'mutually exclusive']),
        ('env_cfg.mp_cfg.mp_start_method=foo', ['env_cfg', "'foo'"]),
        ('optim_wrapper.accumulate=2', ["unexpected keyword argument 'accumulate'"]),
        ('visualizer.vis_backends.0.type=WandbVisBackend', ['not installed', 'pip install wandb']),
    ],
)
def test_unusable_options(train, option, says):
    train(option, says=says)


def test_a_best_score_that_the_evaluation_does_not_give(refused, projects):
    option = 'default_hooks.checkpoint.save_best=accuracy/top9'
    says = ["save_best is 'accuracy/top9'", 'it gives accuracy/top1']
    refused('train', projects['mmpretrain'].config, '--cfg-options', option, says=says)


@pytest.mark.parametrize('name', ['default_hooks', 'env_cfg', 'default_hooks.logger'])
def test_none_is_what_mmengine_has_without_an_entry(tool, projects, name):
    argv = ['--no-validate', '--work-dir', WORK, '--cfg-options', f'{name}=None']
    assert tool('train')([str(projects['mmpretrain'].config), *argv]) == 0
    assert Path(WORK, 'epoch_1.pth').is_file()


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_unknown_arch_of_a_dense_model(train, scope):
    train('model.backbone.arch=large', scope=scope, says=['large', 'tiny_plain'])


@pytest.mark.parametrize('option', ['model', 'a="[1,2"'])
def test_malformed_options_are_usage_errors(tool, projects, capsys, option):
    with pytest.raises(SystemExit) as stop:
        tool('train')([str(projects['mmpretrain'].config), '--cfg-options', option])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith('usage: ')
    assert 'error: argument --cfg-options' in said


def test_flags_without_ground_in_the_config(refused, projects):
    project = projects['mmpretrain']
    bare = project.config.with_name('bare.py')
    text = project.config.read_text().replace('auto_scale_lr =', 'unused =')
    text = text.replace("'OptimWrapper'", "'ApexOptimWrapper'")
    bare.write_text(text.replace('visualization=', 'visualise='))
    refused('train', bare, '--auto-scale-lr', says=['--auto-scale-lr', 'base_batch_size=N'])
    refused('train', bare, '--amp', says=['--amp', 'ApexOptimWrapper'])
    refused('test', bare, 'x.pth', '--show-dir', 'x', says=['no visualization hook'])
    refused('test', project.config, 'x.pth', '--out', 'x.txt', says=['--out x.txt', '.pkl'])
    refused('test', project.config, 'x.pth', '--tta', '--show', says=['--tta', '--show'])
    says = ['masks', 'leave --tta out']
    refused('test', projects['mmdet'].config, 'x.pth', '--tta', says=says)
    refused('test', projects['mmseg'].config, 'x.pth', '--out', bare, says=['is a file'])


def test_launcher_without_its_program(train, monkeypatch):
    for name in ('RANK', 'SLURM_PROCID', 'WORLD_SIZE'):
        monkeypatch.delenv(name, raising=False)
    train(flags=('--launcher', 'slurm'), says=['SLURM_PROCID', 'srun'])
    train(flags=('--launcher', 'pytorch'), says=['RANK', 'torchrun'])
    monkeypatch.setenv('RANK', '0')
    train(flags=('--launcher', 'pytorch'), says=['WORLD_SIZE is not set', 'torchrun'])


# Checkpoints


@pytest.mark.parametrize(
    ('kind', 'says'),
    [
        ('missing', 'does not exist'),
        ('truncated', 'truncated or damaged'),
        ('page', 'is a web page'),
    ],
)
def test_damaged_checkpoint(refuse, train, projects, tmp_path, kind, says):
    project, path = projects['mmpretrain'], tmp_path / f'{kind}.pth'
    if kind == 'truncated':
        content = project.checkpoint.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    elif kind == 'page':
        path.write_text('<!DOCTYPE html><html>Google Drive - Virus scan warning</html>')
    says = [str(path), says]
    refuse('test', project.config, path, says=says)
    image = next(project.data.rglob('*.png'))
    refuse('infer', image, project.config, path, says=says)
    train(flags=('--resume', path), says=says)
    train(f'load_from={path}', says=says)
    start = 'model.backbone.init_cfg'
    train(f'{start}.type=Pretrained', f'{start}.checkpoint={path}', says=says)


class _Attack:
    def __reduce__(self):
        return os.mkdir, ('made_by_a_pickle',)


def test_checkpoint_with_code_is_not_run(refuse, train, projects, tmp_path):
    path, says = tmp_path / 'attack.pth', ['refused', 'mkdir']
    torch.save(dict(state_dict={}, meta=_Attack()), path)
    refuse('test', projects['mmpretrain'].config, path, says=says)
    train(f'load_from={path}', says=says)
    train(flags=('--resume', path), says=says)
    assert not Path('made_by_a_pickle').exists()


@pytest.mark.parametrize('scope', SCOPES)
def test_checkpoint_of_another_model(refuse, projects, scope):
    other = projects['mmseg' if scope == 'mmpretrain' else 'mmpretrain'].checkpoint
    says = ['of another model', 'weights match', 'missing (', 'unexpected (']
    refuse('test', projects[scope].config, other, says=says)


def test_checkpoint_of_another_width(refuse, projects):
    project = projects['mmpretrain']
    options = ('--cfg-options', 'model.head.num_classes=7')
    says = ['2 of another shape (head.fc.weight is 2x16, the model has 7x16']
    refuse('test', project.config, project.checkpoint, *options, says=says)


def test_start_from_another_architecture(train, projects):
    weights = projects['mmpretrain'].checkpoint
    options = ['model.backbone.arch=tiny', 'model.head.in_channels=320']
    says = ['of another model', 'weights match']
    train(*options, f'load_from={weights}', says=says)
    start = 'model.backbone.init_cfg'
    init = [f'{start}.type=Pretrained', f'{start}.checkpoint={weights}']
    train(*options, *init, f'{start}.prefix=backbone.', says=says)
    says = ['no weights under the prefix', 'neck.', 'it has backbone, head']
    train(*init, f'{start}.prefix=neck.', says=says)


def test_resume_from_weights_alone(train, projects):
    weights = projects['mmpretrain'].checkpoint
    says = ['cannot be resumed', 'no message_hub', f'load_from={weights}']
    train(flags=('--resume', weights), says=says)


def test_resume_with_a_record_of_a_lost_checkpoint(train):
    record = Path(WORK, 'last_checkpoint')
    record.parent.mkdir(parents=True)
    record.write_text('/gone/epoch_3.pth')
    train(flags=['--resume'], says=['last_checkpoint names /gone/epoch_3.pth', '--resume PATH'])
    assert record.read_text() == '/gone/epoch_3.pth'


# Data


NOWHERE = 'train_dataloader.dataset.data_root=data/nowhere'


@pytest.mark.parametrize('scope', SCOPES)
def test_missing_dataset(train, scope):
    says = ['data/nowhere', 'does not exist', 'docs/data.md', 'data_root=']
    train(NOWHERE, scope=scope, says=says)


@pytest.mark.parametrize(
    ('scope', 'tool', 'broken', 'content', 'says', 'workers'),
    [
        ('mmpretrain', 'train', 'disc/1.png', 'no image', 'is not an image', 0),
        ('mmseg', 'train', 'maps/1.png', 'no image', 'is not an image', 1),
        ('mmdet', 'train', 'images/0.png', None, 'does not exist', 0),
        ('mmdet', 'test', 'images/0.png', '', 'is empty (0 bytes)', 0),
    ],
)
def test_broken_images(refuse, projects, tmp_path, scope, tool, broken, content, says, workers):
    config = write_project(tmp_path / 'project', scope)
    path = config.parent / 'data' / broken
    path.unlink() if content is None else path.write_text(content)
    argv = [config, projects[scope].checkpoint] if tool == 'test' else [config]
    argv += ['--cfg-options', f'train_dataloader.num_workers={workers}']
    refuse(tool, *argv, says=[str(path), says])


def test_images_below_32_pixels(train, projects, tmp_path):
    for path in projects['mmpretrain'].data.rglob('*.png'):
        small = tmp_path / 'small' / path.parent.name / path.name
        small.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).resize((24, 24)).save(small)
    train('train_dataloader.dataset.data_root=small', says=['32 x 32', '24 x 24'])


# What is not the user's mistake


def test_programming_error_keeps_its_traceback_and_the_logs(tool, tmp_path):
    config = write_project(tmp_path / 'project', 'mmpretrain')
    with config.open('a') as file:
        file.write("\ncustom_hooks = [dict(type='faults.Fail', iteration=1)]\n")
    with pytest.raises(RuntimeError, match='broken on purpose'):
        tool('train')([str(config), '--work-dir', WORK])
    assert list(Path(WORK).rglob('*.log'))


def test_traceback_on_request(tool, monkeypatch):
    from coc_mm.errors import UserError

    monkeypatch.setenv('COC_MM_TRACEBACK', '1')
    with pytest.raises(UserError, match='does not exist'):
        tool('train')(['absent.py'])


def test_earlier_work_is_kept(train, projects):
    folder = Path(WORK)
    folder.mkdir(parents=True)
    dump = folder / projects['mmpretrain'].config.name
    dump.write_text('earlier = True\n')
    (folder / 'epoch_9.pth').write_bytes(b'weights')
    train(NOWHERE, says=['data/nowhere'])
    assert {path.name for path in folder.iterdir()} == {dump.name, 'epoch_9.pth'}
    assert dump.read_text() == 'earlier = True\n'
