"""Official weights: reading, converting, publishing."""

from coc_mm.checkpoints.official import convert_official
