"""``--deterministic``: two runs of the same command are equal bit for bit."""

import json
import subprocess
import sys
from pathlib import Path

import fork_ranks
import pytest
import torch
from tiny_projects import SCOPES, write_project

# Draws in the process (drop path, mixup), and in the workers (flips, crops, erasing).
CHANGES = {
    'mmpretrain': """
model = dict(
    backbone=dict(drop_path_rate=0.3),
    head=dict(cal_acc=False),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]))
train_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=32),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomErasing', erase_prob=0.9, mode='rand'),
    dict(type='PackInputs')]))
""",
    'mmdet': """
model = dict(backbone=dict(drop_path_rate=0.3))
train_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackDetInputs')]))
""",
    'mmseg': """
model = dict(backbone=dict(drop_path_rate=0.3), decode_head=dict(dropout_ratio=0.5))
train_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomCrop', crop_size=(48, 48)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs')]))
""",
}
COMMON = """
train_dataloader['num_workers'] = 2
train_dataloader['batch_size'] = 1
train_cfg = dict(max_epochs=2)
randomness = dict(_delete_=True, seed=None)
"""


def _twice(folder, scopes):
    """Train in two processes that share nothing; return losses and weights by library."""
    projects = {}
    for scope in scopes:
        base = write_project(folder / scope, scope)
        projects[scope] = base.with_name('changed.py')
        projects[scope].write_text(f"_base_ = '{base.name}'\n" + CHANGES[scope] + COMMON)
    running = []
    for name in ('first', 'second'):
        runs = folder / f'{name}.json'
        plan = []
        for scope in scopes:
            run = folder / f'{name}_{scope}'
            argv = [str(projects[scope]), '--work-dir', str(run), '--no-validate']
            more = dict(argv=[*argv, '--deterministic'], world=1, threads=2, log=f'{run}.log')
            plan.append(dict(library=scope, **more))
        runs.write_text(json.dumps(plan))
        # Hashes order sets: they differ from run to run unless somebody fixes them.
        running.append(subprocess.Popen(
            [sys.executable, fork_ranks.__file__, runs], cwd=folder, stderr=subprocess.PIPE,
            env=fork_ranks.environment(2, PYTHONHASHSEED=str(len(running))), text=True,
        ))  # fmt: skip
    for process in running:
        said = process.communicate(timeout=800)[1]
        assert process.returncode == 0, said
    found = {}
    for scope in scopes:
        found[scope] = []
        for name in ('first', 'second'):
            log = folder / f'{name}_{scope}.log'
            said = Path(f'{log}.0').read_text()
            assert json.loads(Path(f'{log}.status').read_text()) == [0], said
            losses = Path(f'{log}.0.losses').read_text().split()
            state = torch.load(folder / f'{name}_{scope}' / 'epoch_2.pth', weights_only=False)
            found[scope].append((losses, state))
    return found


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
    return _twice(tmp_path_factory.mktemp('deterministic'), SCOPES)


@pytest.mark.timeout(900)
@pytest.mark.skipif(torch.cuda.is_available(), reason='about the CPU')
@pytest.mark.parametrize('scope', SCOPES)
def test_two_runs_are_equal_bit_for_bit(ran, scope):
    (losses, state), (again, other) = ran[scope]
    assert len(losses) == (8 if scope == 'mmpretrain' else 4)
    assert len(set(losses)) == len(losses)
    assert losses == again, 'written with every digit'
    weights = state['state_dict']
    assert len(weights) > 50
    assert weights.keys() == other['state_dict'].keys()
    assert all(torch.equal(weights[key], other['state_dict'][key]) for key in weights)
    moments, others = (s['optimizer']['state'] for s in (state, other))
    assert all(torch.equal(moments[k]['exp_avg'], others[k]['exp_avg']) for k in moments)
    assert state['meta']['seed'] == 0


@pytest.mark.timeout(900)
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_two_runs_are_equal_on_a_gpu(tmp_path):
    ((losses, state), (again, other)) = _twice(tmp_path, ['mmpretrain'])['mmpretrain']
    assert losses == again
    weights = state['state_dict']
    assert all(torch.equal(weights[key], other['state_dict'][key]) for key in weights)
