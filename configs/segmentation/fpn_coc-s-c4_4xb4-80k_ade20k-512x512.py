"""Semantic FPN on CoC-Small with 4 centers per region, ADE20K, 80k steps.

Train:      bash tools/dist_train.sh configs/segmentation/fpn_coc-s-c4_4xb4-80k_ade20k-512x512.py 4
GPUs:       4, 4 images each
Hours:
Parameters: 18.4 M
Published:  mIoU 36.6 (paper)
Reproduced:

The paper's number is of weights with the older denominator, 'count', which the published file
brings with it. Training anew uses the corrected one, 'similarity', or that of its starting weights.
Starts from checkpoints/coc-small_8xb128_in1k.pth, fetched by
tools/model_converters/download.py or trained here; another file:
--cfg-options model.backbone.init_cfg.checkpoint=FILE
"""

_base_ = [
    '../_base_/models/fpn_coc.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/ade20k_80k_adamw.py',
    '../_base_/seg_runtime.py',
]
