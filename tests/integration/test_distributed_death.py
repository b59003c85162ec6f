"""One process of several is killed, fails or hangs: the run ends and says why."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fork_ranks import environment, free_port, play_runs
from tiny_projects import write_project

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason='about the CPU'),
    pytest.mark.timeout(900),
]


def _write_config(base, name, fault, **more):
    path = base.with_name(f'{name}.py')
    faults = [dict(type=f'faults.{fault}', **more)]
    change = f'custom_hooks = {faults}'
    if fault == 'KillWorker':
        change = f'train_dataloader = dict(dataset=dict(pipeline={faults}))'
    path.write_text(f'_base_ = {str(base)!r}\n{change}')
    return path


def _plan(folder):
    base = write_project(folder / 'project', 'mmpretrain')

    def run(name, world, fault, *options, **more):
        path = _write_config(base, name, fault, **more)
        argv = [str(path), '--work-dir', str(folder / name), '--no-validate']
        argv += ['--launcher', 'pytorch' if world > 1 else 'none', '--cfg-options']
        argv += ['train_cfg.max_epochs=3', 'train_dataloader.batch_size=1', *options]
        return dict(name=name, library='mmpretrain', argv=argv, world=world)

    second = dict(iteration=2, rank=1)
    return [
        run('killed', 2, 'Die', **second),
        run('hanging', 2, 'Hang', 'env_cfg.dist_cfg.timeout=3', **second),
        run('nan', 2, 'NanLoss', iteration=4, rank=1),
        run('nan_skipped', 2, 'NanLoss', 'default_hooks.nonfinite.action=skip', **second),
        run('worker', 1, 'KillWorker', 'train_dataloader.num_workers=1'),
    ]


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
    """What the processes of every run said, and how they ended."""
    folder = tmp_path_factory.mktemp('death')
    found = play_runs(folder, _plan(folder), timeout=850)
    for run in found.values():
        lines = [text.split('\n') for text in run.said]
        run.errors = [[line for line in each if 'error: ' in line] for each in lines]
    return found


def test_torchrun_ends_all_when_one_fails(tmp_path):
    """The one that fails says why; torchrun names it, and ends the job."""
    base = write_project(tmp_path, 'mmpretrain')
    path = _write_config(base, 'fails', 'Fail', iteration=2, rank=1)
    start = time.monotonic()
    done = subprocess.run(
        ['bash', ROOT / 'tools' / 'dist_train.sh', path, '2', '--no-validate', '--cfg-options',
         'train_cfg.max_epochs=3', 'train_dataloader.batch_size=1'],
        env=environment(PYTHON=sys.executable, PORT=str(free_port())),
        capture_output=True, text=True, timeout=850, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert time.monotonic() - start < 240, 'the libraries are imported twice in it'
    summary = done.stderr[done.stderr.index('Root Cause') :]
    assert 'rank      : 1 ' in summary
    assert 'RuntimeError: broken on purpose' in summary
    assert done.stderr.count('Traceback (most recent call last):\n') >= 1


def test_a_killed_process_ends_the_others(ran):
    run = ran['killed']
    assert run.status == [2, -9], run.said
    (line,) = run.errors[0]
    assert 'error: another process of this run has ended' in line
    assert '--resume' in run.said[0].split(line)[1]
    assert 'Traceback' not in run.said[0]


def test_one_that_hangs_is_waited_for_as_long_as_documented(ran):
    run = ran['hanging']
    assert run.status[0] == 2
    assert run.errors[0][0].startswith('error: waited 3 s for another process')
    assert 'env_cfg.dist_cfg.timeout=SECONDS' in run.said[0]


def test_a_loss_that_is_nan_in_one_process_stops_all(ran):
    run = ran['nan']
    assert run.status == [2, 2], run.said
    (line,) = run.errors[0]
    assert 'error: iteration 4 (epoch 2), process 1: loss is nan' in line
    assert '.png' in line, 'the file of the batch'
    assert 'iter_4_process_1.pth' in line
    assert run.errors[1] == ['error: stopped together with process 0, whose message says why.']
    (kept,) = (run.work_dir / 'nonfinite').glob('*.pth')
    assert kept.name == 'iter_4_process_1.pth'
    kept = torch.load(run.work_dir / 'epoch_1.pth', weights_only=False)
    assert kept['meta']['epoch'] == 1


def test_a_loss_that_is_nan_in_one_process_is_skipped_by_all(ran):
    run = ran['nan_skipped']
    assert run.status == [0, 0], run.said
    assert 'iteration 2 (epoch 1), process 1: loss is nan' in run.said[0]
    last = torch.load(run.work_dir / 'epoch_3.pth', weights_only=False)
    assert all(value.isfinite().all() for value in last['state_dict'].values())
    steps = {int(state['step']) for state in last['optimizer']['state'].values()}
    assert steps == {5}


def test_a_killed_loader_worker_is_one_message(ran):
    run = ran['worker']
    assert run.status == [2], run.said
    (line,) = run.errors[0]
    assert 'error: a process that loads data (pid ' in line
    assert 'out of memory' in line
    assert 'num_workers=1' in run.said[0].split(line)[1]
    assert 'Traceback' not in run.said[0].split(line)[1]
