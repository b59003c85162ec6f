"""Hooks and optimizer constructors."""

from coc_mm.engine.cluster_visualization_hook import ClusterVisualizationHook
from coc_mm.engine.layer_decay import LayerDecayOptimWrapperConstructor
from coc_mm.engine.numbers import NumbersWatchHook

__all__ = ['ClusterVisualizationHook', 'LayerDecayOptimWrapperConstructor', 'NumbersWatchHook']
