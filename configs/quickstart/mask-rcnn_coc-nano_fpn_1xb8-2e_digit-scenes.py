"""Digits found and cut out of cluttered scenes by Mask R-CNN on a tiny Context Cluster.

Train: python tools/train.py configs/quickstart/mask-rcnn_coc-nano_fpn_1xb8-2e_digit-scenes.py
Test:  python tools/test.py configs/quickstart/mask-rcnn_coc-nano_fpn_1xb8-2e_digit-scenes.py \\
       work_dirs/quickstart/detection/epoch_2.pth

The scenes are composed into data/digit_scenes at the first run. The backbone starts from the
classification run, which must have been trained before.
"""

_base_ = ['../_base_/models/mask-rcnn_coc_fpn.py', '../_base_/det_runtime.py', './coc-nano.py']

work_dir = 'work_dirs/quickstart/detection'
data_root = 'data/digit_scenes/'
randomness = dict(seed=0)
max_epochs = 2

strides = [4, 8, 16, 32]
model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[63.75] * 3),
    backbone=dict(
        arch=dict(_delete_=True, **_base_.nano),
        folds=(8, 4, 2, 1),
        # Blocks that start nearly switched off (1e-5) need more steps than there are here.
        layer_scale_init_value=0.1,
        init_cfg=dict(checkpoint='work_dirs/quickstart/classification/epoch_15.pth'),
    ),
    # Narrow heads and few proposals: a scene has 9 216 pixels and four digits, not 1 066 400
    # pixels and 80 classes.
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64, num_outs=4),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        # Boxes of 16 to 128 pixels, digits are taller than wide.
        anchor_generator=dict(scales=[4], ratios=[1.0, 2.0], strides=strides),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, finest_scale=28),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=10),
        mask_roi_extractor=dict(out_channels=64, finest_scale=28),
        mask_head=dict(num_convs=1, in_channels=64, conv_out_channels=64, num_classes=10),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=48)),
        rpn_proposal=dict(nms_pre=100, max_per_img=32),
        rcnn=dict(sampler=dict(num=24)),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=100, max_per_img=32),
        rcnn=dict(max_per_img=20),
    ),
)

# No flips: a mirrored digit is another sign, or none.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='coc_mm.DigitScenesCoco', data_root=data_root, split='train', pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='coc_mm.DigitScenesCoco',
        data_root=data_root,
        split='test',
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type='CocoMetric',
    ann_file=data_root + 'annotations/instances_validation.json',
    metric=['bbox', 'segm'],
)
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=60),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(max_keep_ckpts=1),
    visualization=dict(type='DetVisualizationHook'),
)
log_processor = dict(window_size=20)
