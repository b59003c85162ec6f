"""What is settled between the flags and the runner."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, RUNNERS, DefaultScope
from mmengine.runner import Runner
from tiny_projects import forget_singletons

from coc_mm.apis.amp import CPU_AMP_TYPE, CpuAmpOptimWrapper
from coc_mm.cli import train as run
from coc_mm.errors import UserError


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('RANK', raising=False)
    yield
    forget_singletons()


def _resume(config, **args):
    config = Config(dict(work_dir='work', **config))
    run._resolve_resume(config, Namespace(**{'resume': None, 'cfg_options': None, **args}))
    return config.get('resume'), config.get('load_from')


def _checkpoint(name='epoch_4.pth', recorded=None):
    Path('work').mkdir(exist_ok=True)
    whole = dict(meta=dict(iter=4), message_hub={}, optimizer={}, state_dict={})
    torch.save(whole, Path('work', name))
    Path('work', 'last_checkpoint').write_text(str(recorded or Path('work', name).absolute()))
    return str(Path('work', name).absolute())


# Resume


def test_nothing_to_resume_is_said_and_starts_anew(capsys):
    assert _resume(dict(resume=True), resume='auto') == (False, None)
    assert 'no checkpoint in work, so training starts anew' in capsys.readouterr().out


def test_starting_anew_keeps_the_weights_of_the_config():
    assert _resume(dict(resume=True, load_from='a.pth'), resume='auto') == (False, 'a.pth')


def test_the_latest_checkpoint_is_resumed(capsys):
    path = _checkpoint()
    assert _resume(dict(resume=True, load_from='a.pth'), resume='auto') == (True, path)
    assert f'continuing from {path}' in capsys.readouterr().out
    assert _resume(dict(resume=True)) == (True, path)  # a config that says so


def test_a_moved_work_dir_is_resumed():
    _checkpoint(recorded='/elsewhere/epoch_4.pth')
    assert _resume(dict(resume=True), resume='auto') == (True, 'work/epoch_4.pth')


def test_a_named_checkpoint_is_resumed_as_named():
    _checkpoint()
    config = dict(resume=True, load_from='a.pth')
    assert _resume(config, resume='a.pth') == (True, 'a.pth')
    options = dict(load_from='a.pth')
    assert _resume(config, resume='auto', cfg_options=options) == (True, 'a.pth')
    assert _resume(dict(resume=False, load_from='a.pth')) == (False, 'a.pth')


# Mixed precision on the CPU


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(run, 'get_device', lambda: 'cpu')


def test_amp_on_the_cpu_is_bfloat16(on_cpu, capsys):
    wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic', dtype='float16', clip_grad=None)
    config = Config(dict(optim_wrapper=wrapper))
    run._resolve_amp(config)
    assert config.optim_wrapper == dict(type=CPU_AMP_TYPE, clip_grad=None)
    assert 'bfloat16 on the CPU' in capsys.readouterr().out


def test_amp_elsewhere_is_mmengines(monkeypatch):
    monkeypatch.setattr(run, 'get_device', lambda: 'cuda')
    config = Config(dict(optim_wrapper=dict(type='AmpOptimWrapper')))
    run._resolve_amp(config)
    assert config.optim_wrapper.type == 'AmpOptimWrapper'
    monkeypatch.setattr(run, 'get_device', lambda: 'mps')
    with pytest.raises(UserError, match='train without --amp'):
        run._resolve_amp(config)
    run._resolve_amp(Config(dict(optim_wrapper=dict(type='OptimWrapper'))))


@pytest.mark.parametrize('scope', ['mmengine', 'mmpretrain', 'mmdet', 'mmseg'])
def test_the_wrapper_is_found_by_its_name(scope):
    optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=0.1)
    with DefaultScope.overwrite_default_scope(scope):
        wrapper = OPTIM_WRAPPERS.build(dict(type=CPU_AMP_TYPE, optimizer=optimizer))
    assert type(wrapper) is CpuAmpOptimWrapper


def test_the_wrapper_trains_in_bfloat16():
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    before = model[0].weight.clone()
    wrapper = CpuAmpOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    inputs = torch.rand(16, 4)
    losses = []
    for _ in range(20):
        with wrapper.optim_context(model):
            hidden = model[0](inputs)
            loss = (model(inputs).float() - inputs.sum(1, keepdim=True)).square().mean()
        assert hidden.dtype == torch.bfloat16
        losses.append(float(loss.detach()))
        wrapper.update_params(loss)
    assert model[0].weight.dtype == torch.float32
    assert not torch.equal(before, model[0].weight)
    assert losses[-1] < losses[0] / 2


def test_the_wrapper_resumes_what_was_trained_with_loss_scaling():
    model = torch.nn.Linear(1, 1)
    state = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.3)).state_dict()
    state['loss_scaler'] = dict(scale=512.0)
    wrapper = CpuAmpOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    wrapper.load_state_dict(state)
    assert wrapper.optimizer.param_groups[0]['lr'] == 0.3
    assert 'loss_scaler' in state  # the caller's dict is left alone


# Starting weights


def test_lost_starting_weights_do_not_stop_a_resumed_run(tmp_path, capsys):
    from coc_mm.apis.start import drop_missing_pretrained

    torch.save({}, 'there.pth')
    lost = dict(type='Pretrained', checkpoint='lost.pth', prefix='backbone.')
    there = dict(type='Pretrained', checkpoint='there.pth')
    remote = dict(type='Pretrained', checkpoint='https://x.org/a.pth')
    model = dict(
        backbone=dict(init_cfg=lost),
        neck=dict(init_cfg=[lost, there]),
        head=[dict(init_cfg=remote)],
    )
    config = Config(dict(model=model))
    drop_missing_pretrained(config)
    assert config.model.backbone.init_cfg is None
    assert config.model.neck.init_cfg == [there]
    assert config.model.head[0].init_cfg == remote
    assert 'starting weights lost.pth are gone' in capsys.readouterr().out


# Folders


def _run_that_fails(work, error, *files):
    with run.leaving_nothing_behind(str(work), 'c.py'):
        for name in files:
            path = Path(work, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        raise error


def test_a_mistake_takes_back_folders_that_it_made():
    Path('there').mkdir()
    with pytest.raises(UserError):
        _run_that_fails('there/a/b', UserError('no'), '2026/run.log', 'c.py')
    assert list(Path('there').iterdir()) == []


def test_bugs_and_checkpoints_stay():
    with pytest.raises(RuntimeError):
        _run_that_fails('bug', RuntimeError('bug'), '2026/run.log')
    assert Path('bug/2026/run.log').exists()
    with pytest.raises(UserError):
        _run_that_fails('late', UserError('no'), '2026/run.log', 'epoch_1.pth')
    assert Path('late/2026/run.log').exists()


def test_other_processes_of_a_run_remove_nothing(monkeypatch):
    monkeypatch.setenv('RANK', '1')
    with pytest.raises(UserError):
        _run_that_fails('work', UserError('no'), 'run.log')
    assert Path('work/run.log').exists()


# Runners


def test_runner_type_is_built_under_the_scope_of_the_config(monkeypatch):
    @RUNNERS.register_module(force=True)
    class OwnRunner(Runner):
        @classmethod
        def from_cfg(cls, config):
            scope = DefaultScope.get_current_instance().scope_name
            return cls.__name__, scope

    try:
        config = Config(dict(runner_type='OwnRunner', default_scope='mmseg'))
        assert run.build_runner(config) == ('OwnRunner', 'mmseg')
    finally:
        RUNNERS._module_dict.pop('OwnRunner')
