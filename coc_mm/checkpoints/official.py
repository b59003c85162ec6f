"""What an official checkpoint is: its weights, task, architecture, formula and centers."""

import argparse
import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from torch import Tensor

from coc_mm.checkpoints.convert import TASKS
from coc_mm.checkpoints.load import load_checkpoint_safely, refuse_no_weights
from coc_mm.checkpoints.official_names import is_official, rename_official
from coc_mm.errors import CheckpointError
from coc_mm.models.backbones.context_cluster import ContextCluster

__all__ = ['Official', 'read_official']

# Commit 3ccb0b6 of the official code divides by similarities; before, by the count.
_FIXED = datetime(2023, 5, 31)
_EMA_KEYS = ('state_dict_ema', 'model_ema', 'ema_state_dict')


@dataclass
class Official:
    """An official checkpoint, as far as it tells of itself.

    Attributes:
        path (str): The file.
        weights (dict[str, Tensor]): Under official names, without wrappers' prefixes.
        task (str): One of :data:`coc_mm.checkpoints.convert.TASKS`.
        archs (list[str]): Names of :attr:`ContextCluster.arch_zoo` that have these shapes.
        named_arch (str | None): What the training script was told, if it is kept.
        centers (int | None): Side of the grid of centers per region, from the config text.
        trained (datetime | None): When the checkpoint was written.
        remarks (list[str]): What was chosen or left out.
    """

    path: str
    weights: dict[str, Any]
    task: str
    archs: list[str] = field(default_factory=list)
    named_arch: str | None = None
    centers: int | None = None
    trained: datetime | None = None
    remarks: list[str] = field(default_factory=list)

    def arch(self, wanted: str | None = None) -> str:
        """Settle the architecture.

        Args:
            wanted (str, optional): What the user says.

        Returns:
            str: A name of ``ContextCluster.arch_zoo``.

        Raises:
            CheckpointError: The weights fit none, several, or another one than wanted.
        """
        if not self.archs:
            raise CheckpointError(
                f'{self.path}: the weights fit none of the architectures '
                f'{", ".join(ContextCluster.arch_zoo)} by their depths, widths and heads.'
            )
        if wanted is not None:
            if wanted not in self.archs:
                raise CheckpointError(
                    f'{self.path}: --arch {wanted} does not fit the shapes of the weights; '
                    f'these fit {" or ".join(self.archs)}.'
                )
            return wanted
        if self.named_arch in self.archs:
            return self.named_arch
        if len(self.archs) == 1:
            return self.archs[0]
        raise CheckpointError(
            f'{self.path}: the weights fit {", ".join(self.archs)} alike, which differ only in '
            'centers and regions, and the file does not name its model; say which with --arch.'
        )

    def denominator(self, wanted: str | None = None) -> tuple[str, str]:
        """Settle what a cluster's sum is divided by, which no weight shows.

        Args:
            wanted (str, optional): What the user says.

        Returns:
            tuple[str, str]: 'similarity' or 'count', and where that is from.

        Raises:
            CheckpointError: A dense model says too little of its origin.
        """
        if wanted is not None:
            return wanted, 'given'
        if self.trained is not None and self.trained < _FIXED:
            return 'count', f'inferred: trained on {self.trained:%Y-%m-%d}, before 2023-05-31'
        if self.task == 'classification':
            return 'similarity', (
                'assumed, as of the release of June 2023; weights from before 2023-05-31 need '
                '--denominator count'
            )
        when = f'is of {self.trained:%Y-%m-%d}' if self.trained else 'has no date'
        raise CheckpointError(
            f'{self.path}: the weights do not show what clusters are divided by, and the file '
            f'{when}.\nSay --denominator count for weights of code from before 2023-05-31, as the '
            'published COCO and ADE20K ones are, else --denominator similarity.'
        )

    def proposals(self, wanted: int | None = None) -> int | None:
        """Settle the centers of a dense model, which no weight shows.

        Args:
            wanted (int, optional): What the user says.

        Returns:
            int | None: Side of the grid of centers in every region; None for a
            classifier, whose architecture has them.

        Raises:
            CheckpointError: A dense model's config text does not name them.
        """
        if self.task == 'classification':
            if wanted is not None:
                raise CheckpointError(
                    f'{self.path}: --proposals is for detectors and segmentors; a classifier has '
                    'the centers of its --arch.'
                )
            return None
        found = wanted or self.centers
        if found is None:
            raise CheckpointError(
                f'{self.path}: the weights do not show how many centers a region has, and the '
                'file holds no config that does.\nSay --proposals 2, 5 or 7 for 4, 25 or 49.'
            )
        return found


def read_official(path: str, task: str | None = None, ema: bool = False) -> Official:
    """Read an official checkpoint and recognise what it is.

    Understood are archives of timm's training script, checkpoints of mmdet 2.x and
    mmseg 0.x, those of the point-cloud code, and bare state dicts.

    Args:
        path (str): A local file.
        task (str, optional): Of :data:`coc_mm.checkpoints.convert.TASKS`; recognised
            from the keys if None.
        ema (bool): Take the averaged weights. Defaults to False.

    Returns:
        Official: The weights and what is known of them.

    Raises:
        CheckpointError: The file cannot be read, holds no such weights, or no averaged
            ones although asked for.
    """
    checkpoint = load_checkpoint_safely(path)
    weights, remarks = _weights(checkpoint, path, ema)
    found = _task_of(weights)
    if found is None:
        keys = ', '.join(list(weights)[:3])
        ours = any('.mixer.in_proj.' in name for name in weights)
        hint = 'they have the names of this package: nothing to convert' if ours else 'unknown'
        raise CheckpointError(
            f'{path} holds no official Context-Cluster weights ({hint}; it has {keys}, ...).'
        )
    if task is not None and task != found and not (task in TASKS[1:3] and found in TASKS[1:3]):
        raise CheckpointError(f'{path} holds weights for {found}, not for --task {task}.')
    official = Official(path, weights, task or found, remarks=remarks)
    if found != 'point_cloud':
        official.archs = _archs_of(weights)
    _read_origin(official, checkpoint)
    return official


def _weights(checkpoint: Mapping, path: str, ema: bool) -> tuple[dict, list[str]]:
    averaged = [key for key in _EMA_KEYS if isinstance(checkpoint.get(key), Mapping)]
    plain = [k for k in ('state_dict', 'model', 'net') if isinstance(checkpoint.get(k), Mapping)]
    remarks = []
    if ema:
        if not averaged:
            raise CheckpointError(f'{path} holds no averaged weights (EMA); leave out --ema.')
        key: str | None = averaged[0]
        remarks.append(f'weights: {key} (the moving average)')
    elif not plain and averaged:
        raise CheckpointError(f'{path} holds averaged weights alone ({averaged[0]}); say --ema.')
    else:
        key = plain[0] if plain else None
        if averaged:
            remarks.append(f'weights: {key}; --ema takes {averaged[0]}, the moving average')
    given = checkpoint if key is None else checkpoint[key]
    weights = {}
    for name, value in given.items():
        if isinstance(value, Tensor):
            weights[re.sub(r'^(module\.)+', '', str(name))] = value
    # mmcv's EMA hook keeps the other set of weights in buffers of flattened names.
    buffers = [name for name in weights if re.match(r'ema_(backbone|neck|\w+_head)_', name)]
    if buffers:
        remarks.append(f'left out {len(buffers)} buffers ema_* of mmcv: the weights of training')
    weights = {name: v for name, v in weights.items() if name not in buffers}
    refuse_no_weights(weights, path)
    return weights, remarks


def _task_of(weights: Mapping) -> str | None:
    names = [name.removeprefix('backbone.') for name in weights]
    if any(re.search(r'blocks_list\.\d+\.operation\.\d+\.sim_alpha$', name) for name in names):
        return 'point_cloud'
    if not is_official(names):
        return None
    if any(name.startswith(('rpn_head.', 'roi_head.', 'bbox_head.')) for name in names):
        return 'detection'
    if any(name.startswith('decode_head.') for name in names):
        return 'segmentation'
    return 'classification' if 'norm.weight' in names or 'head.weight' in names else 'detection'


def _archs_of(weights: Mapping) -> list[str]:
    """Names of the architectures with these depths, widths, MLPs and heads."""
    names = {k: v for k, v in rename_official(weights)[0].items()}
    fits = []
    for arch, settings in ContextCluster.arch_zoo.items():
        inner = [heads * settings['head_dim'] for heads in settings['heads']]
        depths = [
            len({k.split('.')[3] for k in names if k.startswith(f'stages.{i}.blocks.')})
            for i in range(4)
        ]
        if depths != list(settings['depths']):
            continue
        shapes = [
            (
                names.get(f'stages.{i}.blocks.0.mixer.in_proj.weight'),
                names.get(f'stages.{i}.blocks.0.mlp.fc1.weight'),
            )
            for i in range(4)
        ]
        expected = [
            ((2 * n, dim), (ratio * dim, dim))
            for n, dim, ratio in zip(inner, settings['dims'], settings['mlp_ratios'], strict=True)
        ]
        if [tuple(None if t is None else tuple(t.shape) for t in s) for s in shapes] == expected:
            fits.append(arch)
    return fits


def _read_origin(official: Official, checkpoint: Mapping) -> None:
    """Learn from the options and the metadata what the weights cannot tell."""
    options = checkpoint.get('args')
    model = getattr(options, 'model', None) if isinstance(options, argparse.Namespace) else None
    name = model or checkpoint.get('arch')
    if isinstance(name, str):
        official.named_arch = re.sub(r'^coc_', '', name)
    meta = checkpoint.get('meta')
    if not isinstance(meta, Mapping):
        return
    config = meta.get('config')
    if isinstance(config, str):
        found = set(re.findall(r'cluster_(?:small|medium)_feat_?(\d+)', config, re.IGNORECASE))
        if len(found) == 1:
            official.centers = int(found.pop())
    with contextlib.suppress(ValueError):  # any other text is no date
        official.trained = datetime.strptime(str(meta.get('time')), '%a %b %d %H:%M:%S %Y')
