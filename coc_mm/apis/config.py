"""Read a config file and override entries of it."""

import difflib
import functools
import importlib.util
import inspect
import os
import re
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from mmengine.config import Config, ConfigDict

from coc_mm.errors import UserError
from coc_mm.utils.package_files import find_config

#: Default scopes that can be run, with the distribution that installs the library.
SCOPES = {
    'mmpretrain': 'onedl-mmpretrain',
    'mmdet': 'onedl-mmdetection',
    'mmseg': 'onedl-mmsegmentation',
    'coc_mm': None,
}

# Top-level entries that Runner, FlexibleRunner and the libraries' tools read.
_TOP_LEVEL = (
    'model work_dir train_dataloader val_dataloader test_dataloader train_cfg val_cfg test_cfg '
    'auto_scale_lr optim_wrapper param_scheduler val_evaluator test_evaluator default_hooks '
    'custom_hooks data_preprocessor load_from resume launcher env_cfg log_processor log_level '
    'visualizer vis_backends default_scope randomness experiment_name compile strategy runner_type '
    'model_wrapper_cfg find_unused_parameters tta_model tta_pipeline test_pipeline'
)
_DICTS = (
    'model train_dataloader val_dataloader test_dataloader train_cfg val_cfg test_cfg '
    'optim_wrapper default_hooks env_cfg'
)
# Entries whose numbers mmcv and the libraries want as a tuple.
_SIZES = 'scale scales img_scale crop_size ratio_range size stride kernel_size palette'
#: Hold this while configs are parsed: early releases of Python 3.11 count the depth of a syntax
#: tree in one place for all threads, and end one of two that parse at once with a SystemError
#: (python/cpython#106905).
PARSING = threading.RLock()


def read_config(path: str | os.PathLike) -> Config:
    """Read a config as mmengine does, in one thread at a time.

    Its values become such as a copy can hold: a ``Path`` becomes text, names that the file imports
    are dropped, and of JSON and YAML, which have lists alone, sizes and colors become tuples.
    """
    with PARSING:
        config = Config.fromfile(path)
    if config._imported_names:
        return config  # of read_base: its copy holds more
    tuples = Path(path).suffix != '.py'
    for key, value in list(config.items()):
        if isinstance(value, type) or inspect.isroutine(value):
            config.pop(key)
        else:
            config[key] = _plain(value, key, tuples)
    return config


def _plain(value: Any, key: str, tuples: bool, name: str = '') -> Any:
    here = f'{name}.{key}'.removeprefix('.')
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, functools.partial):
        raise UserError(
            f"{here} is a functools.partial, which the config's copy in the work dir cannot hold: "
            'register a function or class of your own and name it by type=...'
        )
    if isinstance(value, dict):
        for child, content in value.items():
            value[child] = _plain(content, str(child), tuples, here)
    elif type(value) in (list, tuple):
        value = type(value)(_plain(x, key, tuples, name) for x in value)
        numbers = value and all(isinstance(x, (int, float)) for x in value)
        if tuples and numbers and key in _SIZES.split():
            return tuple(value)
    return value


def load_config(path: str, options: dict | None = None) -> Config:
    """Read a config file and see that its library is there.

    Args:
        path: The file, or the name of a config of this package.
        options: The ``--cfg-options``, of which only a ``default_scope`` counts here.
    """
    file = Path(path)
    if not file.suffix and len(file.parts) == 1 and not file.exists():
        file = find_config(path)
    if file.is_dir():
        raise UserError(f'config {file} is a folder; name a .py file in it.')
    if not file.exists():
        near = difflib.get_close_matches(file.name, [p.name for p in file.parent.glob('*.py')], n=1)
        hint = f'did you mean {file.parent / near[0]}?' if near else 'check the path.'
        place = '' if file.is_absolute() else f' (looked for in {os.getcwd()})'
        raise UserError(f'config {file} does not exist{place}; {hint}')
    if file.suffix not in ('.py', '.json', '.yaml', '.yml'):
        raise UserError(
            f'config {path} is no config file: a .py file (or .json, .yaml) is expected.'
        )
    try:
        config = read_config(file)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f'config {path} cannot be read: {_config_problem(error, path)}') from error
    check_scope((options or {}).get('default_scope', config.get('default_scope')), path)
    return config


def _config_problem(error: Exception, path: str) -> str:
    """Describe what went wrong in a config, with the line where that is known."""
    text = str(error)
    if isinstance(error, SyntaxError):
        found = re.match(r'There are syntax errors in config file (.*?): (.*)', text, re.DOTALL)
        where, reason = found.groups() if found else (path, text)
        reason = reason.replace('<unknown>, ', '')
        return f'syntax error in {where}: {reason}'
    lines = [
        f'{frame.filename}, line {frame.lineno}'
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.name == '<module>' and os.path.exists(frame.filename)
    ]
    where = f' ({lines[-1]})' if lines else ''
    name = '' if isinstance(error, FileNotFoundError) else f'{type(error).__name__}: '
    return f'{name}{text}{where}'


def check_scope(scope: str | None, path: str | os.PathLike) -> None:
    """Raise a :class:`UserError` where the library of a config's ``default_scope`` is missing."""
    if scope is None:
        raise UserError(
            f'config {path} sets no default_scope, so its library is unknown.\nAdd default_scope = '
            "'mmpretrain', 'mmdet' or 'mmseg' (or --cfg-options default_scope=mmdet)."
        )
    if scope not in SCOPES:
        known = ', '.join(SCOPES)
        raise UserError(f'config {path} has default_scope {scope!r}; known are {known}.')
    if importlib.util.find_spec(scope) is None:
        raise UserError(
            f'config {path} needs {scope}, which is not installed: pip install {SCOPES[scope]}'
        )


def merge_options(config: Config, options: dict | None) -> None:
    """Merge the ``--cfg-options``, a dict of dotted keys, into a config, in place."""
    for key, value in (options or {}).items():
        top = key.split('.')[0]
        known = {*_TOP_LEVEL.split(), *config}
        if top not in known:
            near = difflib.get_close_matches(top, known, n=1)
            hint = f'did you mean {near[0]}?' if near else 'check its spelling.'
            raise UserError(
                f'--cfg-options {key}: the config has no entry {top!r} and nothing reads one; '
                f'{hint}'
            )
        if key == 'data_root' and isinstance(value, str) and config.get('custom_data') is None:
            _move_data(config, str(config.get('data_root')), value)
        try:
            _override(config, key.split('.'), value, '')
        except ValueError as error:
            raise UserError(f'--cfg-options {key}: {error}') from None
    for key in ('default_hooks', 'env_cfg', 'randomness', 'log_processor'):
        if key in config and config[key] is None:  # mmengine has defaults, and takes no None
            config.pop(key)
    for key in _DICTS.split():
        if not isinstance(config.get(key), (dict, type(None))):
            raise UserError(f'the config does not fit: {key} is {config[key]!r}; a dict is needed.')


def _move_data(node: Any, old: str, new: str) -> Any:
    """Replace the folder of a config's data where loaders and evaluators name it, in place."""
    if isinstance(node, Config):
        for key in node:
            if re.fullmatch(r'(train|val|test)_(dataloader|evaluator)', key):
                node[key] = _move_data(node[key], old, new)
    elif isinstance(node, dict):
        node.update({key: _move_data(value, old, new) for key, value in node.items()})
    elif isinstance(node, (list, tuple)):
        return type(node)(_move_data(value, old, new) for value in node)
    elif isinstance(node, str) and (node == old or node.startswith(old.rstrip('/') + '/')):
        rest = node[len(old) :].lstrip('/')
        return os.path.join(new, rest) if rest else new
    return node


def _override(node: Any, steps: Sequence[str], value: Any, name: str) -> Any:
    """Set an entry below a node, in place where that can be; return the node."""
    if not steps:
        return value
    step = steps[0]
    place: Any = step
    name = name.removeprefix('.')
    if isinstance(node, (list, tuple)):
        if not step.isdigit():
            raise ValueError(f'{name} is a list, so a position is expected, not {step!r}.')
        place = int(step)
        if place >= len(node):
            raise ValueError(f'{name} has {len(node)} entries, counted from 0; there is no {step}.')
    elif not isinstance(node, (dict, Config)):
        raise ValueError(f'{name} is {node!r}, which has no entry {step!r}.')
    elif step == '_delete_' and value is True:
        return ConfigDict()
    elif step.isdigit() and step not in node:
        known = f'has the entries {", ".join(node)}' if node else 'is not set'
        raise ValueError(f'{name} {known}, and is no list; set all of it: {name}="[...]".')
    child = node[place] if isinstance(place, int) or place in node else ConfigDict()
    new = _override(child, steps[1:], value, f'{name}.{step}')
    if isinstance(node, tuple):
        return (*node[:place], new, *node[place + 1 :])
    node[place] = new
    return node
