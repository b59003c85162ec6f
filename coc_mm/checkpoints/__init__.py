"""Official weights: reading, converting, publishing."""

from coc_mm.checkpoints.convert import convert_official

__all__ = ['convert_official']
