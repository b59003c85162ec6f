"""Every pixel of cluttered scenes named by Semantic FPN on a tiny Context Cluster.

Train: python tools/train.py configs/quickstart/fpn_coc-nano_1xb8-7e_digit-scenes.py
Test:  python tools/test.py configs/quickstart/fpn_coc-nano_1xb8-7e_digit-scenes.py \\
       work_dirs/quickstart/segmentation/epoch_7.pth

Eleven classes: the background is one, so that digits painted all over it cost something. The
scenes are composed into data/digit_scenes at the first run. The backbone starts from the
classification run, which must have been trained before.
"""

_base_ = ['../_base_/models/fpn_coc.py', '../_base_/seg_runtime.py', './coc-nano.py']

work_dir = 'work_dirs/quickstart/segmentation'
data_root = 'data/digit_scenes'
randomness = dict(seed=0)
max_epochs = 7

data_preprocessor = dict(mean=[127.5] * 3, std=[63.75] * 3, size=(96, 96))
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(
        arch=dict(_delete_=True, **_base_.nano),
        folds=(8, 4, 2, 1),
        # Blocks that start nearly switched off (1e-5) need more steps than there are here.
        layer_scale_init_value=0.1,
        init_cfg=dict(checkpoint='work_dirs/quickstart/classification/epoch_15.pth'),
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    decode_head=dict(
        in_channels=[64] * 4,
        channels=64,
        num_classes=11,
        norm_cfg=dict(type='BN', requires_grad=True),
        # Nine points of ten are background, and telling digits apart is the harder part.
        loss_decode=dict(class_weight=[0.4] + [1.0] * 10),
    ),
)

# No flips: a mirrored digit is another sign, or none.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='coc_mm.DigitScenesSeg', data_root=data_root, split='train', pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='coc_mm.DigitScenesSeg',
        data_root=data_root,
        split='test',
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=3e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=60),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=10),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
log_processor = dict(by_epoch=True)
