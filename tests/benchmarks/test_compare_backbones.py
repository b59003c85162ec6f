"""The comparison of backbones: published figures come from metafiles, labels do not overlap."""

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / 'benchmarks'


@pytest.fixture(scope='module')
def compare():
    pytest.importorskip('mmpretrain')
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module('compare_backbones')


def test_published_figures_are_found(compare):
    found = {label: compare.published(label)[1] for label in (*compare.OURS, *compare.OTHERS)}
    assert len(found) == 15
    assert found['CoC-Tiny'] == 73.2
    assert found['CoC-Small'] == 78.1
    assert all(65 < top1 < 90 for top1 in found.values()), found


def test_rows_and_plot(compare, tmp_path):
    rows = compare.measure(['CoC-Tiny', 'ResNet-18'], batch=1, rounds=2)
    ours, other = rows
    assert ours['parameters'] == 5570584
    assert ours['multiply_adds'] == 1100200512
    assert other['parameters'] == 11689512
    assert 1.7e9 < other['multiply_adds'] < 1.9e9
    assert all(float(row['images_per_s']) > 0 for row in rows)
    assert {'commit', 'torch', 'device', 'threads'} <= set(ours)
    compare.plot(rows, tmp_path / 'plot.png')
    assert (tmp_path / 'plot.png').read_bytes().startswith(b'\x89PNG')


def test_labels_do_not_overlap(compare):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), dpi=150)
    axes.set_xlim(0, 30)
    axes.set_ylim(60, 90)
    crowd = {f'Model-{i}': (10 + i % 4, 75 + i // 4, '#888888', i == 0) for i in range(12)}
    labels = compare.place_labels(figure, axes, crowd)
    boxes = [label.get_window_extent() for label in labels]
    assert len(boxes) == 12
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert sum(a.overlaps(b) for a, b in pairs) == 0
    plt.close(figure)
