"""Flags that change how a training runs, with real runs in this process."""

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
    assert weights
    assert all(value.isfinite().all() for value in weights)
    assert all(value.dtype == torch.float32 for value in weights)
    log = logs()
    assert 'Epoch(val)' not in log
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


def test_resume_without_a_checkpoint_starts_anew(run, projects, logs, capsys):
    run('train', projects['mmpretrain'], '--resume', '--no-validate')
    assert 'no checkpoint in work, so training starts anew' in capsys.readouterr().out
    assert 'Epoch(train) [1]' in logs()


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
    assert '2 classes (box, disc)' in capsys.readouterr().out
    checkpoint = 'own/epoch_1.pth'
    assert tool('test')([str(config), checkpoint, *flags]) == 0
    image = next(data.rglob('*.png'))
    # The data is not needed any more: the checkpoint lists the classes.
    argv = [str(image), str(config), checkpoint, '--cfg-options', *options[1:]]
    assert tool('infer')(argv) == 0
    printed = capsys.readouterr().out
    assert 'disc' in printed
    assert 'box' in printed


def test_own_data_that_is_not_there(refused):
    config = ROOT / 'configs' / 'segmentation' / 'fpn_coc-s-c4_1xb4-50e-512x512_custom.py'
    says = ['data_root data/custom is no folder', '--cfg-options data_root=FOLDER']
    refused('train', config, says=says, leaves=['work_dirs'])


PROJECT = """
from mmengine.model import BaseModel
from mmengine.registry import MODELS


@MODELS.register_module(force=True)
class TinyProject(BaseModel):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = MODELS.build(backbone)

    def forward(self, img, mode='tensor', **kwargs):
        images = img.float().permute(0, 3, 1, 2) / 255
        return dict(loss=self.backbone(images)[0].square().mean())
"""

PLAIN = """
custom_imports = dict(imports=['tiny_project'])
default_scope = 'coc_mm'
model = dict(type='TinyProject', backbone=dict(type='ContextCluster', arch='tiny'))
train_dataloader = dict(
    batch_size=8, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='DigitsDataset', split='train', indices=16, pipeline=[
        dict(type='mmcv.Resize', scale=(32, 32))]))
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
"""


def test_project_with_a_plain_runner(tool, tmp_path, monkeypatch, logs):
    (tmp_path / 'tiny_project.py').write_text(PROJECT)
    (tmp_path / 'plain.py').write_text(PLAIN)
    monkeypatch.syspath_prepend(tmp_path)
    assert tool('train')(['plain.py', '--work-dir', 'work']) == 0
    assert 'loss: ' in logs()
    assert Path('work/epoch_1.pth').is_file()
