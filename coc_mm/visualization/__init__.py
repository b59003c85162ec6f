"""See the clusters: from a model and images to assignment maps and pictures."""

from coc_mm.visualization.maps import (
    ClusterMaps,
    ClusterRecord,
    cluster_maps,
    find_backbone,
    record_clusters,
)

__all__ = [
    'ClusterMaps',
    'ClusterRecord',
    'cluster_maps',
    'find_backbone',
    'record_clusters',
]
