"""Losses and gradients that are not finite."""

import logging

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from PIL import Image
from tiny_projects import forget_singletons
from torch import nn

from coc_mm.engine.hooks import nonfinite_hook
from coc_mm.engine.hooks.nonfinite_hook import NonFiniteError, NonFiniteHook
from coc_mm.errors import explain
from coc_mm.registry import HOOKS


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    # A run formats its config, which takes longer than the training here.
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))
    yield
    forget_singletons()


class Model(BaseModel):
    """A conv, a batch norm and a linear layer; batches with NaN pixels make NaN losses."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 1)
        self.steep = False

    def forward(self, inputs, data_samples=None, mode='tensor'):
        images = torch.stack(inputs).float() / 255
        out = self.head(self.norm(self.conv(images)).mean((2, 3)))
        if mode == 'predict':
            return data_samples
        # The root of zero is zero, and its slope is infinite.
        slope = (self.head.weight * 0).abs().sum().sqrt() if self.steep else 0
        return dict(loss_fit=(out - 1).square().mean(), loss_slope=out.sum() * 0 + slope)


def _data(bad=()):
    found = []
    for k in range(12):
        image = torch.full((3, 8, 8), 20.0 * k)
        image[0, :4] = float('nan') if k in bad else 3.0
        sample = BaseDataElement(metainfo=dict(img_path=f'images/{k}.jpg', scale=np.ones(2)))
        found.append(dict(inputs=image, data_samples=sample))
    return found


class Scaled(OptimWrapper):
    """What AmpOptimWrapper does on GPUs."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=4.0)

    def backward(self, loss, **kwargs):
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs):
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()


class Watch(Hook):
    """Keep the weights before each iteration, and make some have infinite gradients."""

    def __init__(self, steep_at):
        self.steep_at, self.weights = steep_at, []

    def before_train_iter(self, runner, **kwargs):
        runner.model.steep = runner.iter in self.steep_at
        self.weights.append({k: v.clone() for k, v in runner.model.state_dict().items()})


def _run(folder, bad=(), wrapper=None, steep_at=(), epochs=1, **settings):
    """Train two images a step, twelve in all; return the runner, also of a run that stopped."""
    forget_singletons()
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    runner = Runner(
        model=model,
        work_dir=str(folder),
        train_dataloader=dict(
            dataset=_data(bad), batch_size=2, sampler=dict(type='DefaultSampler', shuffle=False)
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=(wrapper or OptimWrapper)(optimizer=optimizer),
        default_hooks=dict(nonfinite=dict(type='coc_mm.NonFiniteHook', **settings)),
        custom_hooks=[Watch(steep_at), dict(type='EMAHook', update_buffers=True)],
        randomness=dict(seed=0),
        experiment_name=folder.name,
    )
    runner.error = None
    try:
        runner.train()
    except NonFiniteError as error:
        runner.error = error
    runner.remembered = next(h.weights for h in runner.hooks if isinstance(h, Watch))
    runner.watch = next(h for h in runner.hooks if isinstance(h, NonFiniteHook))
    runner.log = '\n'.join(path.read_text() for path in folder.rglob('*.log'))
    return runner


def _all_finite(value):
    if isinstance(value, torch.Tensor):
        return bool(value.isfinite().all())
    if isinstance(value, dict):
        return all(map(_all_finite, value.values()))
    return all(map(_all_finite, value)) if isinstance(value, (list, tuple)) else True


def test_a_good_run_is_left_as_it_is(tmp_path):
    watched = _run(tmp_path / 'a')
    plainly = _run(tmp_path / 'b', action='skip')
    assert watched.error is plainly.error is None
    assert watched.watch.skipped == plainly.watch.skipped == 0
    expected, found = watched.model.state_dict(), plainly.model.state_dict()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert 'step' not in vars(watched.optim_wrapper), 'taken away again'
    assert not (tmp_path / 'a' / 'nonfinite').exists()


def test_a_run_stops_before_the_update(tmp_path):
    runner = _run(tmp_path, bad=[6], epochs=2)
    assert HOOKS.get('NumbersWatchHook') is NonFiniteHook, 'its former name'
    text = str(runner.error)
    assert text.startswith('iteration 4 (epoch 1): ')
    for part in ('loss is nan', 'loss_fit is nan', 'images/6.jpg, images/7.jpg', '--resume',
                 'iter_4.pth', 'nonfinite.action=skip'):  # fmt: skip
        assert part in text, text
    assert len(text.split('\n')) <= 3
    assert explain(runner.error) == text
    before = runner.remembered[3]
    after = dict(runner.model.named_parameters())
    assert all(torch.equal(before[key], after[key]) for key in after)
    assert not list(tmp_path.glob('epoch_*.pth'))
    kept = torch.load(tmp_path / 'nonfinite' / 'iter_4.pth', weights_only=True)
    assert kept['data_samples'][1]['metainfo']['img_path'] == 'images/7.jpg'
    assert kept['inputs'][0].isnan().any()
    torch.testing.assert_close(kept['inputs'][1], _data()[7]['inputs'])
    assert (kept['iteration'], kept['epoch']) == (4, 1)
    assert np.isnan(kept['losses']['loss_fit'])
    with Image.open(tmp_path / 'nonfinite' / 'iter_4.png') as sheet:
        assert min(sheet.size) >= 8


def test_a_skipped_batch_leaves_no_trace(tmp_path):
    runner = _run(tmp_path, bad=[6], epochs=2, action='skip')
    assert runner.error is None
    assert runner.watch.skipped == 2
    before, after = runner.remembered[3], runner.remembered[4]
    assert {'norm.running_mean', 'norm.running_var', 'conv.weight'} <= before.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    saved = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    for part in ('state_dict', 'ema_state_dict', 'optimizer'):
        assert len(saved[part]) > 1
        assert _all_finite(saved[part]), part
    assert saved['optimizer']['state'][0]['step'] == 10
    assert 'iteration 4 (epoch 1): loss is nan' in runner.log
    assert 'images/6.jpg' in runner.log
    assert '2 updates were skipped in this run' in runner.log


def test_skipping_ends_after_some_in_a_row(tmp_path):
    runner = _run(tmp_path, bad=range(4, 12), action='skip', max_in_a_row=3, save_inputs=2)
    assert '3 updates in a row were skipped' in str(runner.error)
    assert str(runner.error).startswith('iteration 5 ')
    assert len(list((tmp_path / 'nonfinite').glob('*.pth'))) == 2
    runner = _run(tmp_path / 'apart', bad=[0, 4, 8], action='skip', max_in_a_row=2)
    assert runner.error is None
    assert runner.watch.skipped == 3


@pytest.mark.parametrize('action', ['stop', 'skip'])
def test_gradients_are_watched_too(tmp_path, action):
    runner = _run(tmp_path, steep_at=[2], action=action)
    said = str(runner.error) if action == 'stop' else runner.log
    assert 'iteration 3 (epoch 1): the gradients are not finite (loss ' in said
    assert _all_finite(runner.model.state_dict())
    assert len(runner.remembered) == (3 if action == 'stop' else 6)


def test_accumulated_gradients_are_left_out_together(tmp_path):
    def wrapper(optimizer):
        return OptimWrapper(optimizer=optimizer, accumulative_counts=3)

    runner = _run(tmp_path, bad=[2], wrapper=wrapper, action='skip')
    assert runner.watch.skipped == 1
    saved = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    assert saved['optimizer']['state'][0]['step'] == 1  # of two
    assert _all_finite(saved['state_dict'])
    runner = _run(tmp_path / 'stop', bad=[2], wrapper=wrapper)
    assert str(runner.error).startswith('iteration 2 ')


def test_a_collapsing_gradient_scale_is_reported(tmp_path):
    runner = _run(tmp_path, wrapper=Scaled, steep_at=range(99), epochs=2)
    assert runner.error is None, 'infinite gradients are how a scale is found'
    before, after = runner.remembered[0], dict(runner.model.named_parameters())
    assert all(torch.equal(before[key], after[key]) for key in after)
    lines = [line for line in runner.log.split('\n') if 'gradient scale' in line]
    assert len(lines) == 3, lines  # of twelve halvings, from 4 to 2 ** -10
    assert 'iteration 3: the gradient scale of mixed precision fell to 0.5, below 1' in lines[0]
    assert 'iteration 7: ' in lines[1]
    assert all('WARNING' in line for line in lines)


@pytest.mark.parametrize(
    ('wrong', 'says'), [(dict(action='go'), "not 'go'"), (dict(max_in_a_row=0), 'at least 1')]
)
def test_arguments_are_checked(tmp_path, wrong, says):
    with pytest.raises(ValueError, match=says):
        _run(tmp_path, **wrong)


def test_what_is_saved_is_plain():
    class Boxes:
        tensor = torch.ones(1, 4)

    sample = BaseDataElement(metainfo=dict(path='a', size=(1, 2)), boxes=Boxes(), text='x')
    found = nonfinite_hook._to_plain(
        [sample, dict(a=np.float32(2), b=np.array(['x']), c={3: None}, d=object)]
    )
    assert found[0]['metainfo'] == dict(path='a', size=[1, 2])
    assert torch.equal(found[0]['boxes'], Boxes.tensor)
    assert found[1] == dict(a=2.0, b=['x'], c={3: None}, d="<class 'object'>")
    assert type(found[1]['a']) is float


def test_many_files_are_counted():
    batch = dict(data_samples=[dict(img_path=f'{k}.jpg') for k in range(20)])
    text, _ = nonfinite_hook._describe(batch, dict(loss=torch.tensor(float('inf')), note='x'))
    assert text.startswith('loss is inf; batch: 0.jpg, ')
    assert text.endswith('7.jpg and 12 more')


def test_a_full_disk_does_not_hide_the_message(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(logging.ERROR, 'No space left on device')

    monkeypatch.setattr('coc_mm.checkpoints.save.torch.save', full)
    runner = _run(tmp_path, bad=[6])
    assert 'could not be saved' in str(runner.error)
    assert 'loss_fit is nan' in str(runner.error)
    assert not list((tmp_path / 'nonfinite').iterdir())
