"""Official checkpoints into those of our models, with config and class names."""

from collections import OrderedDict
from typing import Any

import mmengine
from mmengine.config import Config
from mmengine.registry import DATASETS
from torch import nn

from coc_mm.apis.model_zoo import config_of, entries
from coc_mm.apis.start import build_model
from coc_mm.checkpoints.load import Comparison
from coc_mm.checkpoints.official import Official, recognise
from coc_mm.checkpoints.safe_pickle import read_file
from coc_mm.errors import CheckpointError, UserError, print_rank0
from coc_mm.version import __version__

_DENSE = {
    'detection': 'mask-rcnn_coc-{}-c{}_fpn_1x_coco',
    'segmentation': 'fpn_coc-{}-c{}_4xb4-80k_ade20k-512x512',
}


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
        source: The official file, of any of :data:`~coc_mm.checkpoints.official.LAYOUTS`.
        task: 'classification', 'detection', 'segmentation' or a project's; from the keys if None.
        arch: A name of ``ContextCluster.arch_zoo``; from shapes, options and the file's name if
            None, where these suffice.
        denominator: 'similarity' or 'count'; by layout, commit and date if None.
        proposals: Side of the grid of centers per region; from the file's config if None.
        ema: Take the averaged weights.

    Returns:
        ``state_dict`` and ``meta``: ``cfg``, ``dataset_meta``, under ``coc_mm`` the conversion.
    """
    official = _read_official(source, task, ema)
    weights = official.converted()
    facts = []
    if official.layout.target is not None:
        config, dataset_meta, name = official.layout.target(official)
        record = official.record()
    else:
        name, official.centers = official.arch(arch), official.proposals(proposals)
        if denominator is not None:
            official.denominator, official.denominator_is = denominator, 'given'
        record = official.record()
        config = _target_config(official.task, name, record['backbone'])
        dataset_meta = dataset_meta_of(config)
        if official.centers is not None:
            side = official.centers
            facts.append(f'centers per region: {side**2} ({side} x {side})')
        facts.append(f'denominator: {official.denominator} ({official.denominator_is})')
    fitted = _fit(weights, build_model(config), official)
    if official.layout.target is None:
        fitted._metadata['backbone'] = official.metadata()
    fit = f'{len(weights)} weights fit, {len(dataset_meta["classes"])} classes'
    for line in (*official.remarks, f'{official.task}, {name}: {fit}', *facts):
        print_rank0(line)
    meta = dict(
        cfg=config.pretty_text,
        dataset_meta=dataset_meta,
        coc_mm=dict(record, arch=name, version=__version__),
        mmengine_version=mmengine.__version__,
    )
    return dict(meta=meta, state_dict=fitted)


def _read_official(path: str, task: str | None, ema: bool) -> Official:
    checkpoint = read_file(path)
    official = recognise(checkpoint, path, ema)
    if official is None:
        keys = list(checkpoint.get('state_dict') or checkpoint)
        ours = any('.mixer.in_proj.' in str(name) for name in keys)
        hint = 'they have the names of this package: nothing to convert' if ours else 'unknown'
        raise CheckpointError(
            f'{path} holds no official Context-Cluster weights ({hint}; it has '
            f'{", ".join(map(str, keys[:3]))}, ...).'
        )
    # The two dense tasks cannot be told apart where the heads are missing.
    if task is not None and task != official.task:
        if {task, official.task} != {'detection', 'segmentation'}:
            raise CheckpointError(
                f'{path} holds weights for {official.task}, not for --task {task}.'
            )
        official.task = task
    return official


def _target_config(task: str, arch: str, backbone: dict[str, Any]) -> Config:
    """Take the config of the published model, with the mixer of these weights."""
    if task == 'classification':
        name = f'coc-{arch.replace("_", "-")}_8xb128_in1k'
    elif arch in ('small', 'medium'):
        name = _DENSE[task].format(arch[0], backbone['proposals'] ** 2)
        name = name if name in entries() else _DENSE[task].format(arch[0], 4)
    else:
        raise UserError(
            f'there is no published model for {task} with {arch}; small and medium have one.'
        )
    config = config_of(name)
    # The weights follow; the file of the training is elsewhere.
    config.model.backbone.update(backbone, init_cfg=None)
    return config


def dataset_meta_of(config: Config) -> dict[str, Any]:
    """Give the class names of a config's test data, and colors where it has them."""
    name = config.test_dataloader.dataset.type
    # A bare name is looked for at the root, whatever the default scope.
    dataset = DATASETS.get(name if '.' in name else f'{config.default_scope}.{name}')
    return {key.lower(): value for key, value in dataset.METAINFO.items()}


def _fit(weights: dict, model: nn.Module, official: Official) -> Any:
    """Order the weights as the model has them, metadata too; refuse any that differ."""
    target = model.state_dict()
    comparison = Comparison.of(weights, target)
    if not comparison.exact:
        raise UserError(
            f'{official.path} does not fit {type(model).__name__} for {official.task}: '
            f'{comparison.describe(limit=None)}'
        )
    # Counters of batch norms, which the oldest files lack, are the model's own.
    fitted: Any = OrderedDict((name, weights.get(name, value)) for name, value in target.items())
    fitted._metadata = getattr(target, '_metadata', OrderedDict())
    return fitted
