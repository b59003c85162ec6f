"""The figures of the official implementation, and its weights and inputs rebuilt."""

import importlib.util
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).resolve().parent / 'data' / 'golden'

_spec = importlib.util.spec_from_file_location('official_weights', FOLDER / 'official_weights.py')
_official = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_official)


def official_state_dict(keys, salt=0):
    """Return the float64 official weights for ``keys/<keys>.json``."""
    arrays = _official.state_dict(FOLDER / 'keys' / f'{keys}.json', salt)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def image(shape, seed):
    """Return the float64 input of ``shape``."""
    return torch.from_numpy(_official.image(tuple(int(n) for n in shape), int(seed)))


def load(name):
    """Return the arrays of one golden file."""
    with np.load(FOLDER / f'{name}.npz', allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


# What else is called otherwise, written down once more.
OTHER_NAMES = {
    'released': {},
    'submission': {'token_mixer.f': 'token_mixer.fc1', 'token_mixer.v': 'token_mixer.fc_v'}
    | {'token_mixer.proj': 'token_mixer.fc2'},
    'openmixup': {'norm1': 'gn1', 'norm2.b': 'gn2.b', 'norm2.w': 'gn2.w', 'head.': 'head.fc.'},
}


def in_layout(layout, weights):
    """Save released weights as the files of another layout have them."""
    found = {}
    for name, value in weights.items():
        for old, new in OTHER_NAMES[layout].items():
            if name.startswith(('network', 'head')):
                name = name.replace(old, new)
        if layout == 'submission' and '.mlp.' in name and name.endswith('weight'):
            value = value[..., None, None]
        if layout == 'openmixup' and not name.startswith('head'):
            name = f'backbone.{name}'
        found[name] = value
    if layout == 'submission':
        found['fea_pos'] = torch.zeros(8, 8, 2)
    return found
