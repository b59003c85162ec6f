"""Backbones."""

from coc_mm.models.backbones.context_cluster import ContextCluster
