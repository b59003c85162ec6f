"""The fuzzing in short, and what it found; ``tests/fuzz/fuzz.py`` runs it for long."""

import json
import os
import subprocess

import fuzz
import fuzz_inputs as inputs
import pytest
from fuzz import TARGETS, BrokenError, Target, judge
from hypothesis import strategies as st

from coc_mm.errors import UserError


@pytest.mark.parametrize('name', TARGETS)
def test_it_works_or_says_why(name):
    target = TARGETS[name]
    pytest.importorskip(target.needs)
    outcomes, broken = fuzz.fuzz(target, max(10, round(40 * target.share)))
    assert not broken
    assert outcomes.total() >= 10
    assert len(outcomes) > 1, 'all inputs end alike'


def _raises(error):
    def use(case, folder):
        raise error

    return use


@pytest.mark.parametrize(
    ('use', 'says'),
    [
        (_raises(KeyError('x')), 'KeyError'),
        (_raises(UserError('')), 'a message of no use'),
        (lambda case, folder: os.system('true') and None, 'os.system'),
        (lambda case, folder: subprocess.run(['true']) and None, 'subprocess'),
        (lambda case, folder: (folder / 'RUN').write_text('x') and None, 'code was run'),
        (lambda case, folder: (folder.parent / 'x').write_text('x') and None, 'elsewhere'),
    ],
)
def test_what_is_not_allowed_is_seen(use, says):
    with pytest.raises(BrokenError, match=says):
        judge(Target('x', st.none(), use), None)


# Found by the fuzzing: each ended in another exception before.


@pytest.mark.parametrize(
    ('which', 'key', 'value'),
    [
        ('images', 'id', {}),
        ('images', 'file_name', 3),
        ('images', 'file_name', 'x' * 5000),
        ('images', 'height', 'tall'),
        ('images', 'width', 0),
        ('annotations', 'image_id', [1]),
        ('annotations', 'category_id', {}),
        ('categories', 'name', None),
        ('annotations', 'segmentation', [[1, 2, None, 4]]),
        ('annotations', 'segmentation', [[1e9, 0, 0, 1e9, 1, 1]]),
        ('annotations', 'segmentation', dict(size=[48, 64], counts=[-5, 3077])),
        ('annotations', 'segmentation', 'x'),
    ],
)
def test_values_in_coco_files(which, key, value):
    pytest.importorskip('mmdet')
    content = inputs.coco()
    content[which][0][key] = value
    assert judge(TARGETS['annotations: COCO'], json.dumps(content)) == 'ValueError'


def test_annotations_nested_too_deep():
    pytest.importorskip('mmdet')
    assert judge(TARGETS['annotations: COCO'], '[' * 200_000) == 'ValueError'


def test_a_png_whose_header_grew():
    name, content = inputs.images()[0]
    grown = content[:16] + 2 * (30_000).to_bytes(4, 'big') + content[24:]
    assert judge(TARGETS['image: tools'], (name, grown)) == 'named'
    assert judge(TARGETS['image: demo'], (name, grown)) == 'UserError'
