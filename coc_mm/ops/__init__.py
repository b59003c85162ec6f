"""Operators, importing torch only."""

from coc_mm.ops.context_cluster import (
    assign_points,
    can_run_fused,
    can_run_reference,
    context_cluster,
)

__all__ = ['assign_points', 'can_run_fused', 'can_run_reference', 'context_cluster']
