"""Mask R-CNN on CoC-Medium with 49 centers per region, COCO, 12 epochs.

Train:      bash tools/dist_train.sh configs/detection/mask-rcnn_coc-m-c49_fpn_1x_coco.py 8
GPUs:       8, 2 images each
Hours:
Parameters: 48.9 M built; paper: 42.1 M, which the released code does not give
Published:  box AP 40.6, AP50 63.3, AP75 43.9;
            mask AP 37.6, AP50 60.1, AP75 39.9 (paper)
Reproduced:

The paper's number is of weights with the older denominator, 'count', which the published file
brings with it. Training anew uses the corrected one, 'similarity', or that of its starting weights.
"""

_base_ = './mask-rcnn_coc-s-c4_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        arch='medium',
        proposals=7,
        init_cfg=dict(checkpoint='checkpoints/coc-medium_8xb128_in1k.pth'),
    )
)
