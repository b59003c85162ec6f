"""Inputs for the fuzzing of data sets: archives, annotations, folders, images and clouds."""

import functools
import io
import json
import tarfile
import warnings
import zipfile

import numpy as np
from fuzz_inputs import EDITS, SMALL, edited
from hypothesis import strategies as st
from PIL import Image

# Archives of data sets

NAME = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        (
            *(
                'a',
                'a/b.jpg',
                'a/b.jpg/c',
                'images/1.jpg',
                '.',
                './',
                '..',
                'a/../b',
                '/abs',
                'C:x',
            ),
            *('.unpacking/x', '.prepared/train.txt.gz', 'a//b', 'a/./b', 'con', 'x' * 300, 'é'),
            *('train2017/1.jpg', '__MACOSX/a', 'a/' * 600 + 'b', 'a\\b', 'n01440764.tar', 'A'),
        )
    ),
)
MEMBER = st.tuples(
    NAME,
    st.binary(max_size=64) | st.integers(0, 300_000).map(bytes),
    st.sampled_from((0, 8, 12, 14, 0, 8)),  # of compression
    st.integers(0, 0xFFFF),
)
TAR_TYPES = (tarfile.REGTYPE,) * 6 + (
    *(tarfile.AREGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE),
    *(tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE),
)


def zip_of(members, edits):
    """A zip with any names, modes and compressions, then damaged."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, 'w') as archive:
        warnings.simplefilter('ignore')
        for name, content, compression, mode in members:
            info = zipfile.ZipInfo(name.encode('utf-8', 'replace').decode() or 'x')
            info.compress_type = compression
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return edited(file.getvalue(), edits)


def tar_of(members, edits, compression):
    """A tar with any names and types, then damaged."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w' + compression) as archive:
        for name, content, _, mode in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.type = TAR_TYPES[mode % len(TAR_TYPES)]
            info.linkname = ('../../RUN', '/etc/passwd', 'a')[mode % 3]
            info.mode = mode
            archive.addfile(info, io.BytesIO(content))
    return edited(file.getvalue(), edits)


ZIPS = st.builds(zip_of, st.lists(MEMBER, max_size=5), st.just([]) | EDITS)
TARS = st.builds(
    tar_of, st.lists(MEMBER, max_size=5), st.just([]) | EDITS, st.sampled_from(('', ':gz'))
)
TARS_OF_TARS = st.builds(
    lambda inner, names, edits: tar_of(
        [(name, x, 0, 0) for name, x in zip(names, inner, strict=False)], edits, ''
    ),
    st.lists(TARS, max_size=3),
    st.lists(
        st.sampled_from(('n01440764.tar', 'n01443537.tar', 'n01484850.tar', 'x.tar')) | NAME,
        max_size=3,
    ),
    st.just([]) | EDITS,
)

# Annotations

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
        st.sampled_from(('set', 'set', 'drop', 'entry', 'list', 'double')),
        SMALL,
        JSON
        | st.lists(st.floats(-100, 100) | st.integers(-100, 100), min_size=4, max_size=4)
        | st.sampled_from(([[1, 2, 3]], [[]], dict(size=[9, 9], counts='PPYo0'), dict(counts=[3]))),
    ),
    max_size=3,
)


def coco():
    """A sound annotation file of two images of 64 x 48 pixels."""
    images = [dict(id=k, file_name=f'{k}.jpg', height=48, width=64) for k in (1, 2)]
    annotations = [
        dict(
            id=k,
            image_id=k,
            category_id=1,
            bbox=[4, 4, 36, 36],
            area=1296,
            iscrowd=0,
            segmentation=[[4, 4, 40, 4, 40, 40, 4, 40]],
        )
        for k in (1, 2)
    ]
    return dict(images=images, annotations=annotations, categories=[dict(id=1, name='x')])


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
        elif kind == 'double':
            entries.append(entry)
        elif isinstance(entry, dict):
            if kind == 'drop':
                entry.pop(key, None)
            else:
                entry[key] = value
    return json.dumps(content)


COCO = st.one_of(
    st.builds(changed_coco, COCO_CHANGES),
    st.builds(lambda x: json.dumps(x), JSON),
    st.builds(lambda edits: edited(json.dumps(coco()).encode(), edits), EDITS),
)

FILE_NAME = st.one_of(
    st.sampled_from(
        ('train', 'val', 'images', 'annotations', 'masks', '1.jpg', '1.png', '2.JPG', 'classes.txt')
    ),
    st.sampled_from(
        ('.', '..x', ' ', '.hidden', 'a b', "it's", 'ü', '-x', '[x]', '*', 'a\nb', 'x.')
    ),
    st.text(
        st.characters(blacklist_characters='/\0', blacklist_categories=('Cs',)),
        min_size=1,
        max_size=12,
    ),
)
TREE = st.lists(
    st.tuples(
        st.lists(FILE_NAME, min_size=1, max_size=4),
        st.sampled_from(('image', 'mask', 'deep mask', 'colors', 'empty', 'text', 'link')),
    ),
    max_size=8,
)

# Images and clouds


@functools.cache
def images():
    """Small images of every format that uploads may have, and of masks."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 255, (24, 40, 3), dtype=np.uint8))
    found = []
    for form in ('PNG', 'JPEG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM'):
        file = io.BytesIO()
        rgb.save(file, form)
        found.append(file.getvalue())
    for mode, form in (
        ('L', 'PNG'),
        ('P', 'PNG'),
        ('RGBA', 'PNG'),
        ('CMYK', 'JPEG'),
        ('F', 'TIFF'),
    ):
        file = io.BytesIO()
        rgb.convert('L').convert('RGB').convert('L' if mode == 'F' else mode).convert(mode).save(
            file, form
        )
        found.append(file.getvalue())
    return found


IMAGES = st.builds(lambda i, edits: edited(images()[i], edits), st.integers(0, 11), EDITS)


@functools.cache
def clouds():
    """Clouds of every format."""
    header = 'ply\nformat {} 1.0\nelement vertex 2\nproperty float x\nproperty float y\n'
    header += 'property float z\nend_header\n'
    npy, points = io.BytesIO(), np.eye(3, dtype=np.float32)
    np.save(npy, points)
    return [
        ('.ply', (header.format('ascii') + '0 0 0\n1 1 1\n').encode()),
        ('.ply', header.format('binary_little_endian').encode() + points[:2].tobytes()),
        ('.xyz', b'0 0 0\n1.5,0,-2\n'),
        ('.off', b'OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n'),
        ('.npy', npy.getvalue()),
    ]


CLOUDS = st.builds(
    lambda i, edits: (clouds()[i][0], edited(clouds()[i][1], edits)), st.integers(0, 4), EDITS
)


@functools.cache
def h5():
    """A small file of clouds, compressed."""
    import h5py

    file = io.BytesIO()
    with h5py.File(file, 'w') as content:
        content.create_dataset('data', data=np.ones((4, 8, 3), 'f4'), compression='gzip')
        content['label'] = np.arange(4)
    return file.getvalue()


H5 = st.builds(lambda edits: edited(h5(), edits), EDITS)
