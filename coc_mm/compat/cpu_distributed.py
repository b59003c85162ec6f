"""Several processes on the CPU, where mmengine knows accelerators only.

``mmengine.dist.init_dist`` sets a CUDA device, and the runner gives a device index to the model's
wrapper, which torch refuses on the CPU, like synchronized batch norms. mmengine leaves
``init_dist`` out where a group exists, and takes a wrapper's arguments from the config.
"""

import datetime
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from mmengine.config import Config

# Where launchers other than torchrun say what torchrun says in RANK and the like.
_MPI = 'OMPI_COMM_WORLD_'
_VARIABLES = {
    'slurm': dict(RANK='SLURM_PROCID', WORLD_SIZE='SLURM_NTASKS', LOCAL_RANK='SLURM_LOCALID'),
    'mpi': dict(RANK=_MPI + 'RANK', WORLD_SIZE=_MPI + 'SIZE', LOCAL_RANK=_MPI + 'LOCAL_RANK'),
}


def name_rank(launcher: str) -> None:
    """Set ``RANK`` early, as torchrun does, for ``'pytorch'``, ``'slurm'`` or ``'mpi'``."""
    source = _VARIABLES.get(launcher, {}).get('RANK')
    if source is not None and source in os.environ:
        os.environ['RANK'] = os.environ[source]


def _set_variables(launcher: str) -> None:
    for name, source in _VARIABLES.get(launcher, {}).items():
        if source in os.environ:
            os.environ[name] = os.environ[source]
    if launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        nodes = ['scontrol', 'show', 'hostname', os.environ['SLURM_NODELIST']]
        os.environ['MASTER_ADDR'] = subprocess.check_output(nodes, text=True).split()[0]
    os.environ.setdefault('MASTER_ADDR', '127.0.0.1')
    os.environ.setdefault('MASTER_PORT', '29500')


def _separate_norms(node) -> None:
    """Replace synchronized batch norms in a nested config."""
    if isinstance(node, dict) and node.get('type') == 'SyncBN':
        node['type'] = 'BN'
    if isinstance(node, (list, tuple, dict)):
        for child in node.values() if isinstance(node, dict) else node:
            _separate_norms(child)


def use_cpu_wrappers(config: Config) -> None:
    """Set the model's wrapper, of a runner or a strategy, and its batch norms to the CPU."""
    _separate_norms(config.get('model'))
    config.pop('sync_bn', None)
    strategy = config.get('strategy')
    if strategy is None:
        wrapper = dict(config.get('model_wrapper_cfg') or {})
        if not wrapper:  # what Runner.wrap_model does without one
            unused = config.get('find_unused_parameters', False)
            wrapper = dict(broadcast_buffers=False, find_unused_parameters=unused)
        wrapper.setdefault('type', 'MMDistributedDataParallel')
        config.model_wrapper_cfg = {**wrapper, 'device_ids': None}
        return
    wrapper = dict(strategy.get('model_wrapper') or {})
    if str(strategy['type']).endswith('FSDPStrategy'):
        # None would make torch look for an accelerator.
        wrapper['device_id'] = 'cpu'
    else:
        wrapper = dict(broadcast_buffers=False) | wrapper | dict(device_ids=None)
    strategy['model_wrapper'] = wrapper


@contextmanager
def process_group_on_cpu(launcher: str, timeout: float | None = None) -> Iterator[None]:
    """Start a group of processes over gloo; end it afterwards. ``timeout`` is in seconds."""
    _set_variables(launcher)
    limit = None if timeout is None else datetime.timedelta(seconds=timeout)
    dist.init_process_group('gloo', timeout=limit)
    try:
        yield
    finally:
        dist.destroy_process_group()
