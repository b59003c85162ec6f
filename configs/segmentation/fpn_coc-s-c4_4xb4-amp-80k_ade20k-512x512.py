"""Semantic FPN on CoC-Small in mixed precision; similarities are computed in float32.

Train: bash tools/dist_train.sh \\
       configs/segmentation/fpn_coc-s-c4_4xb4-amp-80k_ade20k-512x512.py 4
GPUs:  4, 4 images each; hours and results are not measured.
"""

_base_ = './fpn_coc-s-c4_4xb4-80k_ade20k-512x512.py'

optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic')
