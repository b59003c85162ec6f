"""Mask R-CNN on CoC-Nano, Penn-Fudan: people in 170 street photographs.

Data:  python tools/dataset_converters/prepare.py pennfudan
Train: python tools/train.py configs/detection/mask-rcnn_coc-nano_fpn_1xb8-100e_pennfudan.py

The backbone starts from the classifier of
configs/classification/coc-nano_1xb128-200e_imagenette-128.py.
"""

_base_ = [
    '../_base_/models/mask-rcnn_coc_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/det_runtime.py',
    '../quickstart/coc-nano.py',
]

randomness = dict(seed=0)
max_epochs = 100
data_root = 'data/pennfudan/'
metainfo = dict(classes=('person',), palette=[(220, 20, 60)])
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, **_base_.nano),
        folds=(8, 4, 2, 1),
        drop_path_rate=0.1,
        layer_scale_init_value=0.1,
        init_cfg=dict(checkpoint='checkpoints/coc-nano_1xb128-200e_imagenette-128.pth'),
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=128),
    rpn_head=dict(
        in_channels=128,
        feat_channels=128,
        # People stand: taller than wide.
        anchor_generator=dict(ratios=[1.0, 2.0, 3.0]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=128),
        bbox_head=dict(in_channels=128, fc_out_channels=256, num_classes=1),
        mask_roi_extractor=dict(out_channels=128),
        mask_head=dict(num_convs=2, in_channels=128, conv_out_channels=128, num_classes=1),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=1000, max_per_img=300), rcnn=dict(sampler=dict(num=128))
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomResize', scale=(512, 512), ratio_range=(0.6, 1.6), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(512, 512), recompute_bbox=True, allow_negative_crop=True),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(4, 4)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(512, 512), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    batch_sampler=None,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=4,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/val.json',
        data_prefix=dict(img='val/'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/val.json')
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=20)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    logger=dict(interval=17),
    checkpoint=dict(interval=20, max_keep_ckpts=1, save_best='coco/segm_mAP_50'),
)
