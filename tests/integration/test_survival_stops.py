"""Requests to stop, full disks, the other libraries, several processes: runs go on from there."""

import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from survival_projects import final_state, play, read_end, read_losses, same
from survival_projects import write_survival_project as write
from tiny_projects import SCOPES

from coc_mm.engine.fault_tolerance.preemption import STOPPED_STATUS

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(torch.cuda.is_available(), reason='about the CPU'),
]
TERM, USR1, INT = int(signal.SIGTERM), int(signal.SIGUSR1), int(signal.SIGINT)

# Rounding differs between one process and two, and what one draws for a batch is not what two
# draw for their halves.
PLAIN = (
    'model.backbone.drop_path_rate=0',
    'model.train_cfg.augments=None',
    'optim_wrapper.optimizer.type=SGD',
)
# Workers of loaders get the signals, too, where a launcher sends them to all processes.
WORKERS = ('train_dataloader.num_workers=1', 'val_dataloader.num_workers=1')


def _chains(folder):
    configs = {scope: write(folder / scope, scope) for scope in SCOPES}

    def run(name, work_dir, *options, scope='mmpretrain', world=1, **more):
        argv = [str(configs[scope]), '--work-dir', str(folder / work_dir), '--resume']
        argv += ['--launcher', 'pytorch' if world > 1 else 'none']
        argv += ['--cfg-options', 'train_cfg.val_interval=2', *options]
        return dict(log=str(folder / name), argv=argv, world=world, **more)

    def stop(number, after='iteration', n=8, **more):
        return dict(after=after, n=n, delay=0, number=number, **more)

    four, by_four = 'train_cfg.max_epochs=4', 'optim_wrapper.accumulative_counts=4'
    single = [
        run('whole', 'whole', four),
        run('term', 'stopped', four, *WORKERS, signal=stop(TERM), slow=0.1),
        run('usr1', 'stopped', four, signal=stop(USR1, 'validation', 2), slow=0.1),
        run('stopped_last', 'stopped', four),
        run('at_once', 'at_once', four, signal=stop(TERM, n=1, again=2.5), slow=6),
        run('interrupted', 'interrupted', four, signal=stop(INT, n=7), slow=0.1),
        run('interrupted_last', 'interrupted', four),
        run('seedless', 'seedless', four, 'randomness.seed=None', signal=stop(TERM)),
        run('seedless_last', 'seedless', four, 'randomness.seed=None'),
        run('accumulated', 'accumulated', four, by_four, signal=stop(TERM, n=5), slow=0.1),
        run('accumulated_last', 'accumulated', four, by_four),
        run('accumulated_whole', 'accumulated_whole', four, by_four),
        run('full', 'stopped', 'train_cfg.max_epochs=6', largest=60_000),
        run('roomy', 'stopped', 'train_cfg.max_epochs=6'),
    ]
    libraries = []
    kills = dict(
        mmseg=[('iteration', 7), ('write', 2), ('validation', 1)],
        mmdet=[('iteration', 3), ('moved', 1), ('record', 1)],
    )
    for scope, moments in kills.items():
        killed = dict(work_dir=f'{scope}_killed', scope=scope)
        libraries.append(run(f'{scope}_whole', f'{scope}_whole', scope=scope))
        libraries += [
            run(f'{scope}_{k}', **killed, kill=dict(at=at, n=n, share=0.3))
            for k, (at, n) in enumerate(moments)
        ]
        libraries.append(run(f'{scope}_stopped', **killed, signal=stop(TERM, n=1), slow=0.2))
        libraries.append(run(f'{scope}_last', **killed))
    one = [*PLAIN, four, 'train_dataloader.batch_size=4']
    two = [*PLAIN, four, 'train_dataloader.batch_size=2']
    libraries += [
        run('one', 'one', *one),
        run('two_term', 'two', *two, world=2, signal=stop(TERM, n=4, ranks=[1]), slow=0.1),
        run('two_killed', 'two', *two, world=2, kill=dict(at='iteration', n=3)),
        run('one_after_two', 'two', *one, signal=stop(TERM, n=2), slow=0.1),
        run('two_after_one', 'two', *two, world=2),
    ]
    return [single, libraries]


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp('stops')
    play(folder, _chains(folder), *SCOPES)

    def look(name):
        log = folder / name
        ranks = len(read_end(log)['status'])
        return SimpleNamespace(
            **read_end(log),
            said=[Path(f'{log}.{rank}').read_text() for rank in range(ranks)],
            losses=[read_losses(log, rank) for rank in range(ranks)],
        )

    look.folder = folder
    return look


def _same_losses(ran, reference, *names):
    expected = dict(ran(reference).losses[0])
    found = [(name, *each) for name in names for each in ran(name).losses[0]]
    assert not [each for each in found if each[2] != expected[each[1]]]
    return len(found)


def _same_end(ran, one, other):
    assert same(final_state(ran.folder / one), final_state(ran.folder / other))


def test_sigterm_saves_inside_an_epoch_and_the_run_goes_on_there(ran):
    stopped, resumed = ran('term'), ran('usr1')
    assert stopped.status == [STOPPED_STATUS]
    last = stopped.losses[0][-1][0] + 1
    assert f'stopped_iter_{last}.pth' in stopped.files
    assert f'stopped after iteration {last} of 20: saved' in stopped.said[0]
    assert 'Traceback' not in stopped.said[0]
    assert last % 5, 'inside an epoch'
    assert resumed.losses[0][0][0] == last, 'no iteration is trained twice'
    assert f'Epoch 2 goes on after {last % 5} of its 5' in resumed.said[0]
    assert f'Epoch(train)  [2][{last % 5 + 1}/5]'.replace('  ', ' ') in resumed.said[0]


def test_a_stop_while_validating_and_the_end(ran):
    stopped, last = ran('usr1'), ran('stopped_last')
    assert stopped.status == [STOPPED_STATUS]
    assert 'SIGUSR1' in stopped.said[0]
    assert 'has not been validated' in last.said[0]
    assert last.status == [0]
    assert _same_losses(ran, 'whole', 'term', 'usr1', 'stopped_last') >= 20
    assert not [name for name in last.files if name.startswith('stopped')]


def test_a_second_signal_ends_at_once(ran):
    run = ran('at_once')
    assert run.status == [128 + TERM]
    assert len(run.losses[0]) == 1
    assert not run.files


def test_an_interrupt_says_one_line(ran):
    run = ran('interrupted')
    assert run.status == [130]
    assert run.said[0].rstrip().endswith('interrupted')
    assert not run.partial
    assert -1 not in run.files.values()
    _same_losses(ran, 'whole', 'interrupted', 'interrupted_last')
    _same_end(ran, 'interrupted', 'whole')


def test_a_seed_that_was_drawn_is_kept(ran):
    assert ran('seedless').status == [STOPPED_STATUS]
    assert ran('seedless_last').status == [0]
    first, last = ran('seedless').losses[0], ran('seedless_last').losses[0]
    assert last[0][0] == first[-1][0] + 1
    paths = (ran.folder / 'seedless').glob('epoch_*.pth')
    assert len({torch.load(path, weights_only=False)['meta']['seed'] for path in paths}) == 1


def test_a_stop_waits_for_gradients_to_be_used(ran):
    """Asked for in the last iteration of an epoch, which is the fifth, with groups of four."""
    stopped = ran('accumulated')
    assert stopped.status == [STOPPED_STATUS]
    assert (stopped.losses[0][-1][0] + 1) % 4 == 0
    _same_losses(ran, 'accumulated_whole', 'accumulated', 'accumulated_last')
    _same_end(ran, 'accumulated', 'accumulated_whole')


def test_a_full_disk_ends_with_a_sentence_and_whole_checkpoints(ran):
    run = ran('full')
    assert run.status == [2]
    errors = [line for line in run.said[0].splitlines() if line.startswith('error: ')]
    assert len(errors) == 1
    assert 'cannot be written (File too large)' in errors[0]
    assert 'Traceback' not in run.said[0]
    assert run.files == ran('stopped_last').files
    assert not run.partial
    assert ran('roomy').status == [0]
    assert min(i for i, _ in ran('roomy').losses[0]) >= 20


@pytest.mark.parametrize('scope', ['mmseg', 'mmdet'])
def test_the_other_libraries_lose_nothing(ran, scope):
    names = [f'{scope}_{n}' for n in range(3)]
    assert [ran(name).status for name in names] == [[-signal.SIGKILL]] * 3
    assert ran(f'{scope}_stopped').status == [STOPPED_STATUS]
    assert ran(f'{scope}_last').status == [0]
    assert _same_losses(ran, f'{scope}_whole', *names, f'{scope}_stopped', f'{scope}_last') >= 8
    _same_end(ran, f'{scope}_killed', f'{scope}_whole')


def test_processes_stop_together_and_another_number_goes_on(ran):
    assert ran('one').status == [0]
    assert ran('two_term').status == [STOPPED_STATUS] * 2, ran('two_term').said
    assert len({len(losses) for losses in ran('two_term').losses}) == 1
    assert ran('two_killed').stuck == [False] * 2
    assert ran('two_killed').status[0] == -signal.SIGKILL
    assert ran('one_after_two').status == [STOPPED_STATUS]
    assert ran('two_after_one').status == [0, 0], ran('two_after_one').said
    expected = dict(ran('one').losses[0])
    seen = set()
    for name in ('two_term', 'two_killed', 'one_after_two', 'two_after_one'):
        for step in zip(*ran(name).losses, strict=False):
            iteration = step[0][0]
            seen.add(iteration)
            mean = sum(loss for _, loss in step) / len(step)
            assert mean == pytest.approx(expected[iteration], rel=1e-4), f'{name}, {iteration}'
    assert seen == set(expected)
