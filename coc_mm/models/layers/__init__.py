"""The layers of Context Cluster, all points-major: (B, H, W, C)."""

from coc_mm.models.layers.context_cluster_block import (
    MLP,
    ContextClusterBlock,
    ContextClusterMixer,
)
from coc_mm.models.layers.point_reducer import PointReducer, append_positions
from coc_mm.models.layers.points_norm import PointsNorm

__all__ = [
    'MLP',
    'ContextClusterBlock',
    'ContextClusterMixer',
    'PointReducer',
    'PointsNorm',
    'append_positions',
]
