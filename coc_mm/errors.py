"""A user's mistake becomes one message and exit status 2; a bug keeps its traceback."""

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence

#: Set to anything but ``0`` to see the traceback behind a message.
TRACEBACK_VARIABLE = 'COC_MM_TRACEBACK'

_HINT = f'(set {TRACEBACK_VARIABLE}=1 to see where this happened)'
# Whose own errors are about values of a config. The operator knows torch alone, so it raises
# ValueError; mmengine asserts much of what it is given.
_OPERATOR = ('coc_mm.ops', 'coc_mm.models', 'coc_mm.datasets', 'coc_mm.engine')
_CONFIG_READERS = ('registry', 'runner', 'optim', 'hooks', 'visualization', 'model')
# Its functions that use other parts of a config than those with a type.
_PARTS = {
    'build_dataloader': 'a dataloader',
    'build_train_loop': 'train_cfg',
    'setup_env': 'env_cfg',
    'evaluate': 'an evaluator',
}
_LIBRARY = re.compile(r'(?:^|[/\\])((?:mmengine|mmcv|mmdet|mmseg|mmpretrain)[/\\].*)')
_PACKAGES = re.compile(r'.*[/\\](?:site-packages|dist-packages|lib[/\\]python[\d.]+)[/\\]|^<')
# What a full or read-only disk, a quota or a limit on the size of files says.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_WORKER_MARK = re.compile(r'^Caught \w+ in (DataLoader worker|pin memory thread)')


class UserError(Exception):
    """Something the user gave cannot be used."""

    def __init__(self, message: str) -> None:
        # A DataLoader re-raises with the worker's traceback as the text.
        super().__init__(_last_of_worker_text(message, type(self).__name__))


class InputError(UserError, ValueError):
    """An argument of a model, data set or hook, which mostly comes from a config."""


class CheckpointError(UserError, ValueError):
    """A file cannot be used as a checkpoint; the message names file and reason."""


class DownloadError(UserError, ValueError):
    """A file cannot be downloaded, or is not the published one."""


class PrepareError(UserError, ValueError):
    """A data set cannot be prepared from what is there; the message says the way out."""


def print_rank0(message: str) -> None:
    """Print a line, in the first of several processes."""
    if int(os.environ.get('RANK', 0)) == 0:
        print(message, flush=True)


def _last_of_worker_text(text: str, name: str) -> str:
    """Cut the message out of the traceback text that a worker hands over."""
    if not _WORKER_MARK.match(text):
        return text
    found = re.findall(rf'^(?:[\w.]+\.)?{name}: (.*(?:\n(?!\S+Error: ).*)*)', text, re.MULTILINE)
    return found[-1].strip() if found else text.strip().rsplit('\n', 1)[-1]


def _module_of(error: BaseException) -> str:
    """Name the module that an exception was raised in."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return '' if trace is None else trace.tb_frame.f_globals.get('__name__', '')


def _config_part(error: BaseException) -> str | None:
    """Name the part of a config that mmengine was building when an exception was raised."""
    trace, part = error.__traceback__, None
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_globals.get('__name__', '').startswith('mmengine.'):
            if frame.f_code.co_name == 'build_from_cfg':
                part = f'type={frame.f_locals.get("obj_type")!r}'
            part = _PARTS.get(frame.f_code.co_name, part)
        trace = trace.tb_next
    return part


def _first_batch(error: BaseException) -> str | None:
    """Name the file of a library in which the first batch of a loop failed.

    None where the innermost code that is not installed, such as torch, is not a library's.
    """
    trace, first = error.__traceback__, False
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_globals.get('__name__') == 'mmengine.runner.loops':
            loop, index = frame.f_locals.get('self'), frame.f_locals.get('idx')
            first = not index and not getattr(loop, '_iter', 0)
        trace = trace.tb_next
    places = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    # Those of a worker are in the text.
    places += re.findall(r'^ *File "(.+?)", line (\d+)', str(error), re.MULTILINE)
    for file, line in reversed(places) if first else ():
        below = _PACKAGES.sub('', file)
        if found := _LIBRARY.search(below):
            return f'{found[1]}, line {line}'
        if below == file or below.startswith('coc_mm'):
            return None
    return None


def explain(error: BaseException) -> str | None:
    """Say in a sentence what the user did wrong, if that is what an exception is about."""
    text = _last_of_worker_text(str(error), type(error).__name__)
    if isinstance(error, UserError):
        return text
    if isinstance(
        error, (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
    ):
        return _explain_missing_file(error, text)
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return (
            f'{error.filename or "a file"} cannot be written ({error.strerror}); what was written '
            'before is whole.\nMake room; a training goes on with --resume.'
        )
    if isinstance(error, ModuleNotFoundError) and not (error.name or '').startswith('coc_mm'):
        return f'the package {error.name} is needed and not installed.\n{_HINT}'
    if isinstance(error, AssertionError) and text.startswith('failed to load image: '):
        path = text.removeprefix('failed to load image: ')
        return f'{path} is not an image that can be read; replace or remove it.'
    if isinstance(error, RuntimeError) and (message := _explain_failure(text)):
        return message
    module = _module_of(error)
    package, _, rest = module.partition('.')
    if module.startswith(_OPERATOR) and isinstance(error, ValueError):
        return text
    if package == 'mmengine' and rest.partition('.')[0] in _CONFIG_READERS and text:
        return _explain_config(error, text)
    if 'is not installed' in text and isinstance(error, (ImportError, RuntimeError)):
        return f'the config needs a package that is not installed: {text}'
    part = _config_part(error)
    kinds = (TypeError, ValueError, LookupError, ArithmeticError, AssertionError, AttributeError)
    if part and isinstance(error, kinds):
        text = text or str(traceback.extract_tb(error.__traceback__)[-1].line)
        return f'the config does not fit: {part}: {type(error).__name__}: {text}\n{_HINT}'
    if isinstance(error, (*kinds, RuntimeError)) and (where := _first_batch(error)):
        says = f'{type(error).__name__}: {text.split(chr(10))[0]}'
        return f'the config does not fit: the first batch fails ({where}): {says}\n{_HINT}'
    return None


def _explain_missing_file(error: OSError, text: str) -> str:
    path = error.filename
    if path is None:
        quoted = re.findall(r"'([^']+)'", text)
        path = quoted[-1] if quoted else None
    if path is None:
        return f'{text}\n{_HINT}'
    path = os.fspath(path)
    if isinstance(error, PermissionError):
        return f'no permission to use {path}\n{_HINT}'
    if isinstance(error, IsADirectoryError):
        return f'{path} is a folder where a file is expected\n{_HINT}'
    place = '' if os.path.isabs(path) else f' (looked for in {os.getcwd()})'
    return (
        f'{path} does not exist{place}.\nIf this is a dataset: put it there, or point the config '
        'elsewhere, e.g. --cfg-options data_root=FOLDER; docs/data.md '
        'says which data each of our configs expects and how to get it.'
    )


_WORKER = re.compile(
    r'DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (.*?)\. |exited unexp)'
)


def _explain_failure(text: str) -> str | None:
    """Explain what torch raises as a RuntimeError about the machine or other processes."""
    if found := _WORKER.search(text):
        how = f'killed ({found[2]})' if found[2] else 'killed, or ended by itself,'
        return (
            f'a process that loads data (pid {found[1]}) was {how}: most likely the machine ran '
            'out of memory, or /dev/shm of shared memory.\nUse fewer of them or smaller batches '
            '(--cfg-options train_dataloader.num_workers=1, the same for val_dataloader and '
            'test_dataloader), and --resume.'
        )
    if found := re.search(r'(\S+) does not have a deterministic implementation', text):
        return (
            f'--deterministic: the operator {found[1]} has no deterministic version on this '
            'device.\nTrain without the flag, on the CPU, or with a layer or loss that does '
            'without it; --cfg-options randomness.deterministic=False keeps the seed alone.'
        )
    if found := re.search(r'Timed out waiting (\d+)ms', text):
        return (
            f'waited {int(found[1]) / 1000:g} s for another process, which is alive and does not '
            'answer.\nIf its work takes longer, such as an evaluation in one process: '
            '--cfg-options env_cfg.dist_cfg.timeout=SECONDS; and --resume.'
        )
    if re.search(r'Connection (?:closed|reset) by|Broken pipe|remote process exited', text):
        return (
            'another process of this run has ended; what it said is above, or in its own output.\n'
            'Resume from the last checkpoint: the same command with --resume.'
        )
    return None


def _explain_config(error: BaseException, text: str) -> str | None:
    """Explain what mmengine refuses in a config."""
    text = re.sub(r' in <\S+ object at \w+>$', '', text)  # of a hook
    name = re.match(r"'?Failed to get (\S+?)'?$", text) or re.match(
        r"['\"]?(\S+) is not in the", text
    )
    if isinstance(error, (KeyError, RuntimeError)) and name:
        return (
            f"the config names type='{name[1]}', which no installed library registers.\n"
            'Check the spelling and the scope (mmdet.X, coc_mm.X), or import its module with '
            'custom_imports.'
        )
    if isinstance(error, ImportError):
        return f'the config needs a package that is not installed: {text}'
    if isinstance(error, (TypeError, ValueError, AssertionError)) or (
        isinstance(error, KeyError) and 'must contain the key' in text
    ):
        return f'the config does not fit: {text}\n{_HINT}'
    return None


def run_command(
    command: Callable[[Sequence[str] | None], object], argv: Sequence[str] | None = None
) -> int:
    """Run a command, turning a user's mistake into a message on stderr.

    Returns 0, 2 after a user's mistake, 130 after an interrupt. Programming errors are raised, and
    with ``COC_MM_TRACEBACK=1`` all.
    """
    try:
        command(argv)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    except Exception as error:
        message = explain(error)
        if message is None or os.environ.get(TRACEBACK_VARIABLE, '0') != '0':
            raise
        sys.stdout.flush()
        print(f'error: {message}', file=sys.stderr)
        return 2
    return 0
