"""Read a config and merge the flags of the tools into it."""

import argparse
import difflib
import importlib.util
import os
import re
import traceback
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict

from coc_mm.apis.syntax import PARSING
from coc_mm.errors import UserError, print_rank0

__all__ = ['SCOPES', 'load_config', 'merge_options', 'merge_test_args', 'merge_train_args']

#: Default scopes that can be run, with the extra that installs the library.
SCOPES = {'mmpretrain': 'cls', 'mmdet': 'det', 'mmseg': 'seg', 'coc_mm': None}

# Top-level entries that Runner, FlexibleRunner and the libraries' tools read.
_TOP_LEVEL = frozenset(
    (
        'model',
        'work_dir',
        'train_dataloader',
        'val_dataloader',
        'test_dataloader',
        'train_cfg',
        'val_cfg',
        'test_cfg',
        'auto_scale_lr',
        'optim_wrapper',
        'param_scheduler',
        'val_evaluator',
        'test_evaluator',
        'default_hooks',
        'custom_hooks',
        'data_preprocessor',
        'load_from',
        'resume',
        'launcher',
        'env_cfg',
        'log_processor',
        'log_level',
        'visualizer',
        'vis_backends',
        'default_scope',
        'randomness',
        'experiment_name',
        'compile',
        'strategy',
        'runner_type',
        'model_wrapper_cfg',
        'tta_model',
        'tta_pipeline',
        'test_pipeline',
    )
)


def load_config(path: str, options: dict | None = None) -> Config:
    """Read a config file and see that its library is there.

    Args:
        path (str): The file, relative to the current folder or absolute.
        options (dict, optional): The ``--cfg-options``, of which only a
            ``default_scope`` counts here; see :func:`merge_options`.

    Returns:
        Config: The config, unchanged.

    Raises:
        UserError: The file is missing or cannot be read as a config, or its
            ``default_scope`` is missing, unknown or of a library not installed.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(_no_such_config(file))
    if file.suffix not in ('.py', '.json', '.yaml', '.yml'):
        raise UserError(
            f'config {path} is no config file: a .py file (or .json, .yaml) is expected.'
        )
    try:
        with PARSING:
            config = Config.fromfile(path)
    except Exception as error:
        raise UserError(f'config {path} cannot be read: {_config_problem(error, path)}') from error
    scope = (options or {}).get('default_scope', config.get('default_scope'))
    check_scope(scope, path)
    return config


def _no_such_config(file: Path) -> str:
    if file.is_dir():
        return f'config {file} is a folder; name a .py file in it.'
    near = []
    if file.parent.is_dir():
        names = [entry.name for entry in file.parent.iterdir() if entry.suffix == '.py']
        near = difflib.get_close_matches(file.name, names, n=1)
    hint = f'did you mean {file.parent / near[0]}?' if near else 'check the path.'
    place = '' if file.is_absolute() else f' (looked for in {os.getcwd()})'
    return f'config {file} does not exist{place}; {hint}'


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
        if os.path.splitext(frame.filename)[1] == '.py'
        and os.path.basename(frame.filename) != 'config.py'
        and os.path.exists(frame.filename)
        and frame.name == '<module>'
    ]
    where = f' ({lines[-1]})' if lines else ''
    name = '' if isinstance(error, FileNotFoundError) else f'{type(error).__name__}: '
    return f'{name}{text}{where}'


def check_scope(scope: str | None, path: str) -> None:
    """Raise a :class:`UserError` where a config's library cannot be used.

    Args:
        scope (str | None): The ``default_scope`` of the config.
        path (str): The config, for the message.
    """
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
            f'config {path} needs {scope}, which is not installed: '
            f'pip install "coc-mm[{SCOPES[scope]}]"'
        )


def merge_options(config: Config, options: dict | None) -> None:
    """Merge the ``--cfg-options`` into a config, in place.

    Args:
        config (Config): The config.
        options (dict, optional): Dotted keys and values.

    Raises:
        UserError: A key names no entry that is read, or leads through a value that
            is not a dict or list, or past the end of a list.
    """
    for key, value in (options or {}).items():
        top = key.split('.')[0]
        known = _TOP_LEVEL | set(config)
        if top not in known:
            near = difflib.get_close_matches(top, known, n=1)
            hint = f'did you mean {near[0]}?' if near else 'check its spelling.'
            raise UserError(
                f'--cfg-options {key}: the config has no entry {top!r} and nothing reads one; '
                f'{hint}'
            )
        try:
            config.merge_from_dict({key: value})
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f'--cfg-options {key}: {_bad_path(config, key, error)}') from error


def _bad_path(config: Config, key: str, error: Exception) -> str:
    """Say at which step a dotted key leaves the config."""
    node: Any = config
    walked: list[str] = []
    for step in key.split('.'):
        name = '.'.join(walked) or 'the config'
        if isinstance(node, (list, tuple)):
            if not step.isdigit():
                return f'{name} is a list, so a position is expected, not {step!r}.'
            if int(step) >= len(node):
                return f'{name} has {len(node)} entries, counted from 0; there is no {step}.'
            node = node[int(step)]
        elif isinstance(node, (dict, Config)):
            if step not in node:
                break
            node = node[step]
        else:
            return f'{name} is {node!r}, which has no entry {step!r}.'
        walked.append(step)
    if any(step.isdigit() for step in walked):
        name = key.rsplit('.', 1)[0]
        return f'set the whole list instead: {name}="[...]" ({error})'
    return str(error)


def _set_work_dir(config: Config, args: argparse.Namespace) -> None:
    """Flag, then config, then ``./work_dirs/<name of the config>``."""
    if args.work_dir is not None:
        config.work_dir = args.work_dir
    elif config.get('work_dir') is None:
        config.work_dir = os.path.join('./work_dirs', Path(args.config).stem)


def _set_loader_defaults(config: Config, fields: tuple[str, ...], **defaults) -> None:
    """Give mmpretrain's dataloaders what mmpretrain's own tools give them."""
    if config.get('default_scope') != 'mmpretrain':
        return
    for field in fields:
        if config.get(field) is not None:
            loader = ConfigDict(
                pin_memory=torch.cuda.is_available(),
                collate_fn=dict(type='default_collate'),
                **defaults,
            )
            loader.update(config[field])
            config[field] = loader


def _resolve_loaders(config: Config) -> None:
    """Drop what PyTorch refuses from a loader without workers."""
    for field in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = config.get(field)
        if loader is not None and not loader.get('num_workers', 0):
            if loader.get('persistent_workers'):
                loader.persistent_workers = False
            loader.pop('prefetch_factor', None)


def _complete(config: Config) -> None:
    """Find out what a config for own data leaves open, now that its folder is final."""
    from coc_mm.datasets import resolve_custom

    for line in resolve_custom(config):
        print_rank0(line)


def _require(config: Config, keys: tuple[str, ...], path: str, purpose: str) -> None:
    missing = [key for key in keys if config.get(key) is None]
    if missing:
        raise UserError(f'config {path} cannot be used for {purpose}: it sets no {missing[0]}.')


def merge_train_args(config: Config, args: argparse.Namespace) -> Config:
    """Merge the flags of ``tools/train.py``, ``--cfg-options`` last, in place.

    Args:
        config (Config): From :func:`load_config`.
        args (Namespace): From :func:`coc_mm.cli.options.parse_train`.

    Returns:
        Config: The same config.

    Raises:
        UserError: A flag that the config gives no ground for.
    """
    config.launcher = args.launcher
    _set_work_dir(config, args)
    if args.no_validate:
        config.val_cfg = config.val_dataloader = config.val_evaluator = None
    if args.amp:
        _set_amp(config, args.config)
    if args.auto_scale_lr:
        if (config.get('auto_scale_lr') or {}).get('base_batch_size') is None:
            raise UserError(
                f'--auto-scale-lr: config {args.config} does not say for which batch its learning '
                'rate was chosen.\nAdd auto_scale_lr = dict(base_batch_size=N).'
            )
        config.auto_scale_lr.enable = True
    if args.resume is not None:
        config.resume = True
        # 'auto' is settled when the work dir is final; the config's own load_from stays
        # for the case that there is nothing to resume.
        if args.resume != 'auto':
            config.load_from = args.resume
    _set_loader_defaults(
        config,
        ('train_dataloader', 'val_dataloader', 'test_dataloader'),
        persistent_workers=True,
    )
    merge_options(config, args.cfg_options)
    optim_wrapper = config.get('optim_wrapper')
    if args.amp and optim_wrapper and optim_wrapper.get('type') == 'OptimWrapper':
        optim_wrapper.pop('loss_scale', None)  # an option took --amp back
    _complete(config)
    _resolve_loaders(config)
    _require(
        config, ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper'), args.config, 'training'
    )
    return config


def _set_amp(config: Config, path: str) -> None:
    optim_wrapper = config.get('optim_wrapper')
    if optim_wrapper is None:
        raise UserError(f'--amp: config {path} sets no optim_wrapper.')
    kind = optim_wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise UserError(
            f'--amp works with an optim_wrapper of type OptimWrapper; config {path} has {kind}.'
        )
    optim_wrapper.type = 'AmpOptimWrapper'
    optim_wrapper.setdefault('loss_scale', 'dynamic')


def merge_test_args(config: Config, args: argparse.Namespace) -> Config:
    """Merge the flags of ``tools/test.py``, ``--cfg-options`` last, in place.

    Args:
        config (Config): From :func:`load_config`.
        args (Namespace): From :func:`coc_mm.cli.options.parse_test`.

    Returns:
        Config: The same config.

    Raises:
        UserError: A flag that the config gives no ground for.
    """
    config.launcher = args.launcher
    _set_work_dir(config, args)
    config.load_from = args.checkpoint
    config.resume = False  # a config left over from training may say otherwise
    needed = ('model', 'test_dataloader', 'test_cfg', 'test_evaluator')
    _require(config, needed, args.config, 'testing')
    if args.show or args.show_dir:
        _set_drawing(config, args)
    if args.out:
        _set_out(config, args.out)
    _set_loader_defaults(config, ('test_dataloader',))
    merge_options(config, args.cfg_options)
    _complete(config)
    _require(config, needed, args.config, 'testing')
    _resolve_loaders(config)
    if args.tta:  # wraps the model, so options must have reached it before
        _set_tta(config, args.config)
    return config


def _set_drawing(config: Config, args: argparse.Namespace) -> None:
    hook = (config.get('default_hooks') or {}).get('visualization')
    if hook is None:
        library = config.default_scope
        kind = 'SegVisualizationHook' if library == 'mmseg' else 'VisualizationHook'
        kind = 'DetVisualizationHook' if library == 'mmdet' else kind
        raise UserError(
            f'--show and --show-dir: config {args.config} has no visualization hook.\n'
            f"Add default_hooks = dict(visualization=dict(type='{kind}'))."
        )
    if config.default_scope == 'mmpretrain':
        if args.tta:
            raise UserError(
                '--tta with --show or --show-dir: the hook of mmpretrain draws single images, not '
                'their augmented versions; leave one of them out.'
            )
        hook.update(enable=True, show=args.show, wait_time=args.wait_time, out_dir=args.show_dir)
        return
    hook.draw = True
    if args.show:
        hook.update(show=True, wait_time=args.wait_time)
    if args.show_dir and config.default_scope == 'mmseg':
        if config.get('visualizer') is None:
            raise UserError(f'--show-dir: config {args.config} sets no visualizer.')
        config.visualizer.save_dir = args.show_dir
    elif args.show_dir:
        hook.test_out_dir = args.show_dir


def _flip_tta(pack: list[dict]) -> dict:
    flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
    return dict(type='TestTimeAug', transforms=[flips, pack])


def _set_tta(config: Config, path: str) -> None:
    """Wrap model and pipeline as each library's tool does."""
    dataset = config.test_dataloader.dataset
    while 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset.dataset
    if config.default_scope == 'mmpretrain':
        model: dict[str, Any] | None = dict(type='mmpretrain.AverageClsScoreTTA')
        pack = [deepcopy(dataset.pipeline[-1])]
    elif config.default_scope == 'mmdet':
        if (config.model.get('roi_head') or config.model).get('mask_head'):
            raise UserError(
                f'--tta: mmdet merges boxes, not masks, and the model of {path} predicts masks; '
                'leave --tta out.'
            )
        nms = dict(type='nms', iou_threshold=0.5)
        model = dict(type='DetTTAModel', tta_cfg=dict(nms=nms, max_per_img=100))
        keys: tuple[str, ...] = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
        keys += ('flip', 'flip_direction')
        pack = [dict(type='PackDetInputs', meta_keys=keys)]
    else:
        _require(config, ('tta_model', 'tta_pipeline'), path, '--tta')
        model, pack = None, []  # both are in the config
    if config.get('tta_model') is None:
        config.tta_model = model
    if config.get('tta_pipeline') is None:
        config.tta_pipeline = [*deepcopy(dataset.pipeline[:-1]), _flip_tta(pack)]
    config.model = ConfigDict(**config.tta_model, module=config.model)
    dataset.pipeline = config.tta_pipeline


def _set_out(config: Config, out: str) -> None:
    if config.default_scope != 'mmseg':
        if not out.endswith(('.pkl', '.pickle')):
            raise UserError(f'--out {out}: predictions are written to a .pkl file; name one.')
        if os.path.isdir(out):
            raise UserError(f'--out {out} is a folder; name a .pkl file.')
        return
    if os.path.exists(out) and not os.path.isdir(out):
        raise UserError(f'--out {out} is a file; mmseg writes one map per image into a folder.')
    evaluators = config.test_evaluator
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
        if evaluator.get('type', '').endswith('IoUMetric'):
            evaluator.update(output_dir=out, keep_results=True)
