"""RetinaNet on CoC-Small, COCO boxes, 12 epochs.

Train: bash tools/dist_train.sh configs/detection/retinanet_coc-s-c4_fpn_1x_coco.py 8
GPUs:  8, 2 images each; hours and results are not measured.
"""

_base_ = [
    '../_base_/models/retinanet_coc_fpn.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_1x_adamw.py',
    '../_base_/det_runtime.py',
]
