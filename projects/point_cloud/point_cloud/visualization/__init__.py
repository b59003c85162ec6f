"""Clusters of a cloud as pictures."""

from projects.point_cloud.point_cloud.visualization.inspector import (
    ColouredCloud,
    colour_by_centre,
    colour_by_cluster,
)
from projects.point_cloud.point_cloud.visualization.pictures import save_html, save_png

__all__ = ['ColouredCloud', 'colour_by_centre', 'colour_by_cluster', 'save_html', 'save_png']
