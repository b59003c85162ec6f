"""Mask R-CNN on CoC-Small with 25 centers per region, COCO, 12 epochs.

Train:      bash tools/dist_train.sh configs/detection/mask-rcnn_coc-s-c25_fpn_1x_coco.py 8
GPUs:       8, 2 images each
Hours:
Parameters: 34.3 M built; paper: 33.6 M
Published:  box AP 37.5, AP50 60.1, AP75 40.0;
            mask AP 35.4, AP50 57.1, AP75 37.9 (paper)
Reproduced:

The paper's number is of weights with the older denominator, 'count', which the published file
brings with it. Training anew uses the corrected one, 'similarity', or that of its starting weights.
"""

_base_ = './mask-rcnn_coc-s-c4_fpn_1x_coco.py'

model = dict(backbone=dict(proposals=5))
