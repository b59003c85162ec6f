"""Semantic FPN on CoC-Small, with learning rates that fall towards the input.

Train: bash tools/dist_train.sh \\
       configs/segmentation/fpn_coc-s-c4_4xb4-layer-decay-80k_ade20k-512x512.py 4
GPUs:  4, 4 images each; hours and results are not measured.
"""

_base_ = './fpn_coc-s-c4_4xb4-80k_ade20k-512x512.py'

optim_wrapper = dict(
    constructor='coc_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.8, norm_decay_mult=0.0, flat_decay_mult=0.0),
)
