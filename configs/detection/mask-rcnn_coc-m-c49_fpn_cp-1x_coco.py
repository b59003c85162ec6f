"""Mask R-CNN on CoC-Medium with 49 centers, blocks recomputed to save memory.

Train: bash tools/dist_train.sh configs/detection/mask-rcnn_coc-m-c49_fpn_cp-1x_coco.py 8
GPUs:  8, 2 images each; hours and results are not measured.
"""

_base_ = './mask-rcnn_coc-s-c4_fpn_1x_coco.py'

checkpoint = 'checkpoints/coc-medium_8xb128_in1k.pth'
model = dict(
    backbone=dict(arch='medium', proposals=7, with_cp=True, init_cfg=dict(checkpoint=checkpoint))
)
