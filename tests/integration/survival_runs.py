"""Run trainings that are killed on purpose, importing the libraries only once.

``python survival_runs.py CHAINS.json``, a list of chains that run side by side; a chain is a list
of runs one after the other, each ``dict(log, argv, world, tool, kill, signal, slow)``:

- ``kill``: ``dict(at, n, share)``: the process ends itself by SIGKILL at the n-th event of a
  kind: ``iteration``, ``validation`` (an iteration of one), ``write`` (a share of the bytes of a
  checkpoint has been written), ``moved`` (the checkpoint is in place, not yet recorded),
  ``record`` (that is half written), ``removal`` (of an outdated checkpoint).
- ``signal``: ``dict(after, n, delay, number, ranks, again)``: the parent sends a signal some
  seconds after the n-th event of a kind, and with ``again`` a second one that much later.
- ``slow``: seconds that every iteration takes longer.
- ``largest``: bytes that a file may have, as if the disk were full.

Beside ``log`` lie what each rank said, events, losses by iteration, and how all ended.
"""

import gc
import importlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch
from fork_ranks import begin_rank, forget_group, free_port, run_tool


class Events:
    """Counts events of a process, tells the parent of them and ends the process at one."""

    def __init__(self, run, rank):
        self.kill = (run.get('kill') or {}) if rank == run.get('victim', 0) else {}
        self.counts = {}
        self.file = open(f'{run["log"]}.{rank}.events', 'a', buffering=1)  # noqa: SIM115

    def reach(self, kind, before_end=lambda: None):
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.file.write(f'{kind}\n')
        if self.kill.get('at') == kind and self.counts[kind] == self.kill['n']:
            before_end()
            os.kill(os.getpid(), signal.SIGKILL)


def instrument(run, rank):
    """Make events happen where a training passes by, and losses be recorded."""
    from mmengine.hooks import LoggerHook

    from coc_mm.compat.atomic_backend import AtomicLocalBackend
    from coc_mm.engine.fault_tolerance import atomic_checkpoint_hook as checkpoint_hook
    from coc_mm.engine.fault_tolerance import preemption as stop_signals

    events = Events(run, rank)
    losses = open(f'{run["log"]}.{rank}.losses', 'a', buffering=1)  # noqa: SIM115
    after_train_iter, after_val_iter = LoggerHook.after_train_iter, LoggerHook.after_val_iter

    def trained(self, runner, batch_idx, data_batch=None, outputs=None):
        losses.write(f'{runner.iter} {float(outputs["loss"])!r}\n')
        events.reach('iteration')
        time.sleep(run.get('slow', 0))
        return after_train_iter(self, runner, batch_idx, data_batch, outputs)

    def validated(self, runner, batch_idx, *args, **kwargs):
        events.reach('validation')
        time.sleep(run.get('slow', 0))
        return after_val_iter(self, runner, batch_idx, *args, **kwargs)

    LoggerHook.after_train_iter, LoggerHook.after_val_iter = trained, validated

    write_bytes = Path.write_bytes

    def written(path, content):
        part = content[: int(len(content) * events.kill.get('share', 0.5))]
        kind = 'write' if '.pth' in path.name else 'record'
        events.reach(kind, before_end=lambda: write_bytes(path, part))
        return write_bytes(path, content)

    Path.write_bytes = written
    record_latest = checkpoint_hook.record_latest

    def recorded(runner, path):
        events.reach('moved')
        record_latest(runner, path)

    checkpoint_hook.record_latest = stop_signals.record_latest = recorded
    remove = AtomicLocalBackend.remove

    def removed(self, path):
        events.reach('removal')
        remove(self, path)

    AtomicLocalBackend.remove = removed


def one_rank(run, rank, port):
    begin_rank(run, rank, port)
    # What a shell starts in the background ignores interrupts, and what that starts does, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A run asks compilers for their versions, which takes longer than the training here.
    import mmengine.runner.runner

    mmengine.runner.runner.collect_env = lambda: dict(GCC='')
    instrument(run, rank)
    if 'largest' in run:
        resource.setrlimit(resource.RLIMIT_FSIZE, (run['largest'], run['largest']))
    sys.exit(run_tool(run))


def wait_for(run, kind, n, alive):
    path = Path(f'{run["log"]}.0.events')
    while alive():
        if path.exists() and path.read_text().split('\n').count(kind) >= n:
            return True
        time.sleep(0.003)
    return False


def send(asked, run, processes):
    if wait_for(run, asked['after'], asked['n'], lambda: any(p.is_alive() for p in processes)):
        for wait in [asked['delay'], *([asked['again']] if 'again' in asked else [])]:
            time.sleep(wait)
            for rank in asked.get('ranks', range(run['world'])):
                if processes[rank].is_alive():
                    os.kill(processes[rank].pid, asked['number'])


def one_chain(chain):
    fork = multiprocessing.get_context('fork')
    parent = os.getppid()
    for run in chain:
        if os.getppid() != parent:  # the test has given up
            return
        run.setdefault('world', 1)
        port = free_port()
        ranks = range(run['world'])
        processes = [fork.Process(target=one_rank, args=(run, rank, port)) for rank in ranks]
        for process in processes:
            process.start()
        if 'signal' in run:
            send(run['signal'], run, processes)
        for process in processes:
            process.join(run.get('limit', 400))
        stuck = [process.is_alive() for process in processes]
        for process in processes:
            process.kill()
            process.join()
        folder = Path(run['argv'][run['argv'].index('--work-dir') + 1])
        ended = dict(
            status=[process.exitcode for process in processes],
            stuck=stuck,
            files={path.name: is_whole(path) for path in folder.rglob('*.pth')},
            partial=[path.name for path in folder.rglob('*.part')],
        )
        Path(f'{run["log"]}.ended').write_text(json.dumps(ended))


def is_whole(path):
    """Read a checkpoint; give the iterations that it has trained, -1 if it cannot be read."""
    try:
        return torch.load(path, weights_only=False)['meta']['iter']
    except Exception:
        return -1


def import_all(library):
    """Import what a training would import, which takes longer than the training."""
    from mmengine.registry import Registry

    for package in (library, 'coc_mm'):
        for found in vars(importlib.import_module(f'{package}.registry')).values():
            if isinstance(found, Registry):
                found.import_from_location()
    for name in ('coc_mm.apis.resolve', 'coc_mm.apis.session', 'matplotlib.pyplot'):
        importlib.import_module(name)
    importlib.import_module(f'{library}.apis')


def main(path):
    forget_group()
    chains = json.loads(Path(path).read_text())
    for library in sys.argv[2:]:
        import_all(library)
    gc.freeze()  # mmengine collects garbage for every data set; not that of all libraries
    fork = multiprocessing.get_context('fork')
    managers = [fork.Process(target=one_chain, args=(chain,)) for chain in chains]
    for manager in managers:
        manager.start()
    for manager in managers:
        manager.join()
    sys.exit(max(abs(manager.exitcode) for manager in managers))


if __name__ == '__main__':
    main(sys.argv[1])
