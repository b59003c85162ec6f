"""Semantic FPN on CoC-Small with 49 centers per region, ADE20K, 80k steps.

Train:      bash tools/dist_train.sh configs/segmentation/fpn_coc-s-c49_4xb4-80k_ade20k-512x512.py 4
GPUs:       4, 4 images each
Hours:
Parameters: 18.4 M
Published:  mIoU 36.3 (paper)
Reproduced:

The paper's number is of weights with the older denominator, 'count', which the published file
brings with it. Training anew uses the corrected one, 'similarity', or that of its starting weights.
"""

_base_ = './fpn_coc-s-c4_4xb4-80k_ade20k-512x512.py'

model = dict(backbone=dict(proposals=7))
