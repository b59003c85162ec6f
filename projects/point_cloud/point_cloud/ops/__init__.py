"""Sampling and neighbour search on point clouds."""

from projects.point_cloud.point_cloud.ops.search import (
    can_run_triton,
    farthest_point_sample,
    gather_points,
    nearest_neighbours,
)

__all__ = ['can_run_triton', 'farthest_point_sample', 'gather_points', 'nearest_neighbours']
