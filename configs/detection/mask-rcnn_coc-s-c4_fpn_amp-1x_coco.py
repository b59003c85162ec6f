"""Mask R-CNN on CoC-Small in mixed precision; similarities are computed in float32.

Train: bash tools/dist_train.sh configs/detection/mask-rcnn_coc-s-c4_fpn_amp-1x_coco.py 8
GPUs:  8, 2 images each; hours and results are not measured.
"""

_base_ = './mask-rcnn_coc-s-c4_fpn_1x_coco.py'

optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic')
