"""One process of several is lost, fails or hangs: the others end and say whose fault it was."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_projects import write_project

from coc_mm.compat.lost_processes import LOST_STATUS

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason='about the CPU'),
    pytest.mark.timeout(900),
]


def _plan(folder):
    config = write_project(folder / 'project', 'mmpretrain')

    def run(name, world, fault, *options, **more):
        path = config.with_name(f'{name}.py')
        hooks = [dict(type=f'faults.{fault}', **more)] if fault else []
        lines = [f'_base_ = {str(config)!r}', f'custom_hooks = {hooks!r}']
        if fault is None:
            pipeline = [dict(type='faults.KillWorker')]
            lines.append(f'train_dataloader = dict(dataset=dict(pipeline={pipeline!r}))')
        path.write_text('\n'.join(lines))
        argv = [str(path), '--work-dir', str(folder / name), '--no-validate']
        argv += ['--launcher', 'pytorch' if world > 1 else 'none', '--cfg-options']
        argv += ['train_cfg.max_epochs=3', 'train_dataloader.batch_size=1', *options]
        log = str(folder / f'{name}.log')
        return dict(name=name, tool='train', library='mmpretrain', argv=argv, world=world, log=log)

    killed = dict(iteration=2, rank=1)
    return [
        run('training', 2, 'Die', **killed),
        run('loop', 2, 'Die', **killed, others='loop'),
        run('barrier', 4, 'Die', iteration=1, rank=2, others='barrier'),
        # Its loader worker outlives it, with every socket that it inherited.
        run('first', 4, 'Die', 'train_dataloader.num_workers=1', iteration=1, others='loop'),
        run('failed', 2, 'Fail', **killed, others='loop'),
        run('hanging', 2, 'Hang', 'env_cfg.dist_cfg.timeout=3', **killed),
        run('nan', 2, 'NanLoss', iteration=4, rank=1),
        run('nan_skipped', 2, 'NanLoss', 'default_hooks.numbers.action=skip', **killed),
        run('worker', 1, None, 'train_dataloader.num_workers=1'),
    ]


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
    """What the processes of every run said, and how they ended."""
    folder = tmp_path_factory.mktemp('death')
    plan = _plan(folder)
    (folder / 'runs.json').write_text(json.dumps(plan))
    environment = dict(os.environ, OMP_NUM_THREADS='1', MPLBACKEND='Agg')
    environment['PYTHONPATH'] = f'{ROOT}:{HERE}'
    script = ROOT / 'tests' / 'tools' / 'fork_ranks.py'
    done = subprocess.run(
        [sys.executable, script, folder / 'runs.json'],
        env=environment, capture_output=True, text=True, timeout=850, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {}
    for run in plan:
        said = [Path(f'{run["log"]}.{rank}').read_text() for rank in range(run['world'])]
        died = folder / run['name'] / 'died'
        ended = float(Path(f'{run["log"]}.ended').read_text())
        found[run['name']] = SimpleNamespace(
            work_dir=folder / run['name'],
            status=json.loads(Path(f'{run["log"]}.status').read_text()),
            said=said,
            errors=[[line for line in text.split('\n') if 'error: ' in line] for text in said],
            took=ended - float(died.read_text()) if died.exists() else None,
        )
    return found


@pytest.mark.parametrize(
    ('name', 'lost', 'speaks'),
    [('training', 1, 0), ('loop', 1, 0), ('barrier', 2, 0), ('first', 0, 1)],
)
def test_the_others_end_and_one_names_the_lost(ran, name, lost, speaks):
    run = ran[name]
    world = len(run.status)
    expected = [LOST_STATUS] * world
    expected[lost] = -9
    assert run.status == expected, run.said
    assert run.took < 60
    (line,) = run.errors[speaks]
    assert f'error: process {lost} of {world} (pid ' in line
    assert 'was lost' in line
    assert '--resume' in run.said[speaks].split(line)[1]
    assert sum(map(len, run.errors)) == 1, 'said once on a machine'
    assert not any('Traceback' in text for text in run.said)


def test_a_checkpoint_of_a_run_that_lost_a_process_is_there(ran):
    assert not (ran['barrier'].work_dir / 'epoch_1.pth').exists()
    assert ran['training'].status[0] == LOST_STATUS
    kept = torch.load(ran['nan'].work_dir / 'epoch_1.pth', weights_only=False)
    assert kept['meta']['epoch'] == 1


def test_others_do_not_wait_for_one_that_failed(ran):
    run = ran['failed']
    assert 'RuntimeError: broken on purpose' in run.said[1]
    assert run.status == [LOST_STATUS, 1]
    assert 'error: process 1 of 2 (pid ' in run.said[0]
    assert 'ended with an error: RuntimeError: broken on purpose' in run.said[0]


def test_one_that_hangs_is_waited_for_as_long_as_documented(ran):
    run = ran['hanging']
    assert run.status[0] == 2
    assert run.status[1] == LOST_STATUS, 'it did not wake by itself'
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
    assert [path.name for path in (run.work_dir / 'nonfinite').glob('*.pth')] == [
        'iter_4_process_1.pth'
    ]


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
