"""Cluster maps against the reference operator, over sizes, folds, proposals and hosts."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from torch import nn

from coc_mm.models import ContextCluster
from coc_mm.ops.backends import reference
from coc_mm.ops.regions import region_layout
from coc_mm.visualization import ClusterMaps, cluster_maps, find_backbone, record_clusters


def tiny_arch(**changes):
    arch = dict(
        depths=(2, 1, 2, 1),
        dims=(12, 16, 16, 24),
        mlp_ratios=(2, 2, 2, 2),
        heads=(2, 3, 4, 2),
        head_dim=5,
        proposals=(2, (2, 3), 2, 3),
        folds=((3, 2), (2, 4), 1, 1),
    )
    return {**arch, **changes}


def build(seed=0, **kwargs):
    torch.manual_seed(seed)
    model = ContextCluster(tiny_arch(**kwargs.pop('arch', {})), **kwargs).eval()
    for stage in model.stages:
        for block in stage.blocks:
            with torch.no_grad():
                block.mixer.sim_alpha.fill_(1.7)
                block.mixer.sim_beta.fill_(-0.3)
    return model


def inputs_of_mixers(model, images):
    """What enters each mixer, seen by hooks of the test's own."""
    seen, handles = {}, []
    for s, stage in enumerate(model.stages):
        for b, block in enumerate(stage.blocks):

            def hook(module, args, key=(s, b)):
                seen[key] = args[0].detach().clone()

            handles.append(block.mixer.register_forward_pre_hook(hook))
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return seen


# Divisible, uneven, wide, tall, and so small that folds exceed the points.
SIZES = [(96, 128), (100, 164), (64, 224), (230, 70), (32, 32)]


@pytest.mark.parametrize('size', SIZES)
def test_maps_are_the_argmax_of_the_reference_backend(size):
    """The operator's own similarity, also where regions are smaller than their proposals."""
    model = build().double()
    images = torch.rand(1, 3, *size, dtype=torch.float64)
    maps = cluster_maps(model, images)
    points = inputs_of_mixers(model, images)
    assert list(maps) == list(points) == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (3, 0)]
    for (s, b), m in maps.items():
        mixer = model.stages[s].blocks[b].mixer
        features, _ = mixer.project(points[s, b])
        layout = region_layout(features, mixer.proposals, mixer.folds)
        x = layout.split(features)
        sim = reference.similarity(x, mixer.sim_alpha, mixer.sim_beta, layout)
        for tensor, expected in ((m.center_index, sim.argmax(-2)), (m.similarity, sim.amax(-2))):
            expected = layout.merge(expected[..., None])[..., 0].permute(0, 3, 1, 2)
            torch.testing.assert_close(tensor, expected, rtol=1e-12, atol=0)
        assert m.assignment.shape == (1, mixer.num_heads, *points[s, b].shape[1:3])
        assert m.assignment.max() < m.num_clusters == sim.shape[1] * sim.shape[3]


def test_regions_are_told_apart_and_not_square():
    m = cluster_maps(build(), torch.rand(2, 3, 100, 164), stage=0, block=-1)
    assert m.size == (25, 41)
    assert m.folds == (3, 2)
    assert m.region_edges == ([0, 8, 16, 25], [0, 20, 41])
    rows = torch.bucketize(torch.arange(25), torch.tensor([8, 16]), right=True)
    cols = torch.bucketize(torch.arange(41), torch.tensor([20]), right=True)
    expected = rows[:, None] * 2 + cols
    assert torch.equal(m.assignment // m.centers_per_region, expected.expand(2, 2, 25, 41))
    assert torch.equal(m.assignment % 4, m.center_index)


def test_center_positions_are_the_middles_of_what_centers_average():
    m = cluster_maps(build(), torch.rand(1, 3, 100, 164), stage=0, block=0)
    assert m.center_positions.shape == (24, 2)
    rows, cols = m.region_edges
    cluster = 0
    for top, bottom in pairwise(rows):
        for left, right in pairwise(cols):
            for i in range(2):
                for j in range(2):
                    n, k = bottom - top, right - left
                    y = top + (i * n // 2 - (-(i + 1) * n // 2)) / 2
                    x = left + (j * k // 2 - (-(j + 1) * k // 2)) / 2
                    expected = torch.tensor([y / 25, x / 41])
                    torch.testing.assert_close(m.center_positions[cluster], expected)
                    cluster += 1
    assert cluster == 24


def test_heads_and_blocks_are_chosen():
    model, images = build(), torch.rand(1, 3, 64, 96)
    full = cluster_maps(model, images)
    one = cluster_maps(model, images, stage=2, block=-1, head=3)
    assert isinstance(one, ClusterMaps)
    assert (one.stage, one.block, one.heads) == (2, 1, (3,))
    assert torch.equal(one.assignment[:, 0], full[2, 1].assignment[:, 3])
    assert torch.equal(full[2, 1].with_heads([3]).similarity, one.similarity)
    # Only some stages have the head, or the block.
    assert list(cluster_maps(model, images, head=2)) == [(1, 0), (2, 0), (2, 1)]
    assert list(cluster_maps(model, images, block=1)) == [(0, 1), (2, 1)]
    assert list(cluster_maps(model, images, stage=0)) == [(0, 0), (0, 1)]
    assert one.point_at(0, 0) == (0, 0)
    assert one.point_at(1.0, 0.99) == (one.size[0] - 1, one.size[1] - 1)


@pytest.mark.parametrize(
    ('chosen', 'message'),
    [
        (dict(stage=4, block=0), 'stage 4 is out of range: the backbone has stages 0 to 3'),
        (dict(stage=0, block=2), r'block 2 .* stage 0 has blocks 0 to 1 \(or -2 to -1'),
        (dict(stage=1, block=-2), r'stage 1 has blocks only 0 \(or -1 to -1'),
        (dict(stage=2, block=0, head=4), 'head 4 .* stage 2 has heads 0 to 3'),
        (dict(head=9), 'stage 2 has heads 0 to 3'),
    ],
)
def test_out_of_range_names_the_range(chosen, message):
    with pytest.raises(ValueError, match=message):
        cluster_maps(build(), torch.rand(1, 3, 64, 64), **chosen)


def test_images_of_other_kinds_are_refused():
    model = build()
    with pytest.raises(TypeError, match=r'floating tensor.*uint8'):
        cluster_maps(model, torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(TypeError, match='ndarray'):
        cluster_maps(model, torch.zeros(1, 3, 64, 64).numpy())
    with pytest.raises(ValueError, match='32 x 32'):
        cluster_maps(model, torch.zeros(1, 3, 16, 64))
    single = cluster_maps(model, torch.zeros(3, 64, 64), stage=0, block=0)
    assert single.assignment.shape == (1, 2, 16, 16)


class Host(nn.Module):
    """A model with a backbone somewhere inside."""

    def __init__(self, *backbones):
        super().__init__()
        self.parts = nn.ModuleList([nn.Conv2d(3, 3, 1), *backbones])


def test_backbone_is_found_wherever_it_is():
    backbone = build()
    assert find_backbone(backbone) is backbone
    assert find_backbone(nn.DataParallel(Host(backbone))) is backbone
    with pytest.raises(ValueError, match='Host holds no ContextCluster'):
        find_backbone(Host())
    with pytest.raises(ValueError, match=r'several .*parts\.1, parts\.2'):
        find_backbone(Host(backbone, build()))


def hooks_of(model):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@pytest.mark.parametrize('mode', [False, True])
def test_outputs_weights_and_random_numbers_stay(mode):
    model = build(drop_rate=0.2, drop_path_rate=0.3, out_indices=(0, 1, 2, 3)).train(mode)
    images = torch.rand(2, 3, 100, 68, requires_grad=True)
    weights = {k: v.clone() for k, v in model.state_dict().items()}

    def run(look):
        torch.manual_seed(3)
        images.grad = None
        if look:
            with record_clusters(model) as record:
                outs = model(images)
            assert record.passes == 1
            assert len(record.maps) == 6
            assert not any(m.similarity.requires_grad for m in record.maps.values())
        else:
            outs = model(images)
        sum(out.square().sum() for out in outs).backward()
        return [*outs, images.grad.clone(), torch.rand(4)]

    for plain, watched in zip(run(False), run(True), strict=True):
        assert torch.equal(plain, watched)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert all(m.training == mode for m in model.modules())
    assert hooks_of(model) == 0


def test_nothing_is_left_behind_by_an_error():
    model = build()
    with pytest.raises(RuntimeError, match='mine'), record_clusters(model):
        raise RuntimeError('mine')
    with pytest.raises(ValueError, match='32 x 32'):
        cluster_maps(model, torch.zeros(1, 3, 8, 8))
    assert hooks_of(model) == 0


def test_threads_see_their_own_images():
    model = build()
    images = [torch.rand(1, 3, *size) for size in ((64, 64), (96, 64), (64, 128))]
    expected = [cluster_maps(model, x) for x in images]
    start = threading.Barrier(len(images), timeout=30)

    def work(number):
        start.wait()
        for _ in range(6):
            found = cluster_maps(model, images[number])
            assert found.keys() == expected[number].keys()
            for key, m in expected[number].items():
                assert torch.equal(found[key].assignment, m.assignment)

    with ThreadPoolExecutor(len(images)) as pool:
        list(pool.map(work, range(len(images))))
    assert hooks_of(model) == 0


def test_half_precision():
    half = cluster_maps(build().bfloat16(), torch.rand(1, 3, 64, 64), stage=0, block=0)
    assert half.similarity.dtype == torch.float32
    assert ((half.similarity > 0) & (half.similarity < 1)).all()
