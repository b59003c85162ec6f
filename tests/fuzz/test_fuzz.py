"""The fuzzing in short, and what it found; ``tests/fuzz/fuzz.py`` runs it for long."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fuzz
import fuzz_data_inputs as data_inputs
import numpy as np
import pytest
import torch
from fuzz_targets import TARGETS, BrokenError, Target, in_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coc_mm.checkpoints.load import load_checkpoint_safely
from coc_mm.errors import CheckpointError

EXAMPLES = 40  # per share of a target

# What a target needs besides the package.
NEEDS = {
    'annotations: COCO': 'mmdet',
    'folders': 'mmdet',
    'image: demo': 'mmpretrain',
    'point cloud: HDF5': 'h5py',
    'checkpoint: safetensors': 'safetensors',
    'publisher: weights': 'safetensors',
}


@pytest.mark.parametrize('name', TARGETS)
def test_it_works_or_says_why(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    target, outcomes = TARGETS[name], []

    @settings(
        max_examples=max(10, round(EXAMPLES * target.share)),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(target.inputs)
    def run(case):
        outcomes.append(in_folder(target, case)[0])

    run()
    assert len(outcomes) >= 10
    assert len(set(outcomes)) > 1, 'all inputs end alike'


def _raises(error):
    def use(given, folder):
        raise error

    return use


@pytest.mark.parametrize(
    ('use', 'says'),
    [
        (_raises(KeyError('x')), 'KeyError'),
        (_raises(CheckpointError('')), 'a message of no use'),
        (lambda given, folder: os.system('true') and None, 'os.system'),
        (lambda given, folder: subprocess.run(['true']) and None, 'subprocess'),
        (lambda given, folder: (folder / 'RUN').write_text('x') and None, 'code was run'),
        (lambda given, folder: Path(f'{folder}.x').write_text('x') and None, 'open'),
        (lambda given, folder: os.mkdir(f'{folder}.x'), 'os.mkdir'),
    ],
)
def test_what_is_not_allowed_is_seen(use, says):
    made = []

    def noted(given, folder):
        made.append(Path(f'{folder}.x'))
        use(given, folder)

    try:
        with pytest.raises(BrokenError, match=says):
            in_folder(Target('x', st.none(), noted), None)
    finally:
        for path in made:
            path.is_dir() and path.rmdir()
            path.unlink(missing_ok=True)
    assert made


def test_the_long_run_counts_and_keeps(tmp_path, monkeypatch, capsys):
    arguments = ['fuzz.py', '--examples', '30', '--target', 'point cloud']
    monkeypatch.setattr(sys, 'argv', [*arguments, '--out', str(tmp_path / 'fuzz.csv')])
    monkeypatch.setattr(torch, 'set_num_threads', lambda count: None)
    assert fuzz.main() == 0
    assert 'in all' in capsys.readouterr().out
    header, row = (tmp_path / 'fuzz.csv').read_text().splitlines()
    found = dict(zip(header.split(','), row.split(','), strict=True))
    assert found['target'] == 'point cloud'
    assert int(found['inputs']) == 30 == int(found['works']) + int(found['refused'])
    assert found['broken'] == '0'


# Found by the fuzzing: each ended in another exception, or worse, before.


def outcome(name, given):
    return in_folder(TARGETS[name], given)[0]


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
        ('annotations', 'area', None),
        ('categories', 'name', None),
        ('annotations', 'segmentation', [[1, 2, None, 4]]),
        ('annotations', 'segmentation', [[1e9, 0, 0, 1e9, 1, 1]]),
        ('annotations', 'segmentation', dict(size=[48, 64], counts='\x00')),
        ('annotations', 'segmentation', dict(size=[48, 64], counts=[-5, 3077])),
        ('annotations', 'segmentation', 'x'),
    ],
)
def test_values_in_coco_files(which, key, value):
    pytest.importorskip('mmdet')
    content = data_inputs.coco()
    content[which][0][key] = value
    assert outcome('annotations: COCO', json.dumps(content)) == 'ValueError'


def test_text_of_class_names_that_is_none():
    pytest.importorskip('mmdet')
    assert outcome('annotations: COCO', '[' * 200_000) == 'ValueError'
    assert outcome('folders', ('masks', [(['images', '1.png'], 'image')])) == 'ValueError'
    tree = [(['images', '1.png'], 'image'), (['masks', '1.png'], 'text')]
    assert outcome('folders', ('masks', tree)) == 'ValueError'
    tree[1] = (['masks', '1.png'], 'link')
    assert outcome('folders', ('masks', tree)) == 'ValueError'


def test_a_png_whose_header_grew(tmp_path):
    content = bytearray(data_inputs.images()[0])
    content[16:20] = (30_000).to_bytes(4, 'big')
    content[20:24] = (30_000).to_bytes(4, 'big')
    assert outcome('image: tools', bytes(content)) == 'named'
    assert outcome('image: demo', bytes(content)) == 'UserError'


def test_the_state_of_a_type(tmp_path):
    # The smallest pickle whose array had objects at addresses of the file.
    state = ('U2', False, True), (3, '<', None, ('a',), {'a': (np.dtype('O'), 0)}, 8, 4, 0)

    class Layout:
        def __reduce__(self):
            return np.dtype, *state

    torch.save(dict(x=Layout()), tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match='plain types'):
        load_checkpoint_safely(tmp_path / 'x.pth')
