"""The names of the official weights, mapped to those of this package."""

import re

import torch

TASKS = ('classification', 'detection', 'segmentation')

# Official name -> ours, the first that matches. The official modules alternate
# stages (even) and points reducers (odd) in one list, ``network``.
_BLOCK = r'network\.([0246])\.(\d+)\.'
_RULES = [
    (r'patch_embed\.proj\.(weight|bias)', r'patch_embed.proj.\1'),
    (r'network\.([135])\.proj\.(weight|bias)', r'stages.{odd}.reducer.proj.\2'),
    (_BLOCK + r'layer_scale_([12])', r'stages.{even}.blocks.\2.layer_scale\3'),
    (_BLOCK + r'(norm[12]\.(?:weight|bias))', r'stages.{even}.blocks.\2.\3'),
    (_BLOCK + r'token_mixer\.(sim_(?:alpha|beta))', r'stages.{even}.blocks.\2.mixer.\3'),
    (_BLOCK + r'token_mixer\.proj\.(weight|bias)', r'stages.{even}.blocks.\2.mixer.out_proj.\3'),
    (_BLOCK + r'(mlp\.fc[12]\.(?:weight|bias))', r'stages.{even}.blocks.\2.\3'),
    (r'norm([0246])\.(weight|bias)', r'norm{even}.\2'),
    (r'norm\.(weight|bias)', r'norm3.\1'),
]
_PROJECTION = re.compile(_BLOCK + r'token_mixer\.([fv])\.(weight|bias)')


def convert_official(state_dict, task='classification'):
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
            and the given neck and heads. Defaults to 'classification'.

    Returns:
        dict[str, Tensor]: The weights under the host model's keys.

    Raises:
        ValueError: For an unknown task, or keys that are not Context Cluster's
            or that lack their counterpart, all of them listed.
    """
    if task not in TASKS:
        raise ValueError(f'unknown task {task!r}: choose one of {TASKS}')
    converted, projections, unknown = {}, {}, []
    for name, value in state_dict.items():
        name = name.removeprefix('module.')
        # Only a whole detector or segmentor has anything but a backbone.
        if task != 'classification' and re.match(
            r'(neck|rpn_head|roi_head|bbox_head|decode_head|auxiliary_head)\.', name
        ):
            converted[name] = value
            continue
        name = name.removeprefix('backbone.')
        if task == 'classification' and name in ('head.weight', 'head.bias'):
            converted[name.replace('head.', 'head.fc.')] = value
        elif match := _PROJECTION.fullmatch(name):
            network, block, space, leaf = match.groups()
            key = f'stages.{int(network) // 2}.blocks.{block}.mixer.in_proj.{leaf}'
            projections.setdefault(key, {})[space] = value
        elif (key := _rename(name)) is not None:
            # 1x1 convolutions are linear layers here.
            squeeze = key.endswith('out_proj.weight')
            converted[f'backbone.{key}'] = value.flatten(1) if squeeze else value
        else:
            unknown.append(name)
    lonely = [key for key, spaces in projections.items() if len(spaces) < 2]
    if unknown or lonely or not projections:
        raise ValueError(_complaint(task, unknown, lonely, projections))
    for key, spaces in projections.items():
        value = torch.cat([spaces['f'], spaces['v']])
        converted[f'backbone.{key}'] = value.flatten(1) if key.endswith('weight') else value
    return converted


def _rename(name):
    for pattern, ours in _RULES:
        match = re.fullmatch(pattern, name)
        if match:
            stage = match.group(1)
            stage = int(stage) if stage.isdigit() else 0
            return match.expand(ours).format(even=stage // 2, odd=(stage + 1) // 2)
    return None


def _complaint(task, unknown, lonely, projections):
    lines = [f'not the official weights of a Context Cluster for {task}:']
    if not projections:
        lines.append('no token mixer among the keys')
    if unknown:
        lines.append(f'{len(unknown)} unknown keys: {", ".join(unknown)}')
    if lonely:
        lines.append(f'only one of the two projections for: {", ".join(lonely)}')
    return '\n'.join(lines)
