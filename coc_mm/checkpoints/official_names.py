"""The names of the official Context-Cluster weights."""

import re
from collections.abc import Iterable, Mapping

import torch

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
_WRAPPERS = re.compile(r'^(module\.)?(backbone\.)?')


def is_official(names: Iterable[str]) -> bool:
    """Tell weights under official names.

    Args:
        names (Iterable[str]): Keys of a state dict, ``module.`` and ``backbone.``
            in front or not.

    Returns:
        bool: Whether any of them is of an official token mixer.
    """
    return any(re.search(r'^(module\.)?(backbone\.)?network\.\d\.\d+\.token_', n) for n in names)


def rename_official(
    state_dict: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Bring the weights of an official backbone under the names of ours.

    The two projections of a mixer, ``f`` and ``v``, become one, and 1x1
    convolutions become linear layers; nothing else is computed.

    Args:
        state_dict (Mapping[str, Tensor]): A ``module.`` or ``backbone.`` prefix
            is understood.

    Returns:
        tuple[dict, dict]: The renamed weights, and under their old names those
        that are not a Context Cluster's or lack their counterpart.
    """
    renamed: dict[str, torch.Tensor] = {}
    others: dict[str, torch.Tensor] = {}
    projections: dict[str, dict[str, tuple[str, torch.Tensor]]] = {}
    for full_name, value in state_dict.items():
        name = _WRAPPERS.sub('', full_name)
        if match := _PROJECTION.fullmatch(name):
            network, block, space, leaf = match.groups()
            key = f'stages.{int(network) // 2}.blocks.{block}.mixer.in_proj.{leaf}'
            projections.setdefault(key, {})[space] = (full_name, value)
        elif (ours := _rename(name)) is not None:
            # 1x1 convolutions are linear layers here.
            squeeze = ours.endswith('out_proj.weight')
            renamed[ours] = value.flatten(1) if squeeze else value
        else:
            others[full_name] = value
    for key, spaces in projections.items():
        if len(spaces) < 2:
            others.update(spaces.values())
            continue
        value = torch.cat([spaces['f'][1], spaces['v'][1]])
        renamed[key] = value.flatten(1) if key.endswith('weight') else value
    return renamed, others


def _rename(name: str) -> str | None:
    for pattern, ours in _RULES:
        match = re.fullmatch(pattern, name)
        if match:
            first = match.group(1)
            stage = int(first) if first.isdigit() else 0
            return match.expand(ours).format(even=stage // 2, odd=(stage + 1) // 2)
    return None


def rename_before_loading(state_dict: dict[str, torch.Tensor], prefix: str, metadata: dict) -> None:
    """Rename official weights on their way into a backbone.

    Args:
        state_dict (dict[str, Tensor]): What is loaded, changed in place.
        prefix (str): Of the backbone's names in it.
        metadata (dict): What the state dict records of the backbone.
    """
    own = {key[len(prefix) :]: key for key in state_dict if key.startswith(prefix)}
    if not is_official(own):
        return
    given = {name: state_dict.pop(key) for name, key in own.items()}
    for renamed in rename_official(given):
        state_dict.update({prefix + name: value for name, value in renamed.items()})


def read_pretrained_safely(init_cfg: dict | list[dict] | None) -> list[dict]:
    """Replace mmengine's loading of pretrained weights by that of this package.

    Args:
        init_cfg (dict | list[dict] | None): Of the backbone; left unchanged.

    Returns:
        list[dict]: The same with ``coc_mm.SafePretrained``, which refuses what is not
        weights and knows official files, in place of ``Pretrained``, and last.
    """
    entries = [init_cfg] if isinstance(init_cfg, dict) else list(init_cfg or [])
    ours, others = [], []
    for entry in entries:
        if getattr(entry['type'], '__name__', entry['type']) in ('Pretrained', 'PretrainedInit'):
            ours.append(dict(entry, type='coc_mm.SafePretrained'))
        else:
            others.append(entry)
    return others + ours
