"""Inputs for the fuzzing of checkpoints: real files with mutations, and random structures."""

import argparse
import functools
import io
import json
import pickle
import pickletools
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import torch
from hypothesis import strategies as st
from mmengine.logging import MessageHub

SMALL = st.integers(0, 1 << 20)
# What a pickle is spiced with: names that must not be had, and the operations that use them.
SPICES = (
    b'cposix\nsystem\n',
    b'cos\nmkdir\n',
    b'cbuiltins\neval\n',
    b'c__builtin__\ngetattr\n',
    b'cbuiltins\ngetattr\n',
    b'cmmengine.logging.history_buffer\nHistoryBuffer\n',
    b'cnumpy\ndtype\n',
    b'cnumpy\nndarray\n',
    b'cnumpy.core.multiarray\n_reconstruct\n',
    b'cnumpy._core.multiarray\nscalar\n',
    b'cargparse\nNamespace\n',
    b'ctorch._utils\n_rebuild_tensor_v2\n',
    b'ctorch._utils\n_rebuild_qtensor\n',
    b'ctorch._utils\n_rebuild_parameter_with_state\n',
    b'ctorch\nTensor\n',
    b'ctorch\nFloatStorage\n',
    b'ctorch\nSize\n',
    b'ccollections\nOrderedDict\n',
    b'ccoc_mm.checkpoints.safe_pickle\n_Array\n',
    b'X\x09\x00\x00\x00mkdir RUN',
    b'X\x02\x00\x00\x00O8',
    b'X\x03\x00\x00\x00RUN',
    b'\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f',
    b'J\xff\xff\xff\xff',
    b'R', b'b', b'\x81', b'Q', b'(', b't', b'\x85', b'\x86', b'\x87', b'}', b']', b's', b'u', b'e',
    b'a', b')', b'N', b'\x93', b'\x94', b'i', b'0', b'2',
)  # fmt: skip


# Bytes

EDIT = st.tuples(
    st.sampled_from(('flip', 'set', 'cut', 'insert', 'delete', 'copy')),
    SMALL,
    SMALL,
    st.binary(min_size=1, max_size=8),
)
EDITS = st.lists(EDIT, max_size=4)


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
        elif kind == 'copy':
            content[at:at] = content[at : at + size % 64]
    return bytes(content)


def operations(content):
    """Split a pickle at its operations."""
    starts = [place for _, _, place in pickletools.genops(content)]
    ends = [*starts[1:], len(content)]
    return [content[a:b] for a, b in zip(starts, ends, strict=True)]


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(('drop', 'double', 'swap', 'spice', 'move', 'bytes')),
        SMALL,
        SMALL,
        st.sampled_from(SPICES),
        EDIT,
    ),
    min_size=1,
    max_size=6,
)


def repickled(content, changes):
    """Change a pickle by its operations, so that much of it still makes sense."""
    parts = operations(content)
    for kind, at, other, spice, edit in changes:
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
        elif kind == 'bytes':
            parts[at] = edited(parts[at], [edit])
    return b''.join(parts)


# Checkpoints


def _saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


@functools.cache
def checkpoints():
    """Files of a Runner, of timm, and bare weights, in both formats."""
    hub = MessageHub('fuzz')
    for value in (3.0, 1.0):
        hub.update_scalar('train/loss', value)
    weights = OrderedDict({'conv.weight': torch.ones(2, 3), 'conv.bias': torch.zeros(2)})
    weights._metadata = OrderedDict({'': dict(version=1)})
    contents = dict(
        runner=dict(
            meta=dict(epoch=1, seed=np.int64(4), dataset_meta=dict(classes=('a', 'b'))),
            state_dict=weights,
            message_hub=hub.state_dict(),
            optimizer=dict(state={0: dict(step=torch.tensor(1.0))}, param_groups=[dict(lr=0.1)]),
            palette=np.eye(2, dtype=np.uint8),
        ),
        timm=dict(
            arch='coc_tiny', args=argparse.Namespace(model='coc_tiny', lr=1e-3), state_dict=weights
        ),
        bare=weights,
    )
    return {
        (name, zipped): _saved(content, _use_new_zipfile_serialization=zipped)
        for name, content in contents.items()
        for zipped in (True, False)
    }


MEMBERS = st.lists(
    st.tuples(
        st.sampled_from(('drop', 'swap', 'rename', 'double', 'bytes', 'deflate')),
        SMALL,
        SMALL,
        st.text(max_size=12),
        EDITS,
    ),
    max_size=3,
)


def rezipped(content, changes, pickle_changes=()):
    """Change an archive by its members, leaving it a valid zip."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [[name, archive.read(name), 0] for name in archive.namelist()]
    for member in members:
        if pickle_changes and member[0].endswith('/data.pkl'):
            member[1] = repickled(member[1], pickle_changes)
    for kind, at, other, text, edits in changes:
        if not members:
            break
        at, other = at % len(members), other % len(members)
        if kind == 'drop':
            del members[at]
        elif kind == 'swap':
            members[at][1], members[other][1] = members[other][1], members[at][1]
        elif kind == 'rename':
            members[at][0] = text.encode('utf-8', 'replace').decode() or 'x'
        elif kind == 'double':
            members.append(list(members[at]))
        elif kind == 'bytes':
            members[at][1] = edited(members[at][1], edits)
        elif kind == 'deflate':
            members[at][2] = zipfile.ZIP_DEFLATED
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, 'w') as archive:
        warnings.simplefilter('ignore')  # of names twice
        for name, data, compression in members:
            archive.writestr(name.replace('\0', '_'), data, compression)
    return file.getvalue()


ZIPPED = st.sampled_from([('runner', True), ('timm', True), ('bare', True)])
CHECKPOINT_BYTES = st.builds(
    lambda which, edits: edited(checkpoints()[which], edits),
    st.sampled_from([(name, z) for name in ('runner', 'timm', 'bare') for z in (True, False)]),
    EDITS,
)
CHECKPOINT_MEMBERS = st.builds(
    lambda which, changes: rezipped(checkpoints()[which], changes), ZIPPED, MEMBERS
)
CHECKPOINT_PICKLES = st.builds(
    lambda which, changes: rezipped(checkpoints()[which], (), changes), ZIPPED, OPERATIONS
)


@functools.cache
def _annotations():
    rows = [dict(img='a.jpg', boxes=np.eye(4, dtype='f4'), label=np.int64(1), t=torch.ones(2))]
    return [pickle.dumps(rows, protocol) for protocol in (2, 4)]


PICKLES = st.one_of(
    st.builds(lambda i, x: repickled(_annotations()[i], x), st.integers(0, 1), OPERATIONS),
    st.builds(lambda i, x: edited(_annotations()[i], x), st.integers(0, 1), EDITS),
)


@functools.cache
def safetensors():
    """A file as this package writes it."""
    from safetensors.torch import save

    header = json.dumps(dict(dataset_meta=dict(classes=['a'], palette=[[1, 2, 3]])))
    return save({'conv.weight': torch.ones(2, 3)}, dict(format='pt', meta=header))


SAFETENSORS = st.builds(lambda edits: edited(safetensors(), edits), EDITS)

DTYPES = (
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64),
    *(torch.bool, torch.complex64, torch.float8_e5m2, torch.uint16),
)
SHAPES = st.lists(st.integers(0, 5), max_size=5).map(tuple)
WEIGHTS_CHANGES = st.lists(
    st.tuples(
        st.sampled_from(('drop', 'rename', 'shape', 'dtype', 'add', 'value', 'prefix', 'number')),
        SMALL,
        st.text(max_size=20),
        SHAPES,
        st.sampled_from(DTYPES),
    ),
    max_size=4,
)
META = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ('time', 'config', 'dataset_meta', 'CLASSES', 'classes', 'coc_mm', 'backbone', 'x')
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


def changed_weights(shapes, changes):
    """Weights of these shapes, of a few bytes in the file, with changes."""
    weights = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    for kind, at, text, shape, dtype in changes:
        if not weights:
            break
        name = list(weights)[at % len(weights)]
        if not isinstance(weights[name], torch.Tensor) or kind == 'drop':
            del weights[name]
        elif kind == 'rename':
            weights[text] = weights.pop(name)
        elif kind == 'shape':
            weights[name] = torch.zeros(shape)
        elif kind == 'dtype':
            weights[name] = torch.zeros(()).to(dtype).expand(weights[name].shape)
        elif kind == 'add':
            weights[name.rsplit('.', 1)[0] + '.' + text] = torch.zeros(shape, dtype=dtype)
        elif kind == 'value':
            value = (torch.nan, torch.inf, 1e30)[at % 3]
            weights[name] = torch.full((), value).expand(weights[name].shape)
        elif kind == 'prefix':
            prefix = ('module.', 'backbone.', 'module.module.', text)[at % 4]
            weights = {prefix + key: value for key, value in weights.items()}
        elif kind == 'number':
            weights[name] = at
    return weights
