"""The 1 797 handwritten digits of scikit-learn, classified by a tiny Context Cluster.

Train: python tools/train.py configs/quickstart/coc-nano_1xb64-15e_digits.py
Test:  python tools/test.py configs/quickstart/coc-nano_1xb64-15e_digits.py \\
       work_dirs/quickstart/classification/epoch_15.pth

Nothing is downloaded. The detection and segmentation configs beside it start from this run.
"""

_base_ = ['../_base_/models/coc_cls.py', '../_base_/cls_runtime.py', './coc-nano.py']

work_dir = 'work_dirs/quickstart/classification'
image_size = 32
randomness = dict(seed=0)
max_epochs = 15

data_preprocessor = dict(num_classes=10, mean=[127.5] * 3, std=[63.75] * 3, to_rgb=True)
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, **_base_.nano),
        folds=(2, 1, 1, 1),
        drop_path_rate=0.05,
        # Blocks that start nearly switched off (1e-5) need more steps than there are here.
        layer_scale_init_value=0.1,
    ),
    head=dict(num_classes=10, in_channels=256),
    train_cfg=None,  # no mixing of images
)

train_pipeline = [
    dict(type='Resize', scale=image_size, interpolation='bicubic'),
    dict(type='NumpyToPIL'),
    dict(
        type='torchvision/RandomAffine',
        degrees=12,
        translate=(0.1, 0.1),
        scale=(0.85, 1.15),
        shear=10,
        interpolation='bilinear',
    ),
    dict(type='PILToNumpy'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='Resize', scale=image_size, interpolation='bicubic'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='coc_mm.DigitsDataset', split='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=150,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='coc_mm.DigitsDataset', split='test', test_mode=True, pipeline=test_pipeline),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
test_dataloader = val_dataloader
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=40),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=3)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(interval=1, max_keep_ckpts=1, save_best=None)
)
