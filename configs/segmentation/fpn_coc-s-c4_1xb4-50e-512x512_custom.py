"""Your own images with masks, segmented by Semantic FPN on CoC-Small.

Train: python tools/train.py configs/segmentation/fpn_coc-s-c4_1xb4-50e-512x512_custom.py \\
       --cfg-options data_root=FOLDER pretrained=CHECKPOINT
Test:  python tools/test.py configs/segmentation/fpn_coc-s-c4_1xb4-50e-512x512_custom.py \\
       CHECKPOINT --cfg-options data_root=FOLDER
GPUs:  1, 4 images; the learning rate follows the actual batch.

FOLDER/images/train/X.jpg with FOLDER/annotations/train/X.png, and the same of val; or
FOLDER/images and FOLDER/annotations alone, of which a fifth is held out. A mask holds the
index of the class of each pixel, 255 where there is none. Settings: data_root, format,
ann_file, img_dir, classes, fold, group_by, val_fraction, arch, pretrained,
reduce_zero_label (docs/custom_data.md).
"""

_base_ = ['./fpn_coc-s-c4_4xb4-80k_ade20k-512x512.py', '../_base_/datasets/custom.py']

custom_data = 'image_masks'
data_root = 'data/custom'
reduce_zero_label = False  # True: 0 is unlabelled and 1 the first class

model = dict(backbone=dict(init_cfg=None))
train_dataloader = dict(sampler=dict(type='DefaultSampler'))
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=50, val_interval=1)
param_scheduler = [
    dict(type='coc_mm.WarmupLR', start_factor=0.001, share=0.05, convert_to_iter_based=True),
    dict(type='PolyLR', eta_min=0.0, power=0.9, by_epoch=True, convert_to_iter_based=True),
]
auto_scale_lr = dict(enable=True)
default_hooks = dict(
    logger=dict(log_metric_by_epoch=True),
    checkpoint=dict(by_epoch=True, interval=1, max_keep_ckpts=3, save_best='mIoU'),
)
log_processor = dict(by_epoch=True)
