"""Run tools in several processes of one group, importing the libraries only once.

``python fork_ranks.py RUNS.json``, a list of ``dict(tool, library, argv, world, env, log)``. The
processes are forks of this one, which has computed nothing; they find the variables of torchrun,
or what ``env`` says. Beside ``log`` lie what each rank said, its losses, and how all ended. Each
computes with one thread, or ``threads``.
"""

import importlib
import json
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import yapf.yapflib.yapf_api  # noqa: F401

import coc_mm  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]


def free_port():
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


def record_losses(path):
    """Write the loss of every iteration of this process, which mmengine logs of rank 0 only."""
    from mmengine.hooks import LoggerHook

    after_train_iter = LoggerHook.after_train_iter

    def recording(self, runner, batch_idx, data_batch=None, outputs=None):
        with open(path, 'a') as file:
            file.write(f'{float(outputs["loss"])!r}\n')
        return after_train_iter(self, runner, batch_idx, data_batch, outputs)

    LoggerHook.after_train_iter = recording


def begin_rank(run, rank, port):
    with open(f'{run["log"]}.{rank}', 'w') as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    found = run.get('env')
    if found is None and run['world'] > 1:
        found = dict(RANK='{rank}', LOCAL_RANK='{rank}', WORLD_SIZE='{world}')
        found['MASTER_ADDR'] = '127.0.0.1'
    for name, value in (found or {}).items():
        os.environ[name] = value.format(rank=rank, world=run['world'])
    os.environ['MASTER_PORT'] = str(port)
    torch.set_num_threads(run.get('threads', 1))
    # A run formats its config four times, which takes longer than the training here.
    sys.modules['yapf.yapflib.yapf_api'].FormatCode = lambda text, **_: (text, True)


def run_tool(run):
    path = ROOT / 'tools' / f'{run.get("tool", "train")}.py'
    status = runpy.run_path(str(path))['main'](run['argv'])
    sys.stdout.flush()
    return status


def one_rank(run, rank, port):
    begin_rank(run, rank, port)
    record_losses(f'{run["log"]}.{rank}.losses')
    os._exit(run_tool(run))


def forget_group():
    for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        os.environ.pop(name, None)


def environment(threads=1, **more):
    paths = os.pathsep.join(map(str, (ROOT, ROOT / 'tests', ROOT / 'tests' / 'integration')))
    more.update(OMP_NUM_THREADS=str(threads), MPLBACKEND='Agg', PYTHONPATH=paths)
    return {**os.environ, **more}


def play_runs(folder, plan, timeout=600):
    """Run a plan whose runs have names; give what each said, its losses and how it ended."""
    for run in plan:
        run['log'] = str(folder / f'{run["name"]}.log')
    (folder / 'runs.json').write_text(json.dumps(plan))
    done = subprocess.run(
        [sys.executable, __file__, folder / 'runs.json'],
        env=environment(), capture_output=True, text=True, timeout=timeout, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {}
    for run in plan:
        logs = [Path(f'{run["log"]}.{rank}') for rank in range(run['world'])]
        losses = [Path(f'{log}.losses') for log in logs]
        found[run['name']] = SimpleNamespace(
            work_dir=folder / run['name'],
            status=json.loads(Path(f'{run["log"]}.status').read_text()),
            said=[log.read_text() for log in logs],
            losses=[[float(x) for x in p.read_text().split()] for p in losses if p.exists()],
        )
    return found


def main(path):
    forget_group()
    runs = json.loads(Path(path).read_text())
    # What a run imports on its way costs more than the training, so it is imported here, once.
    for library in {run['library'] for run in runs}:
        importlib.import_module(f'{library}.apis')
        importlib.import_module(f'{library}.utils').register_all_modules(False)
    rooms = ('apis.resolve', 'apis.session', 'datasets', 'engine.fsdp', 'models', 'visualization')
    for name in rooms:
        importlib.import_module(f'coc_mm.{name}')
    fork = multiprocessing.get_context('fork')
    for run in runs:
        port = free_port()
        ranks = [
            fork.Process(target=one_rank, args=(run, rank, port)) for rank in range(run['world'])
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(300)
            if rank.is_alive():
                rank.kill()
        Path(f'{run["log"]}.status').write_text(json.dumps([rank.exitcode for rank in ranks]))


if __name__ == '__main__':
    main(sys.argv[1])
