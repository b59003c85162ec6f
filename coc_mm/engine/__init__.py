"""Hooks and optimizer constructors."""

from coc_mm.engine.checkpoint_hook import WholeCheckpointHook
from coc_mm.engine.cluster_visualization_hook import ClusterVisualizationHook
from coc_mm.engine.layer_decay import LayerDecayOptimWrapperConstructor
from coc_mm.engine.numbers import NumbersWatchHook
from coc_mm.engine.random_state import PlacedRandomnessHook
from coc_mm.engine.stop_signals import StopHook
from coc_mm.engine.validation_hook import OwedValidationHook

__all__ = [
    'ClusterVisualizationHook',
    'LayerDecayOptimWrapperConstructor',
    'NumbersWatchHook',
    'OwedValidationHook',
    'PlacedRandomnessHook',
    'StopHook',
    'WholeCheckpointHook',
]
