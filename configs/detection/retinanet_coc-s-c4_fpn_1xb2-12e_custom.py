"""Your own boxes in COCO format, found by RetinaNet on CoC-Small.

Train: python tools/train.py configs/detection/retinanet_coc-s-c4_fpn_1xb2-12e_custom.py \\
       --cfg-options data_root=FOLDER pretrained=CHECKPOINT
Test:  python tools/test.py configs/detection/retinanet_coc-s-c4_fpn_1xb2-12e_custom.py \\
       CHECKPOINT --cfg-options data_root=FOLDER
GPUs:  1, 2 images; the learning rate follows the actual batch.

FOLDER/annotations/train.json with images in FOLDER/train, and the same of val. The other
settings are explained in docs/custom_data.md.
"""

_base_ = './retinanet_coc-s-c4_fpn_1x_coco.py'

custom_data = 'coco'
data_root = 'data/custom'
classes = None  # the categories of the training file; or a list, or a file with a name per line
pretrained = None  # a checkpoint to take the backbone from

model = dict(backbone=dict(init_cfg=None))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, convert_to_iter_based=True),
]
auto_scale_lr = dict(enable=True)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='auto'))
