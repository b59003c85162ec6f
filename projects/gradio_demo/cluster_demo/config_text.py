"""Configs of unknown origin, read as values: nothing in them is run or imported.

The config that a training run dumps beside its checkpoints is Python, and mmengine
runs it. It consists of plain values, though, so it can be read without that.
"""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config

from coc_mm.apis.config import PARSING
from coc_mm.apis.infer import TASKS
from coc_mm.errors import UserError

__all__ = ['parse_config', 'read_config']

_MAX_BYTES = 2_000_000
# What prediction needs. Hooks, loops, optimizers and datasets stay out.
_KEYS = ('default_scope', 'model', 'data_preprocessor', 'test_pipeline', 'custom_data')
_DATASET_KEYS = ('type', 'pipeline', 'metainfo')
_SCOPES = ('coc_mm', *TASKS)


class _NotPlainError(ValueError):
    """A node that is not a value; the text says what it is."""


def _value(node: ast.AST):
    """Turn a node of the syntax tree into the value that it writes down."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        kind = {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)]
        return kind(_value(item) for item in node.elts)
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_value(k): _value(v) for k, v in zip(node.keys, node.values, strict=True)}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        number = _value(node.operand)
        if isinstance(number, (int, float)):
            return -number if isinstance(node.op, ast.USub) else number
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == 'dict'
        and not node.args
        and all(keyword.arg for keyword in node.keywords)
    ):
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords}
    raise _NotPlainError(f'line {getattr(node, "lineno", "?")} is code, not a plain value')


def _assignments(text: str) -> dict:
    values = {}
    with PARSING:
        tree = ast.parse(text)
    for node in tree.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring
        if not (isinstance(node, ast.Assign) and len(node.targets) == 1):
            raise _NotPlainError(f'line {node.lineno} is code, not a plain value')
        if not isinstance(node.targets[0], ast.Name):
            raise _NotPlainError(f'line {node.lineno} is code, not a plain value')
        values[node.targets[0].id] = _value(node.value)
    return values


def _check_types(node, where: str) -> None:
    """Refuse types by which a registry would import modules at will."""
    if isinstance(node, (list, tuple, set)):
        for item in node:
            _check_types(item, where)
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key == '_scope_' and value not in _SCOPES:
            raise UserError(f'{where}: scope {value!r} is none of {", ".join(_SCOPES)}.')
        if key == 'type' and isinstance(value, str):
            named = re.fullmatch(r'(?:(\w+)\.)?([A-Za-z_]\w*)', value)
            scope, name = named.groups() if named else ('?', value)
            known = scope in _SCOPES if scope else find_spec(name) is None
            if not known:
                raise UserError(
                    f'{where}: type {value!r} is refused; types are names of '
                    f'{", ".join(_SCOPES)}, not paths of modules.'
                )
        elif key == 'type':
            raise UserError(f'{where}: type {value!r} is not a name.')
        _check_types(value, where)


def _without_starting_weights(node):
    """Leave out where the weights of a model started; its checkpoint holds them all."""
    if isinstance(node, dict):
        kept = {}
        for key, value in node.items():
            entries = value if isinstance(value, (list, tuple)) else [value]
            loads = any(isinstance(x, dict) and x.get('checkpoint') for x in entries)
            if not (key == 'init_cfg' and loads) and key != 'pretrained':
                kept[key] = _without_starting_weights(value)
        return kept
    if isinstance(node, (list, tuple)):
        return type(node)(_without_starting_weights(item) for item in node)
    return node


def parse_config(text: str, where: str) -> Config:
    """Read the text of a dumped config, as far as prediction needs it.

    Args:
        text: Assignments of plain values; ``dict(...)`` may be called.
        where: Name for messages.
    """
    try:
        values = _assignments(text)
    except _NotPlainError as error:
        raise UserError(
            f'{where}: {error}; only the full config that training writes beside its checkpoints '
            'is read here.'
        ) from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f'{where} is no config ({type(error).__name__}).') from None
    kept = {key: values[key] for key in _KEYS if values.get(key) is not None}
    if kept.get('default_scope') not in TASKS:
        raise UserError(
            f'{where}: default_scope {kept.get("default_scope")!r} is none of {", ".join(TASKS)}.'
        )
    if not isinstance(kept.get('model'), dict):
        raise UserError(f'{where} sets no model.')
    loader = values.get('test_dataloader')
    dataset = loader.get('dataset') if isinstance(loader, dict) else None
    while isinstance(dataset, dict) and isinstance(dataset.get('dataset'), dict):
        dataset = dataset['dataset']
    if isinstance(dataset, dict):
        dataset = {key: dataset[key] for key in _DATASET_KEYS if key in dataset}
        kept['test_dataloader'] = dict(dataset=dataset)
    _check_types(kept, where)
    kept['model'] = _without_starting_weights(kept['model'])
    return Config(kept)


def read_config(path: Path) -> Config:
    """Read a dumped config file.

    Args:
        path: The file.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f'{path.name} is too large for a config.')
        text = path.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'config {path.name} cannot be read ({type(error).__name__}).') from None
    return parse_config(text, path.name)
