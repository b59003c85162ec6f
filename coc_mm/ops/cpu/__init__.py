"""Both halves of a block for CPUs, piece by piece so that intermediates stay in the cache.

Tens of megabytes of hidden features cost a CPU more in page faults and memory traffic
than in arithmetic. Here norm, projections, mixing and residual sum of a piece of the
map run one after the other before the next piece begins, and the backward pass computes
them again: what training keeps alive of a half is its input.
"""

from coc_mm.ops.cpu.mixer import MixerSetting, MixerWeights, residual_mixer
from coc_mm.ops.cpu.mlp import residual_mlp

__all__ = ['MixerSetting', 'MixerWeights', 'residual_mixer', 'residual_mlp']
