"""Parameters and multiply-adds, held against the paper where they can be."""

import pytest
from mmengine.config import Config

from coc_mm.apis.complexity import cluster_macs, complexity_row, count_complexity
from coc_mm.apis.model_zoo import entries
from coc_mm.models.layers import ContextClusterMixer

# The paper's table 1: millions of parameters, giga multiply-adds.
PAPER = {'tiny': (5.3, 1.0), 'small': (14.0, 2.6), 'medium': (27.9, 5.5)}


@pytest.mark.parametrize('arch', PAPER)
def test_paper(arch):
    """It divides parameters by 2^20 and multiply-adds by 2^30: else 5.6 M and 1.1 G stood there."""
    row = complexity_row(f'coc-{arch}_8xb128_in1k')
    parameters, macs = PAPER[arch]
    assert row['paper parameters'] == parameters
    assert row['paper multiply-adds'] == macs
    assert round(row['parameters'] / 2**20, 1) == parameters
    assert round(row['multiply-adds'] / 2**30, 1) == macs


@pytest.mark.parametrize(('size', 'built', 'paper'), [('s', 34.3, 33.6), ('m', 48.9, 42.1)])
def test_detectors_miss_the_figures_of_the_paper(size, built, paper):
    """What the released code builds has more parameters, counted in either unit."""
    row = complexity_row(f'mask-rcnn_coc-{size}-c4_fpn_1x_coco', (64, 64))
    assert row['paper parameters'] == paper
    assert round(row['parameters'] / 1e6, 1) == built
    assert abs(row['parameters'] / 2**20 - paper) > 0.5
    assert row['counted'] == 'backbone and neck'


@pytest.mark.parametrize('arch', ['tiny2', 'tiny-plain', 'base-dim96'])
def test_metafiles_agree_with_the_built_models(arch):
    name = f'coc-{arch}_8xb128_in1k'
    row, metadata = complexity_row(name), entries()[name]['Metadata']
    assert row['parameters'] == metadata['Parameters']
    assert row['multiply-adds'] == metadata['Multiply-adds']


def test_clustering_by_hand():
    """2 x 3 points, 1 head of 4 channels, 1 center: 6 (2 + 1 + 1 + 1 + 1) 4 + 6, and 3 * 4."""
    assert cluster_macs(2, 3, 1, 4, (1, 1), (1, 1)) == 6 * 6 * 4 + 6 + 12
    # Regions share the points, and each has centers of its own.
    four = cluster_macs(4, 6, 1, 4, (1, 1), (2, 2))
    assert four == 4 * cluster_macs(2, 3, 1, 4, (1, 1), (1, 1))
    # One fold alone does not cut.
    assert cluster_macs(4, 6, 2, 4, (2, 2), (1, 2)) == cluster_macs(4, 6, 2, 4, (2, 2), (1, 1))


def tiny_config(backend):
    arch = dict(depths=(1,) * 4, dims=(8,) * 4, mlp_ratios=(2,) * 4, heads=(2,) * 4, head_dim=4)
    model = dict(
        type='ImageClassifier',
        backbone=dict(type='coc_mm.ContextCluster', arch=arch, backend=backend),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=3, in_channels=8),
    )
    return Config(dict(default_scope='mmpretrain', model=model))


def test_counts_layer_by_layer_whatever_the_backend():
    forward = ContextClusterMixer.forward
    counts = [count_complexity(tiny_config(backend), (64, 64)) for backend in (None, 'reference')]
    assert counts[0] == counts[1]
    assert ContextClusterMixer.forward is forward
    points = [256, 64, 16, 4]
    stem = 256 * 5 * 16 * 8
    reducers = sum(n * 8 * 8 * 9 for n in points[1:])
    layers = sum(n * (8 * 16 + 8 * 8 + 2 * 8 * 16) for n in points)
    clusters = sum(cluster_macs(s, s, 2, 4, (2, 2), (s // 2, s // 2)) for s in (16, 8, 4, 2))
    assert counts[0].cluster_macs == clusters
    assert counts[0].macs == stem + reducers + layers + clusters + 3 * 8
    assert counts[0].backbone_parameters == counts[0].parameters - 27
