"""Hooks and optimizer constructors."""

from coc_mm.engine.layer_decay import LayerDecayOptimWrapperConstructor

__all__ = ['LayerDecayOptimWrapperConstructor']
