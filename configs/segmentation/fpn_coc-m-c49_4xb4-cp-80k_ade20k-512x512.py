"""Semantic FPN on CoC-Medium with 49 centers, blocks recomputed to save memory.

Train: bash tools/dist_train.sh \\
       configs/segmentation/fpn_coc-m-c49_4xb4-cp-80k_ade20k-512x512.py 4
GPUs:  4, 4 images each; hours and results are not measured.
"""

_base_ = './fpn_coc-s-c4_4xb4-80k_ade20k-512x512.py'

checkpoint = 'checkpoints/coc-medium_8xb128_in1k.pth'
model = dict(
    backbone=dict(arch='medium', proposals=7, with_cp=True, init_cfg=dict(checkpoint=checkpoint))
)
