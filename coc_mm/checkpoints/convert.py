"""Official weights under the names of the models of this package."""

import re
from collections.abc import Mapping

import torch

from coc_mm.checkpoints.official_names import is_official, rename_official

__all__ = ['TASKS', 'convert_official']

TASKS = ('classification', 'detection', 'segmentation', 'point_cloud')

# Only a whole detector or segmentor has these; mmdet 2.x and mmseg 0.x name them as
# their successors do.
_HOST_PARTS = re.compile(r'(neck|rpn_head|roi_head|bbox_head|decode_head|auxiliary_head)\.')
# PointMLP with a one-center cluster in front of each residual block.
_CLUSTER = r'(?:pre|pos)_blocks_list\.\d+\.operation\.\d+\.'
_NORM = r'(?:weight|bias|running_mean|running_var|num_batches_tracked)'
_POINT_CLOUD = re.compile(
    rf'embedding\.net\.(?:0\.(?:weight|bias)|1\.{_NORM})'
    r'|local_grouper_list\.\d+\.affine_(?:alpha|beta)'
    rf'|pre_blocks_list\.\d+\.transfer\.net\.(?:0\.(?:weight|bias)|1\.{_NORM})'
    rf'|{_CLUSTER}(?:sim_alpha|sim_beta|(?:fc1|fc2|fc_v)\.(?:weight|bias))'
    rf'|{_CLUSTER}net\d\.(?:0\.(?:weight|bias)|\d\.{_NORM})'
    rf'|classifier\.\d+\.{_NORM}'
)


def convert_official(
    state_dict: Mapping[str, torch.Tensor], task: str = 'classification'
) -> dict[str, torch.Tensor]:
    """Rename official Context-Cluster weights to the keys of the host model.

    The two projections of a mixer, ``f`` and ``v``, become one, and 1x1
    convolutions become linear layers; nothing else is computed. A ``module.``
    or ``backbone.`` prefix is understood, and what belongs to the neck and the
    heads of a detector or segmentor is handed through unchanged.

    Args:
        state_dict (Mapping[str, Tensor]): Weights under official names.
        task (str): 'classification' returns ``backbone.*`` and ``head.fc.*``
            for mmpretrain's ImageClassifier with GlobalAveragePooling and
            LinearClsHead; 'detection' and 'segmentation' return ``backbone.*``
            and the given neck and heads; 'point_cloud' takes the weights of
            PointMLP with context clusters, which keep their official names.
            Defaults to 'classification'.

    Returns:
        dict[str, Tensor]: The weights under the host model's keys.

    Raises:
        ValueError: For an unknown task, or keys that are not Context Cluster's
            or that lack their counterpart, all of them listed.
    """
    if task not in TASKS:
        raise ValueError(f'unknown task {task!r}: choose one of {TASKS}')
    weights = {name.removeprefix('module.'): value for name, value in state_dict.items()}
    if task == 'point_cloud':
        return _convert_point_cloud(weights)
    converted = {}
    if task == 'classification':
        for name in ('head.weight', 'head.bias'):
            if name in weights:
                converted[name.replace('head.', 'head.fc.')] = weights.pop(name)
    else:
        converted = {name: value for name, value in weights.items() if _HOST_PARTS.match(name)}
        weights = {name: value for name, value in weights.items() if name not in converted}
    backbone, others = rename_official(weights)
    if others or not is_official(weights):
        raise ValueError(_complaint(task, others, is_official(weights)))
    return {**converted, **{f'backbone.{name}': value for name, value in backbone.items()}}


def _convert_point_cloud(weights):
    unknown = [name for name in weights if not _POINT_CLOUD.fullmatch(name)]
    is_cluster = any(name.endswith('.fc_v.weight') for name in weights)
    if unknown or not is_cluster:
        raise ValueError(_complaint('point_cloud', unknown, is_cluster))
    return weights


def _complaint(task, others, has_mixer):
    lines = [f'not the official weights of a Context Cluster for {task}:']
    if not has_mixer:
        lines.append('no token mixer among the keys')
    lonely = [n for n in others if re.search(r'token_mixer\.[fv]\.(weight|bias)$', n)]
    unknown = [n for n in others if n not in lonely]
    if unknown:
        lines.append(f'{len(unknown)} unknown keys: {", ".join(unknown)}')
    if lonely:
        lines.append(f'only one of the two projections for: {", ".join(lonely)}')
    return '\n'.join(lines)
