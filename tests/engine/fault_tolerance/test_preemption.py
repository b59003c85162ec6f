"""What a stop saves; the stops themselves are in tests/integration."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.hooks import CheckpointHook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from tiny_projects import forget_singletons

from coc_mm.engine.fault_tolerance import preemption as stop_signals
from coc_mm.engine.fault_tolerance.atomic_checkpoint_hook import AtomicCheckpointHook
from coc_mm.engine.fault_tolerance.resume import find_latest_checkpoint


class OneNumber(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, mode='loss'):
        return dict(loss=(self.weight * x).sum())


class TheirHook(CheckpointHook):
    """One that somebody else made."""


@pytest.mark.parametrize('kind', [TheirHook, AtomicCheckpointHook])
def test_whoever_saves_checkpoints_a_stop_can_be_resumed(kind, tmp_path):
    forget_singletons()
    runner = Runner(
        OneNumber(),
        str(tmp_path),
        train_dataloader=torch.utils.data.DataLoader([dict(x=torch.ones(1))] * 4),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(checkpoint=dict(type=kind, interval=1)),
        experiment_name=f'stops_{kind.__name__}',
    )
    runner.train()
    (keeper,) = (hook for hook in runner.hooks if isinstance(hook, CheckpointHook))
    assert type(keeper) is kind
    path = stop_signals._save(runner, keeper, 1, 6)
    assert Path(path) == tmp_path / 'stopped_iter_6.pth'
    content = torch.load(path, weights_only=False)
    assert (content['meta']['epoch'], content['meta']['iter']) == (1, 6)
    assert {'state_dict', 'optimizer', 'message_hub'} <= set(content)
    assert find_latest_checkpoint(str(tmp_path)) == (path, [])
    forget_singletons()


_SIGNALLED_WORKER = """
import multiprocessing, os
from multiprocessing.util import get_temp_dir
from coc_mm.engine.fault_tolerance.preemption import PreemptionHandler

def work():
    get_temp_dir()  # as passing a tensor on does
    os._exit(0)

with PreemptionHandler():
    worker = multiprocessing.get_context('fork').Process(target=work)
    worker.start()
    worker.join()
"""


def test_a_worker_that_a_signal_ends_leaves_no_temporary_folder(tmp_path):
    environment = dict(os.environ, TMPDIR=str(tmp_path))
    subprocess.run([sys.executable, '-c', _SIGNALLED_WORKER], env=environment, check=True)
    assert not list(tmp_path.glob('pymp-*'))
