"""What a machine does to a run, in a sentence: processes lost, operators it does not have."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from coc_mm.errors import UserError

__all__ = ['explaining_failures']

_WORKER = re.compile(
    r'DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (.*?)\. |exited unexp)'
)
_OPERATOR = re.compile(r'(\S+) does not have a deterministic implementation')
_TIMEOUT = re.compile(r'Timed out waiting (\d+)ms')
_CLOSED = re.compile(r'Connection (?:closed|reset) by|Broken pipe|remote process exited')


def _explain(text: str) -> str | None:
    if found := _WORKER.search(text):
        how = f'killed ({found[2]})' if found[2] else 'killed, or ended by itself,'
        return (
            f'a process that loads data (pid {found[1]}) was {how}: most likely the machine ran '
            'out of memory, or /dev/shm of shared memory.\nUse fewer of them or smaller batches '
            '(--cfg-options train_dataloader.num_workers=1, the same for val_dataloader and '
            'test_dataloader), and --resume.'
        )
    if found := _OPERATOR.search(text):
        return (
            f'--deterministic: the operator {found[1]} has no deterministic version on this '
            'device.\nTrain without the flag, on the CPU, or with a layer or loss that does '
            'without it; --cfg-options randomness.deterministic=False keeps the seed alone.'
        )
    if found := _TIMEOUT.search(text):
        return (
            f'waited {int(found[1]) / 1000:g} s for another process, which is alive and does not '
            'answer.\nIf its work takes longer, such as an evaluation in one process: '
            '--cfg-options env_cfg.dist_cfg.timeout=SECONDS; and --resume.'
        )
    if _CLOSED.search(text):
        return (
            'another process of this run has ended; what it said is above, or in its own output.\n'
            'Resume from the last checkpoint: the same command with --resume.'
        )
    return None


@contextmanager
def explaining_failures() -> Iterator[None]:
    """Turn exceptions of torch about lost processes and missing operators into messages.

    Raises:
        UserError: A worker of a data loader was killed, another process does not answer, or
            an operator has no deterministic version.
    """
    try:
        yield
    except RuntimeError as error:  # torch raises nothing more specific for these
        message = _explain(str(error))
        if message is None:
            raise
        raise UserError(message) from error
