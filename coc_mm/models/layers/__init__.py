"""The layers of Context Cluster, all channels-last: (B, H, W, C)."""

from coc_mm.models.layers.context_cluster_block import MLP, ContextClusterBlock, ContextClusterMixer
from coc_mm.models.layers.group_norm import GroupNorm1
from coc_mm.models.layers.point_reducer import PointReducer, append_positions
