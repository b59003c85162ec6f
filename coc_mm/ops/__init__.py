"""Operators, importing torch only."""

from coc_mm.ops.functional import (
    assign_points,
    can_run_fused,
    can_run_matmul,
    can_run_reference,
    can_run_triton,
    context_cluster,
    context_cluster_packed,
)
