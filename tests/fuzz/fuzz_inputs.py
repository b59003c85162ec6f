"""Inputs for fuzzing: sound files of every kind, with their bytes or parts changed."""

import argparse
import functools
import io
import json
import pickletools
import zipfile
from collections import OrderedDict

import numpy as np
import torch
from hypothesis import strategies as st
from mmengine.logging import MessageHub
from PIL import Image

SMALL = st.integers(0, 1 << 20)
_KINDS = st.sampled_from(('flip', 'set', 'cut', 'insert', 'delete'))
_BYTES = st.binary(min_size=1, max_size=8)
EDITS = st.lists(st.tuples(_KINDS, SMALL, SMALL, _BYTES), max_size=4)


def edited(content, edits):
    """Change bytes at places taken modulo the length."""
    content = bytearray(content)
    for kind, at, size, data in edits:
        at = at % (len(content) + 1)
        if kind == 'flip' and at < len(content):
            content[at] ^= 1 << size % 8
        elif kind == 'set':
            content[at : at + len(data)] = data
        elif kind == 'cut':
            del content[at:]
        elif kind == 'insert':
            content[at:at] = data
        elif kind == 'delete':
            del content[at : at + size % 64]
    return bytes(content)


def files(sound, edits=EDITS):
    """Give a strategy of sound files, by name, that are edited; ``sound`` is a cached function."""
    return st.builds(
        lambda i, x: (sound()[i % len(sound())][0], edited(sound()[i % len(sound())][1], x)),
        st.integers(0, 99),
        edits,
    )


# Checkpoints

# What a pickle is spiced with: names that must not be had, and the operations that use them.
SPICES = (
    *(b'cposix\nsystem\n', b'cos\nmkdir\n', b'cbuiltins\neval\n', b'cbuiltins\ngetattr\n'),
    *(b'cnumpy\ndtype\n', b'cnumpy\nndarray\n', b'cnumpy._core.multiarray\nscalar\n'),
    *(b'cnumpy.core.multiarray\n_reconstruct\n', b'cargparse\nNamespace\n', b'ctorch\nTensor\n'),
    *(b'cmmengine.logging.history_buffer\nHistoryBuffer\n', b'ctorch._utils\n_rebuild_tensor_v2\n'),
    *(b'X\x09\x00\x00\x00mkdir RUN', b'X\x02\x00\x00\x00O8', b'J\xff\xff\xff\xff'),
    *(b'R', b'b', b'\x81', b'Q', b'(', b't', b'\x85', b'\x86', b'}', b']', b's', b'u', b'e'),
    *(b'a', b')', b'N', b'\x93', b'\x94', b'i', b'0', b'2'),
)
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(('drop', 'double', 'swap', 'spice', 'move')),
        *(SMALL, SMALL, st.sampled_from(SPICES)),
    ),
    min_size=1,
    max_size=6,
)


def repickled(content, changes):
    """Change a pickle by its operations, so that much of it still makes sense."""
    starts = [place for _, _, place in pickletools.genops(content)]
    parts = [content[a:b] for a, b in zip(starts, [*starts[1:], len(content)], strict=True)]
    for kind, at, other, spice in changes:
        at, other = at % len(parts), other % len(parts)
        if kind == 'drop' and len(parts) > 1:
            del parts[at]
        elif kind == 'double':
            parts.insert(at, parts[at])
        elif kind == 'swap':
            parts[at], parts[other] = parts[other], parts[at]
        elif kind == 'spice':
            parts.insert(at, spice)
        elif kind == 'move':
            parts.insert(other, parts.pop(at))
    return b''.join(parts)


@functools.cache
def checkpoints():
    """Files of a Runner and of timm, in both formats."""
    hub = MessageHub('fuzz')
    hub.update_scalar('train/loss', 3.0)
    weights = OrderedDict({'conv.weight': torch.ones(2, 3), 'conv.bias': torch.zeros(2)})
    contents = [
        dict(
            meta=dict(epoch=1, seed=np.int64(4), dataset_meta=dict(classes=('a', 'b'))),
            state_dict=weights,
            message_hub=hub.state_dict(),
            palette=np.eye(2, dtype=np.uint8),
        ),
        dict(arch='coc', args=argparse.Namespace(model='coc_tiny', lr=1e-3), state_dict=weights),
    ]
    found = []
    for content in contents:
        for zipped in (True, False):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=zipped)
            found.append(('x.pth', file.getvalue()))
    return found


def rezipped(which, changes, edits):
    """Change the pickle and the first storage of a checkpoint, leaving it a valid zip."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(checkpoints()[which][1])) as old,
        zipfile.ZipFile(file, 'w') as new,
    ):
        for name in old.namelist():
            content = old.read(name)
            if name.endswith('data.pkl'):
                content = repickled(content, changes)
            elif name.endswith('data/0'):
                content = edited(content, edits)
            new.writestr(name, content)
    return 'x.pth', file.getvalue()


CHECKPOINTS = files(checkpoints)
PICKLES = st.builds(rezipped, st.sampled_from((0, 2)), OPERATIONS, st.just([]) | EDITS)


@functools.cache
def safetensors():
    from safetensors.torch import save

    header = json.dumps(dict(dataset_meta=dict(classes=['a'], palette=[[1, 2, 3]])))
    content = save({'conv.weight': torch.ones(2, 3)}, dict(format='pt', meta=header))
    return [('x.safetensors', content)]


WEIGHTS_CHANGES = st.lists(
    st.tuples(
        st.sampled_from(('drop', 'rename', 'shape', 'dtype', 'value', 'prefix')),
        SMALL,
        st.text(max_size=20),
        st.lists(st.integers(0, 5), max_size=5).map(tuple),
        st.sampled_from((torch.float16, torch.int8, torch.bool, torch.complex64, torch.uint16)),
    ),
    max_size=4,
)


def changed_weights(shapes, changes):
    """Weights of these shapes, of a few bytes in the file, with changes."""
    weights = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    for kind, at, text, shape, dtype in changes:
        name = list(weights)[at % len(weights)]
        if kind == 'drop' and len(weights) > 1:
            del weights[name]
        elif kind == 'rename':
            weights[text] = weights.pop(name)
        elif kind == 'shape':
            weights[name] = torch.zeros(shape)
        elif kind == 'dtype':
            weights[name] = torch.zeros(()).to(dtype).expand(weights[name].shape)
        elif kind == 'value':
            value = torch.full((), (torch.nan, torch.inf, 1e30)[at % 3])
            weights[name] = value.expand(weights[name].shape)
        elif kind == 'prefix':
            prefix = ('module.', 'backbone.', 'module.module.', text)[at % 4]
            weights = {prefix + key: value for key, value in weights.items()}
    return weights


# Annotations, images and clouds

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
COCO_KEYS = {
    'images': ('id', 'file_name', 'height', 'width'),
    'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area', 'iscrowd', 'segmentation'),
    'categories': ('id', 'name', 'supercategory'),
}
COCO_CHANGES = st.lists(
    st.tuples(
        st.sampled_from([(n, k) for n, keys in COCO_KEYS.items() for k in keys]),
        st.sampled_from(('set', 'set', 'drop', 'entry', 'list')),
        SMALL,
        JSON
        | st.lists(st.floats(-100, 100) | st.integers(-100, 100), min_size=4, max_size=4)
        | st.sampled_from(([[1, 2, 3]], [[]], dict(size=[9, 9], counts='PPYo0'), dict(counts=[3]))),
    ),
    max_size=3,
)


def coco():
    """A sound annotation file of two images of 64 x 48 pixels."""
    box = dict(bbox=[4, 4, 36, 36], area=1296, segmentation=[[4, 4, 40, 4, 40, 40, 4, 40]])
    return dict(
        images=[dict(id=k, file_name=f'{k}.jpg', height=48, width=64) for k in (1, 2)],
        annotations=[dict(id=k, image_id=k, category_id=1, iscrowd=0, **box) for k in (1, 2)],
        categories=[dict(id=1, name='x')],
    )


def changed_coco(changes):
    """The file as text, with values, keys and entries changed."""
    content = coco()
    for (name, key), kind, at, value in changes:
        entries = content.get(name)
        if not isinstance(entries, list) or not entries:
            continue
        entry = entries[at % len(entries)]
        if kind == 'list':
            content[name] = value
        elif kind == 'entry':
            entries[at % len(entries)] = value
        elif isinstance(entry, dict):
            if kind == 'drop':
                entry.pop(key, None)
            else:
                entry[key] = value
    return json.dumps(content)


COCO = st.one_of(
    st.builds(changed_coco, COCO_CHANGES),
    st.builds(json.dumps, JSON),
    st.builds(lambda edits: edited(json.dumps(coco()).encode(), edits), EDITS),
)


@functools.cache
def images():
    """Small images of every format that uploads may have, and of masks."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 255, (24, 40, 3), dtype=np.uint8))
    forms = [('RGB', x) for x in ('PNG', 'JPEG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM')]
    forms += [('L', 'PNG'), ('P', 'PNG'), ('RGBA', 'PNG'), ('CMYK', 'JPEG'), ('F', 'TIFF')]
    found = []
    for mode, form in forms:
        file = io.BytesIO()
        (rgb.convert('L') if mode == 'F' else rgb).convert(mode).save(file, form)
        found.append(('x.png', file.getvalue()))
    return found


@functools.cache
def clouds():
    """Clouds of every format."""
    header = 'ply\nformat {} 1.0\nelement vertex 2\nproperty float x\nproperty float y\n'
    header += 'property float z\nend_header\n'
    npy, points = io.BytesIO(), np.eye(3, dtype=np.float32)
    np.save(npy, points)
    return [
        ('x.ply', (header.format('ascii') + '0 0 0\n1 1 1\n').encode()),
        ('x.ply', header.format('binary_little_endian').encode() + points[:2].tobytes()),
        ('x.xyz', b'0 0 0\n1.5,0,-2\n'),
        ('x.off', b'OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n'),
        ('x.npy', npy.getvalue()),
    ]
