"""Masks of a COCO file: polygons and run lengths, as lists and as COCO's text."""

from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coc_mm.datasets.coco_checks import check_masks

mask_utils = pytest.importorskip('pycocotools.mask')

SIZE = [6, 5]  # height, width


def check(segmentation, size=SIZE):
    image = dict(id=1, file_name='a.png', height=size[0], width=size[1])
    entry = dict(id=7, image_id=1, category_id=1, bbox=[0, 0, 1, 1], segmentation=segmentation)
    check_masks(Path('train.json'), dict(images=[image], annotations=[entry]))


def text_of(mask):
    return mask_utils.encode(np.asfortranarray(mask))['counts'].decode()


def lengths_of(mask):
    """Runs of zeros and ones in turn, down the columns, zeros first."""
    flat = mask.ravel(order='F')
    runs = [len(list(run)) for _, run in groupby(flat)]
    return [0, *runs] if flat[0] else runs


@given(st.integers(0, 2**32), st.integers(1, 90), st.integers(1, 90), st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_run_lengths_that_fill_their_image_are_taken(seed, height, width, share):
    mask = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    mask[:, width // 2 :] = mask[:1, :1]  # long runs need several letters
    size = [height, width]
    for counts in (text_of(mask), lengths_of(mask)):
        check(dict(size=size, counts=counts), size)
        with pytest.raises(ValueError, match='annotation 7 has a mask that says its size is'):
            check(dict(size=[height + 1, width], counts=counts), size)
        other = dict(size=[height, width + 1], counts=counts)
        with pytest.raises(ValueError, match='run lengths that do not fill its'):
            check(other, other['size'])


SOME = np.eye(*SIZE, dtype=np.uint8)


@pytest.mark.parametrize(
    'counts',
    [
        '',
        text_of(SOME)[:-1],
        text_of(SOME) + '0',
        text_of(SOME) + ' ',  # a letter of none
        text_of(SOME) + 'ä',
        'o' * 40,  # a number that does not end
        [],
        [29],
        [31],
        [30.0],
        [True] * 30,
        [35, -5],
        ['30'],
        {'30': 30},
        30,
        None,
    ],
)
def test_run_lengths_that_are_none_are_refused(counts):
    with pytest.raises(ValueError, match='run lengths that do not fill its 6 x 5 pixels'):
        check(dict(size=SIZE, counts=counts))


@pytest.mark.parametrize(
    ('segmentation', 'says'),
    [
        ('text', 'neither polygons nor run lengths'),
        (dict(size=SIZE), 'neither polygons nor run lengths'),
        (dict(counts=[30]), 'neither polygons nor run lengths'),
        ([1, 2, 3, 4], 'no list of polygons'),
        ([[0, 0, 1, 'x']], 'no list of polygons'),
        ([[0, 0, 1, float('nan')]], 'no list of polygons'),
        ([[0, 0, 1, 61]], 'reaches 61 pixels far'),
        ([[0, 0, -1e30, 1]], 'reaches 1e.30 pixels far'),
    ],
)
def test_masks_that_are_none_are_refused(segmentation, says):
    with pytest.raises(ValueError, match=rf'train\.json: annotation 7 has a mask that .*{says}'):
        check(segmentation)


def test_annotations_without_masks_are_counted():
    with pytest.raises(ValueError, match='1 of 1 annotations have no segmentation'):
        check([])
    check([[0, 0, 4, 0, 4, 4]])
