"""A user's mistake becomes one message and exit status 2; a bug keeps its traceback."""

import errno
import linecache
import os
import re
import sys
from collections.abc import Callable, Sequence

__all__ = [
    'TRACEBACK_VARIABLE',
    'CheckpointError',
    'DownloadError',
    'PrepareError',
    'UserError',
    'explain',
    'print_rank0',
    'run_command',
]

#: Set to anything but ``0`` to see the traceback behind a message.
TRACEBACK_VARIABLE = 'COC_MM_TRACEBACK'

# Where a deliberate `raise ValueError` is about what the user asked for.
_MODULES_THAT_CHECK_INPUT = (
    'coc_mm.models',
    'coc_mm.ops',
    'coc_mm.datasets',
    'coc_mm.engine',
    'mmengine.runner.runner',
    'mmengine.runner._flexible_runner',
)
# What a full or read-only disk, a quota or a limit on the size of files says.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_BUILD_MODULE = 'mmengine.registry'
_WORKER_MARK = re.compile(r'^Caught \w+ in (DataLoader worker|pin memory thread)')
# What mmengine before 0.10.8 puts in front of an exception of a constructor.
_DECORATION = re.compile(r'^"?class `\w+` in [\w./\\-]+: ')


class UserError(Exception):
    """Something the user gave cannot be used.

    Args:
        message (str): One or two lines: what is wrong, where, the way out.
    """

    def __init__(self, message: str) -> None:
        # A DataLoader re-raises with the worker's traceback as the text.
        super().__init__(_last_of_worker_text(message, type(self).__name__))


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


def _innermost(error: BaseException) -> tuple[str, bool]:
    """Module that an exception comes from, and whether a ``raise`` stands there."""
    trace = error.__traceback__
    if trace is None:
        return '', False
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    line = linecache.getline(code.co_filename, trace.tb_lineno).strip()
    return trace.tb_frame.f_globals.get('__name__', ''), line.startswith('raise')


def _undecorated(error: BaseException) -> BaseException:
    """Find the constructor's own exception behind one that a registry re-raised."""
    original = error.__context__
    from_registry = _innermost(error)[0].startswith(_BUILD_MODULE)
    if from_registry and type(original) is type(error) and _DECORATION.match(str(error)):
        return _undecorated(original)
    return error


def _inside(module: str, packages: Sequence[str]) -> bool:
    return any(module == name or module.startswith(name + '.') for name in packages)


def _explain_missing_file(error: OSError) -> str:
    text = _last_of_worker_text(str(error), type(error).__name__)
    path = error.filename
    if path is None:
        quoted = re.findall(r"'([^']+)'", text)
        path = quoted[-1] if quoted else None
    if path is None:
        return f'{text}\n{_traceback_hint()}'
    path = os.fspath(path)
    if isinstance(error, PermissionError):
        return f'no permission to use {path}\n{_traceback_hint()}'
    if isinstance(error, IsADirectoryError):
        return f'{path} is a folder where a file is expected\n{_traceback_hint()}'
    place = '' if os.path.isabs(path) else f' (looked for in {os.getcwd()})'
    return (
        f'{path} does not exist{place}.\nIf this is a dataset: put it there, or point the config '
        'elsewhere, e.g. --cfg-options train_dataloader.dataset.data_root=FOLDER; docs/data.md '
        'says which data each of our configs expects and how to get it.'
    )


def _traceback_hint() -> str:
    return f'(set {TRACEBACK_VARIABLE}=1 to see where this happened)'


def explain(error: BaseException) -> str | None:
    """Say in a sentence what the user did wrong, if that is what an exception is about.

    Covered are exceptions meant for the user (:class:`UserError`,
    ``CheckpointError``), files that are missing, the checks of our models and of
    mmengine's runner, and constructor arguments and types of a config that do not
    exist. Anything else is taken for a programming error.

    Args:
        error (BaseException): What was raised.

    Returns:
        str | None: The message without a trailing newline; None for an exception
        that should keep its traceback.
    """
    error = _undecorated(error)
    text = _last_of_worker_text(str(error), type(error).__name__)
    module, on_purpose = _innermost(error)
    if isinstance(error, UserError):
        return text
    if isinstance(
        error, (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
    ):
        return _explain_missing_file(error)
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return (
            f'{error.filename or "a file"} cannot be written ({error.strerror}); what was written '
            'before is whole.\nMake room; a training goes on with --resume.'
        )
    if isinstance(error, ValueError) and on_purpose and _inside(module, _MODULES_THAT_CHECK_INPUT):
        return text
    if isinstance(error, AssertionError) and text.startswith('failed to load image: '):
        path = text.removeprefix('failed to load image: ')
        return f'{path} is not an image that can be read; replace or remove it.'
    if _inside(module, [_BUILD_MODULE]):
        return _explain_build(error, text)
    return None


def _explain_build(error: BaseException, text: str) -> str | None:
    """Explain what a registry could not build from the config."""
    if isinstance(error, TypeError) and ('argument' in text or 'type must be' in text):
        return f'the config does not fit: {text}\n{_traceback_hint()}'
    if isinstance(error, (KeyError, RuntimeError)):
        found = re.match(r"'?Failed to get (\S+?)'?$", text)
        name = found[1] if found else re.match(r"['\"]?(\S+) is not in the", text)
        if name is not None:
            name = name if isinstance(name, str) else name[1]
            return (
                f"the config names type='{name}', which no installed library registers.\n"
                'Check the spelling and the scope (mmdet.X, coc_mm.X), or import its module with '
                'custom_imports.'
            )
        if 'must contain the key "type"' in text:
            return f'the config does not fit: {text}\n{_traceback_hint()}'
    return None


def run_command(
    command: Callable[[Sequence[str] | None], object], argv: Sequence[str] | None = None
) -> int:
    """Run a command, turning a user's mistake into a message on stderr.

    Args:
        command (Callable): Takes the arguments and does the work.
        argv (Sequence[str], optional): Arguments; those of the process if None.

    Returns:
        int: 0, 2 after a user's mistake, 130 after an interrupt.

    Raises:
        Exception: Programming errors, and with ``COC_MM_TRACEBACK=1`` all errors.
        SystemExit: From the parsing of arguments.
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
