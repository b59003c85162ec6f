"""Clusters of a cloud as pictures."""

from projects.point_cloud.point_cloud.visualization.inspector import (
    ColoredCloud,
    ColouredCloud,
    color_by_center,
    color_by_cluster,
    colour_by_centre,
    colour_by_cluster,
)
from projects.point_cloud.point_cloud.visualization.pictures import save_html, save_png

__all__ = [
    'ColoredCloud',
    'ColouredCloud',
    'color_by_center',
    'color_by_cluster',
    'colour_by_centre',
    'colour_by_cluster',
    'save_html',
    'save_png',
]
