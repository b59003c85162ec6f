"""Flags that change how a training runs, with real runs in this process."""

import re
from pathlib import Path

import pytest
import torch
from tiny_projects import SCOPES

ROOT = Path(__file__).resolve().parents[2]


def _state(name='work/epoch_1.pth'):
    return torch.load(name, weights_only=False)


@pytest.mark.parametrize('scope', SCOPES)
def test_amp_without_validation(run, projects, logs, capsys, scope):
    project = projects[scope]
    run('train', project, '--amp', '--auto-scale-lr', '--no-validate')
    state = _state()
    weights = [value for value in state['state_dict'].values() if value.is_floating_point()]
    assert {value.dtype for value in weights} == {torch.float32}
    assert all(value.isfinite().all() for value in weights)
    assert 'Epoch(val)' not in (log := logs())
    assert 'current batch size is 2. Scaling the original LR by 0.125' in log
    assert state['optimizer']['param_groups'][0]['lr'] == 0.01 / 8
    if not torch.cuda.is_available():
        assert 'bfloat16 on the CPU' in capsys.readouterr().out
        assert 'loss_scaler' not in state['optimizer']


def test_a_dense_model_starts_from_a_classifier(run, projects):
    classifier = torch.load(projects['mmpretrain'].checkpoint)['state_dict']
    init = 'model.backbone.init_cfg'
    options = [f'{init}.type=Pretrained', f'{init}.prefix=backbone.']
    options += [f'{init}.checkpoint={projects["mmpretrain"].checkpoint}']
    options += ['optim_wrapper.optimizer.lr=0.0', 'optim_wrapper.optimizer.weight_decay=0.0']
    run('train', projects['mmseg'], '--no-validate', '--cfg-options', *options)
    state = _state()['state_dict']
    common = [key for key in state if key.startswith('backbone.') and key in classifier]
    assert len(common) > 50
    assert all(torch.equal(state[key], classifier[key]) for key in common)


def test_resumed_training_equals_training_in_one_go(run, projects):
    two = ('--no-validate', '--cfg-options', 'train_cfg.max_epochs=2')
    run('train', projects['mmpretrain'], *two)
    whole = _state('work/epoch_2.pth')['state_dict']
    Path('work/epoch_2.pth').unlink()
    run('train', projects['mmpretrain'], *two, '--resume', 'work/epoch_1.pth')
    resumed = _state('work/epoch_2.pth')['state_dict']
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_flexible_runner_with_a_strategy(run, projects, logs):
    options = ['runner_type=FlexibleRunner', 'strategy.type=SingleDeviceStrategy']
    run('train', projects['mmseg'], '--cfg-options', *options)
    assert Path('work/epoch_1.pth').is_file()
    assert 'mIoU' in logs()
    run('test', projects['mmseg'], 'work/epoch_1.pth', '--cfg-options', *options)


def test_own_data_is_found_trained_tested_and_predicted(tool, projects, tmp_path, capsys):
    config = ROOT / 'configs' / 'classification' / 'coc-small_1xb64-50e_custom.py'
    data = projects['mmpretrain'].data
    options = [f'data_root={data}', 'model.backbone.arch=tiny', 'model.head.in_channels=320']
    short = ['train_cfg.max_epochs=1', 'train_dataloader.batch_size=2', 'default_scope=mmpretrain']
    loaders = [f'{name}_dataloader.num_workers=0' for name in ('train', 'val', 'test')]
    flags = ['--work-dir', 'own', '--cfg-options', *options, *short, *loaders]
    assert tool('train')([str(config), *flags]) == 0
    out = capsys.readouterr().out
    assert '2 classes (box, disc)' in out
    assert re.search(r'^best score: \d', out, re.MULTILINE)
    # The two commands that are printed at the end.
    assert tool('test')(re.search('coc test (.*)', out)[1].split()) == 0
    named = re.search('coc infer IMAGE (.*)', out)[1].split()
    assert tool('infer')([str(next(data.rglob('*.png'))), *named]) == 0
    checkpoint = 'own/epoch_1.pth'
    assert tool('test')([str(config), checkpoint, *flags]) == 0
    image = next(data.rglob('*.png'))
    # The data is not needed any more: the checkpoint lists the classes.
    argv = [str(image), str(config), checkpoint, '--cfg-options', *options[1:]]
    assert tool('infer')(argv) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ('disc', 'box'))
