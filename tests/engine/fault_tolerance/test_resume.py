import os

import pytest
import torch
from mmengine.config import Config

from coc_mm.engine.fault_tolerance.resume import (
    find_latest_checkpoint,
    latest_named,
)
from coc_mm.engine.fault_tolerance.seeding import adopt_seed
from coc_mm.errors import CheckpointError


@pytest.fixture
def write(tmp_path):
    """Write checkpoints one after the other."""
    moment = [1_000_000_000]

    def call(name, iteration, record=True, folder=tmp_path, **more):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        state = dict(meta=dict(iter=iteration), message_hub={}, optimizer={})
        torch.save(dict(state, state_dict=dict(a=torch.rand(5000)), **more), path)
        moment[0] += 10
        os.utime(path, (moment[0], moment[0]))
        if record:
            (tmp_path / 'last_checkpoint').write_text(str(path))
            os.utime(tmp_path / 'last_checkpoint', (moment[0] + 1, moment[0] + 1))
        return path

    return call


def _damage(path, flip=True):
    """Change a bit in the weights, or cut the file."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 1
    path.write_bytes(content if flip else content[:middle])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_nothing_there(tmp_path):
    assert find_latest_checkpoint(str(tmp_path / 'none')) == (None, [])
    assert latest_named(tmp_path) is None
    (tmp_path / 'last_checkpoint').write_text('\0\0')  # a crash of the machine
    assert find_latest_checkpoint(str(tmp_path)) == (None, [])


@pytest.mark.parametrize('flip', [True, False])
def test_damaged_ones_are_passed_over_and_named(tmp_path, write, flip):
    first, second, third = (write(f'epoch_{n}.pth', n) for n in (1, 2, 3))
    assert find_latest_checkpoint(str(tmp_path)) == (str(third), [])
    _damage(third, flip)
    found, passed = find_latest_checkpoint(str(tmp_path))
    assert found == str(second)
    assert [str(third) in each for each in passed] == [True]
    _damage(second, flip)
    assert find_latest_checkpoint(str(tmp_path))[0] == str(first)
    _damage(first, flip)
    with pytest.raises(CheckpointError, match=r'No checkpoint in .* is whole'):
        find_latest_checkpoint(str(tmp_path))


def test_the_one_written_last_is_taken(tmp_path, write):
    write('epoch_1.pth', 5)
    later = write('epoch_2.pth', 10, record=False)
    assert find_latest_checkpoint(str(tmp_path)) == (str(later), [])
    write('epoch_3.pth', 15)
    again = write('epoch_2.pth', 10)  # a run taken up from an older one
    assert find_latest_checkpoint(str(tmp_path)) == (str(again), [])


def test_a_record_of_a_lost_file(tmp_path, write):
    first, second = write('epoch_1.pth', 1), write('epoch_2.pth', 2)
    second.unlink()
    found, passed = find_latest_checkpoint(str(tmp_path))
    assert found == str(first)
    assert f'{second}, which does not exist' in passed[0]


def test_other_files_are_not_taken(tmp_path, write):
    write('best_acc_epoch_3.pth', 3, record=False)
    write('weights.pth', 9, record=False)
    assert find_latest_checkpoint(str(tmp_path)) == (None, [])
    stopped = write('stopped_iter_7.pth', 7)
    assert find_latest_checkpoint(str(tmp_path)) == (str(stopped), [])


def test_another_folder_another_name_and_a_moved_folder(tmp_path, write):
    out = tmp_path / 'out'
    own = write('my_3.pth', 3, folder=out)
    (tmp_path / 'last_checkpoint').unlink()
    assert find_latest_checkpoint(str(tmp_path), str(out), 'my_{}.pth') == (str(own), [])
    here = write('epoch_1.pth', 1)
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/epoch_1.pth')
    assert latest_named(tmp_path) == here


def test_the_seed_of_a_run_is_kept():
    config = Config(dict(randomness=dict(seed=None, diff_rank_seed=True)))
    assert adopt_seed(config, dict(seed=7)) is None
    assert config.randomness == dict(seed=7, diff_rank_seed=True)
    assert adopt_seed(config, dict(seed=8)) == (7, 8)
    assert config.randomness.seed == 8
    assert adopt_seed(config, {}) is None
    config = Config({})
    adopt_seed(config, dict(seed=3))
    assert config.randomness == dict(seed=3)
