"""The one place that changes a config: flags, ``--cfg-options`` and what every run needs."""

import os
import re
from argparse import Namespace
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device

from coc_mm.apis.config import merge_options
from coc_mm.apis.values import check_values
from coc_mm.datasets import inner_datasets, mend_plain, resolve_custom
from coc_mm.engine.fault_tolerance.atomic_checkpoint_hook import use_atomic_checkpoints
from coc_mm.errors import UserError, print_rank0

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# What resolve_custom writes into datasets.
_FOUND_OUT = 'data_root|ann_file|data_prefix|metainfo|reduce_zero_label'
_MMENGINE_HOOKS = 'runtime_info timer sampler_seed logger param_scheduler checkpoint'


def resolve_train(config: Config, args: Namespace) -> Config:
    """Merge the flags of ``tools/train.py``, then ``--cfg-options``, then what a training needs.

    The config is changed in place. ``resume`` becomes ``'auto'`` where the checkpoint is to be
    looked for.
    """
    _set_common(config, args)
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
        if args.resume != 'auto':
            config.load_from = args.resume
    _set_loader_defaults(config, _LOADERS, persistent_workers=True)
    merge_options(config, args.cfg_options)
    # The config's own load_from stays for the case that there is nothing to resume.
    search = args.resume == 'auto' and 'load_from' not in (args.cfg_options or {})
    if config.get('resume') is True and (search or config.get('load_from') is None):
        config.resume = 'auto'
    _complete_data(config, args.cfg_options)
    needed = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper', 'work_dir')
    _require(config, needed, args.config, 'training')
    check_values(config)
    _resolve_amp(config, args.amp)
    _resolve_hooks(config)
    if args.deterministic:
        # Read when cuBLAS is first used; without it torch refuses matrix products on GPUs.
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        randomness = config.setdefault('randomness', ConfigDict())
        randomness.update(seed=randomness.get('seed') or 0, deterministic=True)
        config.setdefault('env_cfg', ConfigDict()).cudnn_benchmark = False
    use_atomic_checkpoints(config)
    return config


def resolve_test(config: Config, args: Namespace) -> Config:
    """Merge the flags of ``tools/test.py``, then ``--cfg-options``."""
    _set_common(config, args)
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
    _complete_data(config, args.cfg_options)
    _require(config, needed, args.config, 'testing')
    check_values(config)
    # After the options, which are to find evaluator and model where the config has them.
    if args.out and config.default_scope != 'mmseg':
        _add_dump(config, args.out)
    if args.tta:
        _set_tta(config, args.config)
    return config


def _set_common(config: Config, args: Namespace) -> None:
    config.launcher = args.launcher
    if args.launcher != 'none':
        # torch's default for NCCL is 10 minutes, which an evaluation of COCO may take.
        env_cfg = config.setdefault('env_cfg', ConfigDict())
        env_cfg.setdefault('dist_cfg', ConfigDict()).setdefault('timeout', 1800)
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


def _complete_data(config: Config, options: dict | None) -> None:
    """Find out what a config for own data leaves open, now that its folder is final."""
    for key in options or () if config.get('custom_data') else ():
        if found := re.match(rf'\w+_dataloader\.dataset\.(?:.+\.)?({_FOUND_OUT})(\.|$)', key):
            raise UserError(
                f'--cfg-options {key}: {found[1]} of own data is found out from the entries at the '
                'top: data_root=FOLDER, classes=[...], reduce_zero_label=True; set those.'
            )
    own = config.get('custom_data') is not None
    for line in resolve_custom(config) if own else mend_plain(config):
        print_rank0(line)
    for field in _LOADERS:  # drop what PyTorch refuses without workers
        loader = config.get(field)
        if loader is not None and not loader.get('num_workers', 0):
            if loader.get('persistent_workers'):
                loader.persistent_workers = False
            loader.pop('prefetch_factor', None)


def _require(config: Config, keys: tuple[str, ...], path: str, purpose: str) -> None:
    missing = [key for key in keys if config.get(key) is None]
    if missing:
        raise UserError(f'config {path} cannot be used for {purpose}: it sets no {missing[0]}.')


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


def _resolve_amp(config: Config, asked: bool) -> None:
    """Use bfloat16 autocast where there is no accelerator."""
    optim_wrapper = config.optim_wrapper
    kind = str(optim_wrapper.get('type', 'OptimWrapper'))
    if asked and kind == 'OptimWrapper':
        optim_wrapper.pop('loss_scale', None)  # an option took --amp back
    if kind.endswith('CpuAmpOptimWrapper'):  # the copy of a config that ran on a CPU
        optim_wrapper.type = kind = 'AmpOptimWrapper'
    if kind != 'AmpOptimWrapper':
        return
    if get_device() == 'mps':
        raise UserError('mixed precision: mmengine has none on Apple GPUs; train without --amp.')
    if get_device() == 'cpu':
        use_cpu_amp(optim_wrapper)
        print_rank0(
            'mixed precision: no accelerator here, so bfloat16 on the CPU without loss scaling.'
        )


def use_cpu_amp(optim_wrapper: dict) -> None:
    """Turn the config of an ``AmpOptimWrapper`` into one for the CPU, in place."""
    for key in ('loss_scale', 'dtype', 'use_fsdp'):
        optim_wrapper.pop(key, None)
    optim_wrapper['type'] = 'coc_mm.CpuAmpOptimWrapper'


def _resolve_hooks(config: Config) -> None:
    """Watch losses and gradients in every training; drop hooks that are set to None."""
    hooks = config.setdefault('default_hooks', ConfigDict())
    if 'numbers' in hooks:  # its former name
        hooks.setdefault('nonfinite', hooks.pop('numbers'))
    hooks.setdefault('nonfinite', ConfigDict(type='coc_mm.NonFiniteHook'))
    if isinstance(hooks.nonfinite, dict):
        hooks.nonfinite.setdefault('type', 'coc_mm.NonFiniteHook')
    for name in [name for name, hook in hooks.items() if hook is None]:
        if name not in _MMENGINE_HOOKS.split():  # mmengine removes its own alone
            hooks.pop(name)


def _set_drawing(config: Config, args: Namespace) -> None:
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


def _set_tta(config: Config, path: str) -> None:
    """Wrap model and pipeline as each library's tool does."""
    inner: list[Any] = inner_datasets(config.test_dataloader.dataset)
    dataset = inner[0]
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
        flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
        augmented = dict(type='TestTimeAug', transforms=[flips, pack])
        config.tta_pipeline = [*deepcopy(dataset.pipeline[:-1]), augmented]
    config.model = ConfigDict(**config.tta_model, module=config.model)
    for dataset in inner:
        dataset.pipeline = config.tta_pipeline


def _set_out(config: Config, out: str) -> None:
    if config.default_scope != 'mmseg':
        if not out.endswith(('.pkl', '.pickle', '.json', '.csv')):
            raise UserError(f'--out {out}: a .pkl, .json or .csv file is written; name one.')
        if os.path.isdir(out):
            raise UserError(f'--out {out} is a folder; name a .pkl, .json or .csv file.')
        return
    if os.path.exists(out) and not os.path.isdir(out):
        raise UserError(f'--out {out} is a file; mmseg writes one map per image into a folder.')
    for metric in _metrics(config):
        if metric.get('type', '').endswith('IoUMetric'):
            metric.update(output_dir=out, keep_results=True)


def _add_dump(config: Config, out: str) -> None:
    """Let a test write its predictions; COCO's own JSON by the metric that has its ids."""
    metrics, detects = _metrics(config), config.default_scope == 'mmdet'
    coco = [metric for metric in metrics if str(metric.get('type')).endswith('CocoMetric')]
    if detects and coco and out.endswith('.json'):
        coco[0]['outfile_prefix'] = out.removesuffix('.json')  # OUT.bbox.json, OUT.segm.json
        return
    kind = 'DumpDetResults' if detects else 'DumpResults'
    kind = kind if out.endswith(('.pkl', '.pickle')) else 'coc_mm.DumpPredictions'
    metrics.append(ConfigDict(type=kind, out_file_path=out))


def _metrics(config: Config) -> list[dict]:
    """Give the metrics of a test as a list that may be added to."""
    evaluator = config.test_evaluator
    if isinstance(evaluator, dict) and 'metrics' in evaluator:
        evaluator['metrics'] = _listed(evaluator['metrics'])
        return evaluator['metrics']
    config.test_evaluator = _listed(evaluator)
    return config.test_evaluator


def _listed(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]
