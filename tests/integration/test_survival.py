"""Twenty kills of one training: nothing is lost, not a bit differs from the undisturbed run."""

import random
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from survival_projects import final_state, play, read_end, read_losses, same
from survival_projects import write_survival_project as write

KILLS = 20
pytestmark = pytest.mark.timeout(600)


def _plan_kills(rng):
    """Half by the parent at some time; half at moments that are short, or matter most."""
    kills = []
    moments = ['write', 'write', 'write', 'write', 'moved', 'record', 'removal', 'validation']
    for number in range(KILLS):
        if number % 2:
            asked = dict(after='iteration', n=rng.randint(1, 4), delay=rng.uniform(0, 0.04))
            kills.append(dict(signal=dict(asked, number=int(signal.SIGKILL))))
        else:
            at = moments[number // 2 % len(moments)]
            n = rng.randint(1, 4) if at == 'validation' else rng.randint(1, 2)
            kills.append(dict(kill=dict(at=at, n=n, share=rng.random())))
    rng.shuffle(kills)
    return kills


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
    """The undisturbed run, and those of the one that is killed, in order."""
    folder = tmp_path_factory.mktemp('kills')
    config = write(folder, 'mmpretrain')
    options = ['--cfg-options', 'train_cfg.max_epochs=16']

    def run(name, work_dir, **more):
        argv = [str(config), '--work-dir', str(folder / work_dir), '--resume', *options]
        return dict(log=str(folder / name), argv=argv, **more)

    kills = _plan_kills(random.Random(2301))
    killed = [run(f'killed_{n}', 'killed', **kill) for n, kill in enumerate(kills)]
    killed.append(run('last', 'killed'))
    # Workers, which augment in other processes and ahead of the training, change nothing.
    workers = ['train_dataloader.num_workers=2', 'val_dataloader.num_workers=1']
    undisturbed = run('undisturbed', 'undisturbed')
    undisturbed['argv'] += workers
    play(folder, [[undisturbed], killed], 'mmpretrain')
    logs = [Path(each['log']) for each in killed]
    reference = dict(read_losses(folder / 'undisturbed'))
    return SimpleNamespace(folder=folder, logs=logs, reference=reference)


def test_twenty_kills_and_no_loss(ran):
    ends = [read_end(log) for log in ran.logs]
    assert read_end(ran.folder / 'undisturbed')['status'] == [0]
    assert [end['status'] for end in ends] == [[-signal.SIGKILL]] * KILLS + [[0]]
    assert len(ran.reference) == 16 * 5
    # Every loss of every run is that of the undisturbed run at the same iteration.
    seen = set()
    for log in ran.logs:
        for iteration, loss in read_losses(log):
            assert loss == ran.reference[iteration], f'{log.name}, iteration {iteration}'
            seen.add(iteration)
    assert seen == set(ran.reference)
    assert same(final_state(ran.folder / 'killed'), final_state(ran.folder / 'undisturbed'))


def test_progress_is_kept_up_to_the_last_checkpoint(ran):
    resumed = 0
    for before, log in zip(ran.logs, ran.logs[1:], strict=False):
        newest = max(read_end(before)['files'].values(), default=0)
        said = Path(f'{log}.0').read_text()
        losses = read_losses(log)
        if newest:
            assert 'resume: continuing from' in said, log.name
            resumed += 1
        if losses:
            assert losses[0][0] == newest, log.name
    assert resumed >= KILLS - 4


def test_no_checkpoint_is_ever_unreadable(ran):
    ends = [read_end(log) for log in ran.logs]
    for end in ends:
        assert -1 not in end['files'].values(), end
        # With max_keep_ckpts=1: one, or two before the older one is removed; and the best.
        assert len([name for name in end['files'] if name.startswith('epoch')]) <= 2, end
    assert sum(len(end['files']) for end in ends) >= KILLS
    assert sum(len(end['partial']) for end in ends) >= 3, 'kills inside of writing leave parts'
    assert not ends[-1]['partial'], 'which the next start removes'


def test_validations_owed_are_made_up_for(ran):
    """Each epoch is validated at least once; one that was through is not validated again."""
    said = ''.join(Path(f'{log}.0').read_text() for log in ran.logs)
    validated = re.findall(r'Epoch\(val\) \[(\d+)\]\[5/5\]    accuracy', said)
    assert set(map(int, validated)) == set(range(1, 17))
    assert 'has not been validated' in said
