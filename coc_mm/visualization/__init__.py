"""Clusters of images: assignment maps of a model, and pictures of them."""

from coc_mm.visualization.drawing import draw_clusters
from coc_mm.visualization.figures import FigureWriter
from coc_mm.visualization.inspector import ClusterInspector, Inspection
from coc_mm.visualization.maps import (
    ClusterMaps,
    ClusterRecord,
    cluster_maps,
    find_backbone,
    record_clusters,
)
from coc_mm.visualization.palette import cluster_colors, palette
from coc_mm.visualization.sheets import (
    contact_sheet,
    fit,
    head_grid,
    save_gif,
    save_picture,
    stage_row,
)
