import pytest
import torch

from coc_mm.visualization import ClusterMaps
from coc_mm.visualization.maps import _center_positions


@pytest.fixture
def make_maps():
    return _make_maps


def _make_maps(size=(7, 10), folds=(2, 3), proposals=(2, 1), heads=(0, 1), batch=2, seed=0):
    """Maps of points that fall at random."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, len(heads), *size)
    center = torch.randint(proposals[0] * proposals[1], shape, generator=generator)
    # The last point of region i is (i + 1) * n // f - 1.
    edges = [[(i + 1) * n // f for i in range(f - 1)] for n, f in zip(size, folds, strict=True)]
    regions = [
        torch.bucketize(torch.arange(n), torch.tensor(e), right=True)
        for n, e in zip(size, edges, strict=True)
    ]
    region = regions[0][:, None] * folds[1] + regions[1]
    return ClusterMaps(
        stage=0,
        block=0,
        heads=tuple(heads),
        assignment=region * (proposals[0] * proposals[1]) + center,
        center_index=center,
        similarity=torch.rand(shape, generator=generator),
        center_positions=_center_positions(size, proposals, folds),
        proposals=proposals,
        folds=folds,
        input_size=(4 * size[0], 4 * size[1]),
    )
