"""Your own boxes in COCO format, found by RetinaNet on CoC-Small.

Train: python tools/train.py configs/detection/retinanet_coc-s-c4_fpn_1xb2-12e_custom.py \\
       --cfg-options data_root=FOLDER pretrained=CHECKPOINT
Test:  python tools/test.py configs/detection/retinanet_coc-s-c4_fpn_1xb2-12e_custom.py \\
       CHECKPOINT --cfg-options data_root=FOLDER
GPUs:  1, 2 images; the learning rate follows the actual batch.

FOLDER/annotations/train.json with images in FOLDER/train, and the same of val. Exports of other
tools are read as they are. Settings: data_root, format, ann_file, img_dir, classes, fold,
group_by, val_fraction, arch, pretrained (docs/custom_data.md).
"""

_base_ = ['./retinanet_coc-s-c4_fpn_1x_coco.py', '../_base_/datasets/custom.py']

custom_data = 'coco'
data_root = 'data/custom'

model = dict(backbone=dict(init_cfg=None))
param_scheduler = [
    dict(type='coc_mm.WarmupLR', start_factor=0.001, share=0.05, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, convert_to_iter_based=True),
]
auto_scale_lr = dict(enable=True)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='auto'))
