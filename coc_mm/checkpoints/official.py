"""Official Context-Cluster weights: the layouts they are published in, and ours.

The authors' code named its weights differently before and after its release, openmixup's in its
own way; a project adds another layout with :func:`register_layout`.
"""

import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import torch
from torch import Tensor

from coc_mm.checkpoints.safe_pickle import check_tensors
from coc_mm.errors import CheckpointError, print_rank0
from coc_mm.models.backbones.context_cluster import ContextCluster

_TASKS = ('classification', 'detection', 'segmentation')
_EMA_KEYS = ('state_dict_ema', 'model_ema', 'ema_state_dict')
# Of a detector or segmentor; mmdet 2.x and mmseg 0.x name them as their successors do.
_DENSE_PARTS = re.compile(r'(neck|rpn_head|roi_head|bbox_head|decode_head|auxiliary_head)\.')
_WRAPPERS = re.compile(r'^(module\.)*(backbone\.)?')

# In a block: the released name -> ours. The two projections are concatenated.
_BLOCK = {
    'norm1': 'norm1',
    'norm2': 'norm2',
    'layer_scale_1': 'layer_scale1',
    'layer_scale_2': 'layer_scale2',
    'mlp.fc1': 'mlp.fc1',
    'mlp.fc2': 'mlp.fc2',
    'token_mixer.sim_alpha': 'mixer.sim_alpha',
    'token_mixer.sim_beta': 'mixer.sim_beta',
    'token_mixer.proj': 'mixer.out_proj',
    'token_mixer.f': 'mixer.in_proj',
    'token_mixer.v': 'mixer.in_proj',
}

# Commits of the official code (args.git_id of timm): the count until March 2023; then the authors
# mended the formula and trained anew, but published the code on 2023-05-31.
_COUNT_COMMITS = (
    '82e8c1a ea84a8a 9e1a8ec 8d8efc3 a23ed77 366eae7 6186165 d8cfc25 20bc854 93a209c a6d66b8 '
    '17b68b3 8cabab1 fafcfd8 8218768 ca4ccca 6eaee2a 406a6c5'
)
_UNSURE_COMMITS = '21f0018 040b965 5c14390 20c4f61 9833996 c307ab1 c8d7115'
_SIMILARITY_COMMITS = '3ccb0b6 e732640 815ea0d 19d06e5 be9a03b'
_MENDED = datetime(2023, 5, 31)


@dataclass(frozen=True)
class Layout:
    """How the files of one origin name their weights.

    Args:
        sign: Regular expression that some name of each such file matches from its start, wrappers
            (``module.``, ``backbone.``) left off.
        aliases: Parts of names, and what the released layout has instead.
        denominator: What clusters are divided by in all its files.
        task: Of a project's layout, which keeps its names: a task of its own.
        keeps: With it, whether the project's model has a weight of this name.
        target: With it, takes the :class:`Official` and returns the config of its model, the
            ``dataset_meta`` and a name for the record.
    """

    name: str
    sign: str
    aliases: Mapping[str, str] = field(default_factory=dict)
    denominator: str | None = None
    task: str | None = None
    keeps: Callable[[str], bool] = field(default=lambda name: False)
    target: Callable[['Official'], tuple[Any, dict, str]] | None = None

    def released(self, name: str) -> str:
        """Give the released name for one of this layout, without wrappers."""
        name = _WRAPPERS.sub('', name)
        for part, other in self.aliases.items():
            name = name.replace(part, other)
        return name


#: By name; the first whose sign is found is taken.
LAYOUTS: dict[str, Layout] = {}


def register_layout(layout: Layout) -> None:
    """Let files of another layout be recognised and converted; a known name is replaced."""
    LAYOUTS[layout.name] = layout


_MIXER = r'network\.\d\.\d+\.token_mixer\.'
# The COCO and ADE20K files, and the paper's classifiers.
register_layout(
    Layout(
        'submission',
        sign=_MIXER + r'fc_v\.',
        aliases={
            'token_mixer.fc1.': 'token_mixer.f.',
            'token_mixer.fc_v.': 'token_mixer.v.',
            'token_mixer.fc2.': 'token_mixer.proj.',
        },
        denominator='count',
    )
)
register_layout(
    Layout(
        'openmixup',
        sign=r'network\.\d\.\d+\.gn[12]\.',
        aliases={'.gn1.': '.norm1.', '.gn2.': '.norm2.', 'head.fc.': 'head.'},
        denominator='count',
    )
)
register_layout(Layout('released', sign=_MIXER))


def layout_of(names: Iterable[str]) -> Layout | None:
    """Find the layout that names of weights are of, wrappers in front or not; None for ours."""
    bare = [_WRAPPERS.sub('', name) for name in names]
    found = (x for x in LAYOUTS.values() if any(re.match(x.sign, name) for name in bare))
    return next(found, None)


def rename_backbone(
    weights: Mapping[str, Tensor], layout: Layout
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Bring the weights of an official backbone under the names of ours.

    The two projections of a mixer become one, and 1x1 convolutions linear layers; the positions
    ``fea_pos`` are left out. Returned second, under their old names, are weights that are not a
    Context Cluster's or lack their counterpart.
    """
    renamed: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    pairs: dict[str, dict[str, str]] = {}
    for full_name, value in weights.items():
        name = layout.released(full_name)
        ours = _rename(name)
        if name == 'fea_pos':
            continue
        if ours is None:
            others[full_name] = value
        elif '.in_proj.' in ours:
            pairs.setdefault(ours, {})[name.split('.')[4]] = full_name
        else:
            is_linear = ours.endswith('.weight') and re.search(r'\.(mlp|mixer)\.', ours)
            renamed[ours] = value.flatten(1) if is_linear else value
    for ours, pair in pairs.items():
        shapes = [weights[name].shape for name in pair.values()]
        if len(pair) < 2 or () in shapes or shapes[0][1:] != shapes[1][1:]:
            others.update({name: weights[name] for name in pair.values()})
            continue
        value = torch.cat([weights[pair['f']], weights[pair['v']]])
        renamed[ours] = value.flatten(1) if ours.endswith('weight') else value
    return renamed, others


def _rename(name: str) -> str | None:
    """Give our name for a released one. Stages are even and reducers odd in ``network``."""
    found = re.fullmatch(r'(.+?)((?:\.(?:weight|bias))?)', name)
    stem, leaf = found.groups() if found else (name, '')
    if block := re.fullmatch(r'network\.([0246])\.(\d+)\.(.+)', stem):
        inner = _BLOCK.get(block[3])
        return inner and f'stages.{int(block[1]) // 2}.blocks.{block[2]}.{inner}{leaf}'
    if reducer := re.fullmatch(r'network\.([135])\.proj', stem):
        return f'stages.{(int(reducer[1]) + 1) // 2}.reducer.proj{leaf}'
    if norm := re.fullmatch(r'norm([0246]?)', stem):
        return f'norm{int(norm[1] or 6) // 2}{leaf}'
    return name if stem == 'patch_embed.proj' else None


def convert_official(
    state_dict: Mapping[str, Tensor], task: str = 'classification'
) -> dict[str, Tensor]:
    """Rename official Context-Cluster weights, of any layout, to the keys of the host model.

    Args:
        state_dict: Weights under official names, prefixed ``module.`` or ``backbone.`` or not.
        task: 'classification' returns ``backbone.*`` and ``head.fc.*`` for mmpretrain's
            ImageClassifier with GlobalAveragePooling and LinearClsHead; 'detection' and
            'segmentation' return ``backbone.*`` and the given neck and heads. Projects add others.

    Raises:
        ValueError: For an unknown task, or keys that are not Context Cluster's or that lack their
            counterpart, all of them listed.
    """
    tasks = (*_TASKS, *(layout.task for layout in LAYOUTS.values() if layout.task))
    if task not in tasks:
        raise ValueError(f'unknown task {task!r}: choose one of {tasks}')
    weights = {name.removeprefix('module.'): value for name, value in state_dict.items()}
    layout = layout_of(weights)
    if layout is None or layout.task != (None if task in _TASKS else task):
        raise ValueError(
            f'not the official weights of a Context Cluster for {task}: no token mixer among the '
            f'keys ({", ".join(list(weights)[:3])}, ...)'
        )
    if layout.task is not None:
        converted, others = weights, [name for name in weights if not layout.keeps(name)]
    else:
        converted, backbone = {}, {}
        for name, value in weights.items():
            released = layout.released(name)
            if task == 'classification' and re.fullmatch(r'head\.(weight|bias)', released):
                converted[released.replace('head.', 'head.fc.')] = value
            elif task != 'classification' and _DENSE_PARTS.match(name):
                converted[name] = value
            else:
                backbone[name] = value
        renamed, left = rename_backbone(backbone, layout)
        converted |= {f'backbone.{name}': value for name, value in renamed.items()}
        others = list(left)
    if others:
        lonely = [n for n in others if re.search(r'token_mixer\.(f|v|fc1|fc_v)\.(weight|bias)$', n)]
        unknown = [n for n in others if n not in lonely]
        raise ValueError(
            f'not the official weights of a Context Cluster for {task}:'
            + (f'\n{len(unknown)} unknown keys: {", ".join(unknown)}' if unknown else '')
            + ('\none of two projections, or both of different shapes: ' if lonely else '')
            + ', '.join(lonely)
        )
    return converted


@dataclass
class Official:
    """An official checkpoint, as far as it tells of itself."""

    path: str
    weights: dict[str, Tensor]  # without the prefixes of wrappers
    layout: Layout
    task: str
    denominator: str
    denominator_is: str  # how that is known
    archs: list[str]  # names of ContextCluster.arch_zoo that have these shapes
    named_arch: str | None  # what the training script was told, or the file is called
    centers: int | None  # side of the grid of centers per region, from the config text
    remarks: list[str]  # what was chosen or left out

    def converted(self) -> dict[str, Tensor]:
        """Give the weights under the host model's names."""
        try:
            return convert_official(self.weights, self.task)
        except ValueError as error:
            raise CheckpointError(f'{self.path}: {error}') from None

    def metadata(self) -> dict[str, str]:
        """Give what the weights of the backbone record: the denominator, unless it is assumed."""
        assumed = self.denominator_is.startswith('assumed')
        return {} if assumed else dict(denominator=self.denominator)

    def record(self) -> dict[str, Any]:
        """Give what a converted checkpoint keeps of this under ``meta['coc_mm']``."""
        record: dict[str, Any] = dict(converted_from='official Context-Cluster weights')
        record |= dict(layout=self.layout.name, task=self.task)
        if self.layout.task is None:
            record['backbone'] = dict(denominator=self.denominator)
            record['denominator_is'] = self.denominator_is
            if self.centers is not None:
                record['backbone']['proposals'] = self.centers
        return record

    def arch(self, wanted: str | None = None) -> str:
        """Resolve the architecture; refuse none, several, or another one than is wanted."""
        if not self.archs:
            raise CheckpointError(
                f'{self.path}: the weights fit none of the architectures '
                f'{", ".join(ContextCluster.arch_zoo)} by their depths, widths and heads.'
            )
        if wanted is not None and wanted not in self.archs:
            raise CheckpointError(
                f'{self.path}: --arch {wanted} does not fit the shapes of the weights; '
                f'these fit {" or ".join(self.archs)}.'
            )
        named = self.named_arch if self.named_arch in self.archs else None
        if wanted or named or len(self.archs) == 1:
            return wanted or named or self.archs[0]
        raise CheckpointError(
            f'{self.path}: the weights fit {", ".join(self.archs)} alike, which differ only in '
            'centers and regions, and the file does not name its model; say which with --arch, or '
            'call the file coc_ARCH.pth.'
        )

    def proposals(self, wanted: int | None = None) -> int | None:
        """Resolve the side of the grid of centers, which no weight shows; None of a classifier."""
        if self.task == 'classification':
            if wanted is not None:
                raise CheckpointError(
                    f'{self.path}: --proposals is for detectors and segmentors; a classifier has '
                    'the centers of its --arch.'
                )
            return None
        if wanted is None and self.centers is None:
            raise CheckpointError(
                f'{self.path}: the weights do not show how many centers a region has, and the '
                'file holds no config that does.\nSay --proposals 2, 5 or 7 for 4, 25 or 49.'
            )
        return wanted or self.centers


def recognise(checkpoint: Mapping, path: str, ema: bool = False) -> Official | None:
    """See whether a checkpoint is an official one, and learn what it tells of itself.

    Understood are archives of timm's training script, checkpoints of mmdet 2.x and mmseg 0.x, of
    openmixup, those of projects' layouts, and bare state dicts; None for all else. ``ema`` takes
    the averaged weights.
    """
    weights, remarks = _pick_weights(checkpoint, path, ema)
    layout = layout_of(weights)
    if layout is None:
        return None
    check_tensors(weights, path)
    options, meta = checkpoint.get('args'), checkpoint.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    git_id = getattr(options, 'git_id', None)
    denominator, why = _denominator(layout, str(git_id or ''), str(meta.get('time')))
    task = layout.task or _task_of(weights)
    archs = [] if layout.task else _archs_of(rename_backbone(weights, layout)[0])
    name = getattr(options, 'model', None) or checkpoint.get('arch')
    if not isinstance(name, str):
        stem = os.path.basename(path).replace('-', '_')
        name = max((x for x in archs if f'coc_{x}' in stem), key=len, default='')
    name = name.removeprefix('coc_') or None
    found = set(re.findall(r'cluster_(?:small|medium)_feat_?(\d+)', str(meta.get('config')), re.I))
    centers = int(found.pop()) if len(found) == 1 else None
    return Official(path, weights, layout, task, denominator, why, archs, name, centers, remarks)


def _pick_weights(checkpoint: Mapping, path: str, ema: bool) -> tuple[dict[str, Tensor], list[str]]:
    averaged = [key for key in _EMA_KEYS if isinstance(checkpoint.get(key), Mapping)]
    plain = [k for k in ('state_dict', 'model', 'net') if isinstance(checkpoint.get(k), Mapping)]
    if ema and not averaged:
        raise CheckpointError(f'{path} holds no averaged weights (EMA); leave out --ema.')
    key = averaged[0] if ema or (averaged and not plain) else (plain[0] if plain else None)
    remarks = []
    if key in averaged:
        remarks.append(f'weights: {key} (the moving average)')
    elif averaged:
        remarks.append(f'weights: {key}; --ema takes {averaged[0]}, the moving average')
    weights = {}
    for name, value in (checkpoint if key is None else checkpoint[key]).items():
        if isinstance(value, Tensor):
            weights[re.sub(r'^(module\.)+', '', str(name))] = value
    # mmcv's EMA hook keeps the other set of weights in buffers of flattened names.
    buffers = [name for name in weights if re.match(r'ema_(backbone|neck|head|\w+_head)_', name)]
    if buffers:
        remarks.append(f'left out {len(buffers)} buffers ema_* of mmcv: the weights of training')
    return {name: v for name, v in weights.items() if name not in buffers}, remarks


def _task_of(weights: Iterable[str]) -> str:
    names = [name.removeprefix('backbone.') for name in weights]
    if any(name.startswith(('rpn_head.', 'roi_head.', 'bbox_head.')) for name in names):
        return 'detection'
    if any(name.startswith('decode_head.') for name in names):
        return 'segmentation'
    is_whole = any(re.fullmatch(r'norm\.weight|head\.(fc\.)?weight', name) for name in names)
    return 'classification' if is_whole else 'detection'


def _archs_of(weights: Mapping[str, Tensor]) -> list[str]:
    """Names of the architectures with these depths, widths, MLPs and heads."""
    fits = []
    for arch, setting in ContextCluster.arch_zoo.items():
        stages = zip(
            *(setting[key] for key in ('depths', 'dims', 'mlp_ratios', 'heads')), strict=True
        )
        for i, (depth, dim, ratio, heads) in enumerate(stages):
            start = f'stages.{i}.blocks.'
            shapes = [
                getattr(weights.get(f'{start}0.{name}.weight'), 'shape', None)
                for name in ('mixer.in_proj', 'mlp.fc1')
            ]
            blocks = {name.split('.')[3] for name in weights if name.startswith(start)}
            wanted = [(2 * heads * setting['head_dim'], dim), (ratio * dim, dim)]
            if len(blocks) != depth or shapes != wanted:
                break
        else:
            fits.append(arch)
    return fits


def _denominator(layout: Layout, git_id: str, time: str) -> tuple[str, str]:
    """Find what clusters are divided by, which no weight shows, and say how that is known."""
    if layout.denominator is not None:
        return layout.denominator, f'as all files of the {layout.name} layout'
    for denominator, commits in (('count', _COUNT_COMMITS), ('similarity', _SIMILARITY_COMMITS)):
        if git_id[:7] in commits.split():
            return denominator, f'inferred: trained with commit {git_id[:7]} of the official code'
    if git_id[:7] in _UNSURE_COMMITS.split():
        return 'similarity', (
            f'assumed: with code about commit {git_id[:7]} the weights of May 2023 were trained; '
            'else --denominator count'
        )
    try:
        trained = datetime.strptime(time, '%a %b %d %H:%M:%S %Y')
    except ValueError:
        return 'similarity', (
            'assumed, as of the release of June 2023; weights from before 2023-05-31 need '
            '--denominator count, in a config model.backbone.denominator=count'
        )
    if trained < _MENDED:
        return 'count', f'inferred: trained on {trained:%Y-%m-%d}, before 2023-05-31'
    return 'similarity', f'inferred: trained on {trained:%Y-%m-%d}, not before 2023-05-31'


def convert_in_memory(checkpoint: dict[str, Any], path: str) -> dict[str, Any]:
    """Give a checkpoint our names if it is an official one, and say so; else return it as it is.

    The record of the conversion is added as ``meta['coc_mm']``.
    """
    official = recognise(checkpoint, path)
    if official is None or (official.layout.task is not None and 'state_dict' in checkpoint):
        return checkpoint  # the latter are of a training here
    weights: Any = OrderedDict(official.converted())
    said = ''
    if official.layout.task is None:
        weights._metadata = {'backbone': official.metadata()}
        said = f'; denominator: {official.denominator} ({official.denominator_is})'
    print_rank0(f'{path}: official weights, {official.layout.name} layout{said}')
    meta = checkpoint.get('meta')
    meta = {**(meta if isinstance(meta, Mapping) else {}), 'coc_mm': official.record()}
    return dict(state_dict=weights, meta=meta)


def rename_before_loading(state_dict: dict[str, Tensor], prefix: str, metadata: dict) -> None:
    """Rename official weights in place: one of ``ContextCluster.state_dict_converters``."""
    own = {key[len(prefix) :]: key for key in state_dict if key.startswith(prefix)}
    layout = layout_of(own)
    if layout is None or layout.task is not None:
        return
    given = {name: state_dict.pop(key) for name, key in own.items()}
    for renamed in rename_backbone(given, layout):
        state_dict.update({prefix + name: value for name, value in renamed.items()})
