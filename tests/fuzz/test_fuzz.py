"""Sound files with their bytes or parts changed are read, or refused in one clear message.

``FUZZ_EXAMPLES=10000 pytest tests/fuzz`` draws for long. Nothing is run, or written elsewhere.
"""

import argparse
import functools
import io
import json
import os
import pickletools
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.logging import MessageHub
from PIL import Image

from coc_mm.checkpoints.load import load_checkpoint_safely, state_dict_of
from coc_mm.datasets.coco import read_coco
from coc_mm.errors import UserError
from coc_mm.utils.image_checks import validate_image

draws = settings(
    max_examples=int(os.environ.get('FUZZ_EXAMPLES', 40)),
    database=None,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
SMALL = st.integers(0, 1 << 20)
_KINDS = st.sampled_from(('flip', 'set', 'cut', 'insert', 'delete'))
EDITS = st.lists(
    st.tuples(_KINDS, SMALL, SMALL, st.binary(min_size=1, max_size=8)), min_size=1, max_size=4
)
# Of Python's audit events: what a reader of files has no business with.
_FORBIDDEN = ('os.system', 'os.exec', 'os.fork', 'os.posix_spawn', 'subprocess.', 'socket.')
_SEEN: list[str] = []


@functools.cache
def _watch():
    """Note forbidden events from now on; hooks cannot be taken back, so once."""
    sys.addaudithook(lambda event, _: event.startswith(_FORBIDDEN) and _SEEN.append(event))


def judge(use, name, content, errors=UserError):
    """Use a file in a folder of its own, and see how that ends."""
    _watch()
    _SEEN.clear()
    with tempfile.TemporaryDirectory(prefix='fuzz_') as parent, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        path = Path(parent) / 'own' / name
        path.parent.mkdir()
        path.write_bytes(content)
        message = 'it works'
        try:
            use(path)
        except errors as error:
            message = str(error)
        assert message.strip()
        assert len(message) <= 3000
        assert not _SEEN
        assert not any(path.parent.rglob('RUN*')), 'code was run'
        assert os.listdir(parent) == ['own'], 'something was written elsewhere'


def _raises(error):
    def use(path):
        raise error

    return use


@pytest.mark.parametrize(
    ('use', 'says'),
    [
        (_raises(UserError('')), None),
        (lambda path: os.system('true'), 'os.system'),
        (lambda path: (path.parent / 'RUN').write_text('x'), 'code was run'),
        (lambda path: (path.parents[1] / 'x').write_text('x'), 'elsewhere'),
    ],
)
def test_what_is_not_allowed_is_seen(use, says):
    with pytest.raises(AssertionError, match=says):
        judge(use, 'x', b'')


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


# What a pickle is spiced with: names that must not be had, and the operations that use them.
SPICES = (
    *(b'cposix\nsystem\n', b'cos\nmkdir\n', b'cbuiltins\neval\n', b'cbuiltins\ngetattr\n'),
    *(b'cnumpy\ndtype\n', b'cnumpy\nndarray\n', b'cnumpy._core.multiarray\nscalar\n'),
    *(b'cmmengine.logging.history_buffer\nHistoryBuffer\n', b'ctorch._utils\n_rebuild_tensor_v2\n'),
    *(b'X\x09\x00\x00\x00mkdir RUN', b'J\xff\xff\xff\xff', b'R', b'b', b'\x81', b'Q', b'(', b't'),
    *(b'\x85', b'\x86', b'}', b']', b's', b'u', b'e', b'a', b')', b'N', b'\x93', b'0', b'2'),
)
_CHANGES = st.sampled_from(('drop', 'double', 'swap', 'spice', 'move'))
OPERATIONS = st.lists(
    st.tuples(_CHANGES, SMALL, SMALL, st.sampled_from(SPICES)), min_size=1, max_size=6
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
    """Give files of a Runner and of timm in either format, and of safetensors where installed."""
    hub = MessageHub('fuzz')
    hub.update_scalar('train/loss', 3.0)
    weights = {'conv.weight': torch.ones(2, 3), 'conv.bias': torch.zeros(2)}
    meta = dict(epoch=1, seed=np.int64(4), dataset_meta=dict(classes=('a', 'b')))
    args = argparse.Namespace(model='coc_tiny', lr=1e-3)
    found = []
    for zipped in (True, False):
        for content in (dict(meta=meta, message_hub=hub.state_dict()), dict(args=args)):
            file = io.BytesIO()
            content['state_dict'] = weights
            torch.save(content, file, _use_new_zipfile_serialization=zipped)
            found.append(('x.pth', file.getvalue()))
    try:
        from safetensors.torch import save
    except ModuleNotFoundError:
        return found
    return [*found, ('x.safetensors', save(weights, dict(meta=json.dumps(dict(epoch=1)))))]


def _load(path):
    for value in state_dict_of(load_checkpoint_safely(path), str(path)).values():
        value.clone()


@draws
@given(SMALL, EDITS)
def test_bytes_of_checkpoints(which, edits):
    name, content = checkpoints()[which % len(checkpoints())]
    judge(_load, name, edited(content, edits))


@draws
@given(st.sampled_from((0, 1)), OPERATIONS)
def test_pickles_in_checkpoints(which, changes):
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(checkpoints()[which][1])) as old,
        zipfile.ZipFile(file, 'w') as new,
    ):
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, repickled(content, changes) if name.endswith('.pkl') else content)
    judge(_load, 'x.pth', file.getvalue())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=8), x, max_size=4),
    max_leaves=12,
)
MASKS = ([[1e9, 0, 0, 1e9, 1, 1]], dict(size=[48, 64], counts=[-5, 3077]), dict(counts=[3]))


def coco():
    """Give a sound annotation file of two images of 64 x 48 pixels."""
    box = dict(bbox=[4, 4, 36, 36], area=1296, segmentation=[[4, 4, 40, 4, 40, 40, 4, 40]])
    return dict(
        images=[dict(id=k, file_name=f'{k}.jpg', height=48, width=64) for k in (1, 2)],
        annotations=[dict(id=k, image_id=k, category_id=1, iscrowd=0, **box) for k in (1, 2)],
        categories=[dict(id=1, name='x')],
    )


PLACES = [(name, key) for name, entries in coco().items() for key in entries[0]]


def _annotations(path):
    read_coco(path, True)


@draws
@given(
    st.lists(st.tuples(st.sampled_from(PLACES), JSON | st.sampled_from(MASKS))), EDITS | st.just([])
)
def test_annotations(changes, edits):
    content = coco()
    for (name, key), value in changes:
        content[name][0][key] = value
    judge(_annotations, 'train.json', edited(json.dumps(content).encode(), edits), ValueError)


@pytest.mark.parametrize('mask', MASKS)
def test_masks_that_broke_it_once(mask):
    content = coco()
    content['annotations'][0]['segmentation'] = mask
    with pytest.raises(ValueError, match='annotation 1 has a mask that'):
        judge(_annotations, 'train.json', json.dumps(content).encode(), ())


def _image(path):
    if (reason := validate_image(path)) is not None:
        assert 0 < len(reason) <= 400
        assert '\n' not in reason


@draws
@given(st.sampled_from(('PNG', 'JPEG', 'WEBP', 'BMP', 'GIF', 'TIFF')), EDITS)
def test_images(form, edits):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, form)
    judge(_image, 'x.png', edited(file.getvalue(), edits))
