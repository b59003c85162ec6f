"""Mask R-CNN on CoC-Small, with learning rates that fall towards the input.

Train: bash tools/dist_train.sh \\
       configs/detection/mask-rcnn_coc-s-c4_fpn_layer-decay-1x_coco.py 8
GPUs:  8, 2 images each; hours and results are not measured.
"""

_base_ = './mask-rcnn_coc-s-c4_fpn_1x_coco.py'

optim_wrapper = dict(
    constructor='coc_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.8, norm_decay_mult=0.0, flat_decay_mult=0.0),
)
