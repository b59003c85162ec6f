"""The context-cluster operator and its backends."""

from coc_mm.ops.context_cluster.interface import (
    assign_points,
    can_run_fused,
    can_run_reference,
    context_cluster,
)

__all__ = ['assign_points', 'can_run_fused', 'can_run_reference', 'context_cluster']
