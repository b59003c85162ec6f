"""Official checkpoints into ours: what ``tools/model_converters/official_to_coc_mm.py`` runs."""

import argparse
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmengine
from mmengine.config import Config
from mmengine.registry import DATASETS
from torch import nn

from coc_mm.apis.config import load_config
from coc_mm.apis.model_zoo import config_of, entries
from coc_mm.apis.start import Comparison, build_model
from coc_mm.checkpoints.convert import TASKS, convert_official
from coc_mm.checkpoints.official import Official, read_official
from coc_mm.checkpoints.save import check_target, save_checkpoint
from coc_mm.errors import UserError, print_rank0
from coc_mm.models.backbones.context_cluster import DENOMINATORS, ContextCluster
from coc_mm.version import __version__

__all__ = ['convert_checkpoint', 'run_convert']

_DENSE = {
    'detection': 'mask-rcnn_coc-{}-c{}_fpn_1x_coco',
    'segmentation': 'fpn_coc-{}-c{}_4xb4-80k_ade20k-512x512',
}

_POINT_CLOUD = 'projects/point_cloud/configs/pointmlp-coc_1xb32-250e_scanobjectnn.py'


def _target_config(task: str, arch: str, denominator: str, proposals: int | None) -> Config:
    """Take the config of the published model, with the mixer of these weights."""
    if task == 'classification':
        name = f'coc-{arch.replace("_", "-")}_8xb128_in1k'
    else:
        if arch not in ('small', 'medium'):
            raise UserError(
                f'there is no published model for {task} with {arch}; small and medium have one.'
            )
        assert proposals is not None, 'the file or the user has said it'
        name = _DENSE[task].format(arch[0], proposals**2)
        if name not in entries():
            name = _DENSE[task].format(arch[0], 4)
    config = config_of(name)
    backbone = config.model.backbone
    backbone.denominator = denominator
    backbone.init_cfg = None  # the weights follow; the file of the training is elsewhere
    if proposals is not None:
        backbone.proposals = proposals
    return config


def _dataset_meta(config: Config) -> dict[str, Any]:
    """Class names, and colors where the dataset has them."""
    name = config.test_dataloader.dataset.type
    # A bare name is looked for at the root, whatever the default scope.
    dataset = DATASETS.get(name if '.' in name else f'{config.default_scope}.{name}')
    return {key.lower(): value for key, value in dataset.METAINFO.items()}


def _fit(weights: dict, model: nn.Module, official: Official) -> Any:
    """Order the weights as the model has them, metadata too; refuse any that differ."""
    target = model.state_dict()
    comparison = Comparison.of(weights, target)
    if not comparison.exact:
        groups = dict(
            missing=comparison.missing,
            unexpected=comparison.unexpected,
            mis_shaped=comparison.mismatched,
        )
        lines = [
            f'{len(keys)} {group.replace("_", "-")}: {", ".join(keys)}'
            for group, keys in groups.items()
            if keys
        ]
        raise UserError(
            f'{official.path} does not fit {type(model).__name__} for {official.task} '
            f'({comparison.common} weights match):\n' + '\n'.join(lines)
        )
    # Counters of batch norms, which the oldest files lack, are the model's own.
    fitted: Any = OrderedDict((name, weights.get(name, value)) for name, value in target.items())
    fitted._metadata = getattr(target, '_metadata', OrderedDict())
    return fitted


def convert_checkpoint(
    source: str,
    task: str | None = None,
    arch: str | None = None,
    denominator: str | None = None,
    proposals: int | None = None,
    ema: bool = False,
) -> dict[str, Any]:
    """Convert an official checkpoint to one that the libraries' inference functions take.

    The keys are held strictly against the model that the published config builds.

    Args:
        source (str): The official file.
        task (str, optional): 'classification', 'detection', 'segmentation' or 'point_cloud';
            recognised from the keys if None.
        arch (str, optional): A name of ``ContextCluster.arch_zoo``; recognised from
            shapes and options if None, where these suffice.
        denominator (str, optional): 'similarity' or 'count'. If None, 'count' for files
            dated before 2023-05-31, and 'similarity' for other classifiers.
        proposals (int, optional): Side of the grid of centers per region of a dense model;
            from its config text if None.
        ema (bool): Take the averaged weights. Defaults to False.

    Returns:
        dict: ``meta`` (``cfg``, ``dataset_meta``, and the record of the conversion under
        ``coc_mm``) and ``state_dict``.

    Raises:
        CheckpointError: The file cannot be read, or tells too little of itself.
        UserError: The weights do not fit the model, or have no model here.
    """
    official = read_official(source, task, ema)
    try:
        weights = convert_official(official.weights, official.task)
    except ValueError as error:
        raise UserError(f'{source}: {error}') from None
    if official.task == 'point_cloud':
        return _convert_point_cloud(weights, official)
    arch = official.arch(arch)
    proposals = official.proposals(proposals)
    denominator, why = official.denominator(denominator)
    config = _target_config(official.task, arch, denominator, proposals)
    fitted = _fit(weights, build_model(config), official)
    backbone: dict[str, Any] = dict(denominator=denominator)
    if proposals is not None:
        backbone['proposals'] = proposals
    fitted._metadata.setdefault('backbone', {})['denominator'] = denominator
    record = dict(
        converted_from='official Context-Cluster weights',
        task=official.task,
        arch=arch,
        backbone=backbone,
        denominator_is=why,
        version=__version__,
    )
    for remark in official.remarks:
        print_rank0(remark)
    print_rank0(f'{official.task}, {arch}: {len(weights)} weights fit')
    if proposals is not None:
        print_rank0(f'centers per region: {proposals**2} ({proposals} x {proposals})')
    print_rank0(f'denominator: {denominator} ({why})')
    meta = dict(
        cfg=config.pretty_text,
        dataset_meta=_dataset_meta(config),
        coc_mm=record,
        mmengine_version=mmengine.__version__,
    )
    return dict(meta=meta, state_dict=fitted)


def _convert_point_cloud(weights: dict, official: Official) -> dict[str, Any]:
    """Fit PointMLP with context clusters to the model of the project of that name."""
    path = Path(__file__).resolve().parents[2] / _POINT_CLOUD
    if not path.is_file():
        raise UserError(
            f'{official.path} holds PointMLP with context clusters, whose model is no part of the '
            f'installed package: it is in a checkout, {_POINT_CLOUD}. Convert there (pip install '
            '-e .).'
        )
    config = load_config(str(path))
    # The last layer alone says how many classes these are.
    last = max(
        (n for n in weights if n.startswith('classifier.')), key=lambda n: int(n.split('.')[1])
    )
    classes = len(weights[last])
    meta = _dataset_meta(config)
    if classes != config.model.num_classes:
        meta = dict(classes=[str(i) for i in range(classes)])
        config.model.num_classes = classes
    fitted = _fit(weights, build_model(config), official)
    for remark in official.remarks:
        print_rank0(remark)
    print_rank0(f'point_cloud, pointMLP_CoC: {len(weights)} weights fit, {classes} classes')
    record = dict(
        converted_from='official Context-Cluster weights',
        task='point_cloud',
        arch='pointMLP_CoC',
        version=__version__,
    )
    meta = dict(
        cfg=config.pretty_text,
        dataset_meta=meta,
        coc_mm=record,
        mmengine_version=mmengine.__version__,
    )
    return dict(meta=meta, state_dict=fitted)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='official_to_coc_mm.py',
        description='Convert official Context-Cluster weights: archives of timm (.pth.tar), '
        'checkpoints of mmdet 2.x and mmseg 0.x.',
    )
    parser.add_argument('src', help='the official file')
    parser.add_argument('dst', help='the file to write: .pth or .safetensors')
    parser.add_argument('--task', choices=TASKS, help='default: recognised from the keys')
    parser.add_argument(
        '--arch',
        choices=list(ContextCluster.arch_zoo),
        help='default: recognised; to say where weights fit several (tiny, tiny2, tiny_plain)',
    )
    parser.add_argument(
        '--denominator',
        choices=DENOMINATORS,
        help='what clusters are divided by: count for code from before 2023-05-31, as the '
        'published COCO and ADE20K weights; default: by the date in the file, similarity for '
        'classifiers without one',
    )
    parser.add_argument(
        '--proposals',
        type=int,
        metavar='N',
        help='detection, segmentation: N x N centers per region (2, 5 or 7 are published); '
        'default: from the config in the file',
    )
    parser.add_argument('--ema', action='store_true', help='take the averaged weights')
    parser.add_argument('--force', action='store_true', help='replace DST if it exists')
    args = parser.parse_args(argv)
    if args.proposals is not None and args.proposals < 1:
        parser.error(f'argument --proposals: at least 1, got {args.proposals}')
    return args


def run_convert(argv: Sequence[str] | None = None) -> None:
    """Convert a file, as ``tools/model_converters/official_to_coc_mm.py`` does.

    Args:
        argv (Sequence[str], optional): Arguments; those of the process if None.

    Raises:
        CheckpointError: The source cannot be used, or the target not be written.
        UserError: The weights do not fit.
    """
    args = _parse(argv)
    path = check_target(args.dst, args.force)
    converted = convert_checkpoint(
        args.src, args.task, args.arch, args.denominator, args.proposals, args.ema
    )
    save_checkpoint(converted, path)
    print_rank0(f'wrote {path}')
