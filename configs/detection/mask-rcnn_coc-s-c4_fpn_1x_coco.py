"""Mask R-CNN on CoC-Small with 4 centers per region, COCO, 12 epochs.

Train:      bash tools/dist_train.sh configs/detection/mask-rcnn_coc-s-c4_fpn_1x_coco.py 8
GPUs:       8, 2 images each
Hours:
Parameters: 34.3 M built; paper: 33.6 M
Published:  box AP 35.9, AP50 58.3, AP75 38.3;
            mask AP 33.8, AP50 55.3, AP75 35.8 (paper)
Reproduced:

The paper's number is of weights with the older denominator, 'count', which the published file
brings with it. Training anew uses the corrected one, 'similarity', or that of its starting weights.
Starts from checkpoints/coc-small_8xb128_in1k.pth, fetched by
tools/model_converters/download.py or trained here; another file:
--cfg-options model.backbone.init_cfg.checkpoint=FILE
"""

_base_ = [
    '../_base_/models/mask-rcnn_coc_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/coco_1x_adamw.py',
    '../_base_/det_runtime.py',
]
