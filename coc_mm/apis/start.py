"""What a run starts from: its model, its folders and the checkpoints that the config names."""

import os
from collections.abc import Iterable
from copy import deepcopy

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from coc_mm.checkpoints.load import (
    apply_record,
    check_weights,
    is_local,
    load_checkpoint_safely,
)
from coc_mm.checkpoints.pretrained import check_pretrained
from coc_mm.compat.cpu_distributed import name_rank
from coc_mm.datasets import check_categories, dicts, inner_datasets
from coc_mm.engine.fault_tolerance.resume import find_latest_checkpoint, verify_checkpoint
from coc_mm.engine.fault_tolerance.seeding import adopt_seed
from coc_mm.errors import UserError, print_rank0
from coc_mm.utils.atomic_io import check_writable, remove_partial_files

# What each launcher sets for its processes; mmengine reads these.
_LAUNCHERS = {
    'pytorch': ('torchrun', 'RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT'),
    'slurm': ('srun', 'SLURM_PROCID SLURM_NTASKS SLURM_NODELIST'),
    'mpi': ('mpirun', 'OMPI_COMM_WORLD_LOCAL_RANK OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE'),
}


def build_model(config: Config) -> nn.Module:
    """Build the model of a config on the CPU with random weights, as a Runner would."""
    model = deepcopy(config.model)
    if config.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', deepcopy(config.data_preprocessor))
    with DefaultScope.overwrite_default_scope(config.default_scope), torch.random.fork_rng([]):
        return MODELS.build(model)


def pretrained_files(config: Config) -> list[str]:
    """List the local files of ``init_cfg=dict(type='Pretrained', checkpoint=...)`` in a model."""
    found = (x.get('checkpoint') for x in dicts(config.model) if x.get('type') == 'Pretrained')
    return [path for path in found if isinstance(path, str) and is_local(path)]


def drop_missing_pretrained(config: Config) -> None:
    """Forget starting weights that are gone, where a run resumes and has its own."""
    gone = {p for p in pretrained_files(config) if not os.path.isfile(os.path.expanduser(p))}
    for node in dicts(config.model) if gone else ():
        listed = node.get('init_cfg') or []
        listed = list(listed) if isinstance(listed, (list, tuple)) else [listed]
        kept = [entry for entry in listed if entry.get('checkpoint') not in gone]
        if kept != listed:
            node['init_cfg'] = kept or None
    if gone:
        names = ', '.join(sorted(gone))
        print_rank0(f'starting weights {names} are gone; a resumed run needs none.')


def check_start(config: Config, given: Iterable[str] = ()) -> None:
    """Check launcher, folders and every local checkpoint that a training starts from.

    In the config ``resume='auto'`` becomes True with the checkpoint to go on from, or False, the
    seed that of the resumed run, and the denominator that of converted weights, unless it is among
    the ``given`` options. What cannot be used is a ``UserError``.
    """
    _check_launcher(config.get('launcher'))
    _check_categories(config, 'train_dataloader', 'val_dataloader')
    hook = (config.get('default_hooks') or {}).get('checkpoint') or {}
    out_dir, folder = config.work_dir, hook.get('out_dir')
    if folder is not None and is_local(str(folder)):  # as mmengine's hook finds it
        out_dir = os.path.join(folder, os.path.basename(out_dir.rstrip(os.sep)))
    if int(os.environ.get('RANK', 0)) == 0:
        for folder in {config.work_dir, out_dir}:
            check_writable(folder)
            remove_partial_files(folder)  # of a run that was killed
    if config.get('resume') == 'auto':
        _find_resume(config, out_dir, hook.get('filename_tmpl'))
    resume, start = config.get('resume'), config.get('load_from')
    if resume:
        drop_missing_pretrained(config)
    pretrained = pretrained_files(config)
    checkpoint = None
    if start and is_local(start):  # held for the runner, so that it is read once
        checkpoint = (
            verify_checkpoint(start) if resume else load_checkpoint_safely(start, hold=True)
        )
    _check_unread_levels(config)
    if checkpoint is None and not pretrained:
        return
    if checkpoint is not None and resume:
        _check_resumable(config, checkpoint, start)
    for path in () if resume else (*pretrained, start):
        if path and is_local(path) and os.path.isfile(os.path.expanduser(path)):
            content = load_checkpoint_safely(path, hold=True)
            apply_record(config, content, path, (*given, 'proposals'))
    model = build_model(config)
    check_pretrained(model, pretrained)
    if checkpoint is not None:
        check_weights(model, checkpoint, start, strict=bool(resume))
        if resume:
            _check_optimizer(config, model, checkpoint['optimizer'], start)


def check_test_start(config: Config, given: Iterable[str] = ()) -> None:
    """Check launcher and checkpoint of a test, where that is a local file.

    What converted weights record goes into the config, less the ``given`` options.
    """
    _check_launcher(config.get('launcher'))
    _check_categories(config, 'test_dataloader')
    start = config.load_from
    if is_local(start):
        checkpoint = load_checkpoint_safely(start, hold=True)
        apply_record(config, checkpoint, start, given)
        # Augmentation wraps the model that checkpoints are of.
        inner = Config(dict(config, model=config.model.get('module', config.model)))
        check_weights(build_model(inner), checkpoint, start, strict=True)


def _check_categories(config: Config, *loaders: str) -> None:
    """See that the files of ``CocoDataset`` have the classes of the config, before it is built."""
    for loader in loaders if config.get('default_scope') == 'mmdet' else ():
        for dataset in inner_datasets((config.get(loader) or {}).get('dataset') or {}):
            if dataset.get('type') not in ('CocoDataset', 'mmdet.CocoDataset'):
                continue
            classes = (dataset.get('metainfo') or {}).get('classes')
            if classes is None:
                from mmdet.datasets import CocoDataset

                classes = CocoDataset.METAINFO['classes']
            if isinstance(classes, (list, tuple)):  # no file of names
                check_categories(dataset, classes)


def _check_launcher(launcher: str | None) -> None:
    if launcher not in _LAUNCHERS:
        return
    program, variables = _LAUNCHERS[launcher]
    lacking = [name for name in variables.split() if name not in os.environ]
    if lacking:
        raise UserError(
            f'--launcher {launcher}: the variable {lacking[0]} is not set; start the tool with '
            f'{program}, or leave --launcher out for one process.'
        )
    if get_device() == 'mps':
        raise UserError(
            f'--launcher {launcher}: mmengine runs one process on an Apple GPU; leave --launcher '
            'out.'
        )
    name_rank(launcher)


def _find_resume(config: Config, out_dir: str, template: str | None) -> None:
    """Name the latest complete checkpoint in the config, or do not resume."""
    latest, passed = find_latest_checkpoint(config.work_dir, out_dir, template)
    for reason in passed:
        print_rank0(f'resume: passed over: {reason}')
    config.resume = latest is not None
    if latest is None:
        print_rank0(f'resume: no checkpoint in {config.work_dir}, so training starts anew.')
    else:
        print_rank0(f'resume: continuing from {latest}.')
        config.load_from = latest


def _check_resumable(config: Config, checkpoint: dict, path: str) -> None:
    lacking = [key for key in ('meta', 'message_hub', 'optimizer') if key not in checkpoint]
    if lacking:
        raise UserError(
            f'checkpoint {path} cannot be resumed: it has no {lacking[0]}, only weights.\n'
            f'To start from its weights: --cfg-options load_from={path}'
        )
    differing = adopt_seed(config, checkpoint['meta'])
    if differing:
        print_rank0(f'resume: the seed stays {differing[1]}, not {differing[0]} as in the config.')


def _check_optimizer(config: Config, model: nn.Module, state: dict, path: str) -> None:
    """Refuse to resume with another optimizer than the checkpoint's, as far as it shows."""
    if 'param_groups' not in state or 'runner_type' in config:
        return  # several optimizers, or sharded
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')  # which parameter gets which options is said again later
    try:
        with DefaultScope.overwrite_default_scope(config.default_scope):
            wrapper = build_optim_wrapper(model, deepcopy(config.optim_wrapper))
    finally:
        logger.setLevel(level)
    here, there = wrapper.optimizer.param_groups, state['param_groups']
    kind = type(wrapper.optimizer).__name__
    sizes = [[len(group['params']) for group in groups] for groups in (here, there)]
    if not set(wrapper.optimizer.defaults) - _VARYING <= set(there[0]):
        settings = sorted(x for x in set(there[0]) - _VARYING if not x.startswith('initial_'))
        differs = f'its settings ({", ".join(settings)}) are not those of {kind}'
    elif sizes[0] != sizes[1]:
        says = [f'{sum(counts)} parameters in {len(counts)} groups' for counts in sizes]
        differs = f'it has {says[1]}, the config {says[0]}'
    else:
        return
    raise UserError(
        f'checkpoint {path} cannot be resumed with the optimizer of the config: {differs}.\n'
        f'Resume with the same optim_wrapper, or start from its weights: --cfg-options '
        f'load_from={path}'
    )


# Settings that come and go with the release of torch.
_VARYING = {'foreach', 'fused', 'capturable', 'differentiable', 'decoupled_weight_decay', 'params'}


def _check_unread_levels(config: Config) -> None:
    """Refuse several processes where a norm of the backbone would get no gradient."""
    model = config.model
    if config.get('launcher', 'none') == 'none' or model.get('type') is None:
        return
    wrapper = config.get('model_wrapper_cfg') or {}
    backbone, neck = model.get('backbone') or {}, model.get('neck')
    if config.get('find_unused_parameters') or wrapper.get('find_unused_parameters'):
        return
    if not str(backbone.get('type')).endswith('ContextCluster'):
        return
    levels = range(len(backbone.get('out_indices') or (3,)))
    if isinstance(neck, dict):
        unread = [i for i in levels if i < neck.get('start_level', 0)]
    else:
        heads = [model.get('decode_head'), model.get('auxiliary_head')]
        heads = [x for head in heads if head for x in (head if isinstance(head, list) else [head])]
        read = {
            i % len(levels)
            for head in heads
            for x in [head.get('in_index', -1), head.get('c1_in_index', ())]
            for i in (x if isinstance(x, (list, tuple)) else [x])
        }
        unread = [i for i in levels if heads and i not in read]
        # DeepLabV3+ reads its shallow map first, without an index.
        if any('c1_in_channels' in head for head in heads):
            unread = [i for i in unread if i]
    if unread:
        raise UserError(
            f'nothing reads the levels {unread} of the backbone: their norms get no gradient, and '
            'several processes stop in the second step.\nLeave them out of '
            'model.backbone.out_indices (and count in_channels, start_level and in_index anew), or '
            'set --cfg-options find_unused_parameters=True.'
        )
