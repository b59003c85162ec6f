"""A small PointMLP with context clusters on handwritten digits as clouds, without a download.

  python tools/train.py projects/point_cloud/configs/pointmlp-coc_quick_digits.py

The digits are scikit-learn's (real images, 8x8), turned into reliefs of points.
"""

_base_ = ['./_base_/runtime.py']

num_points = 128
epochs = 12

model = dict(
    type='PointMLPCoC',
    num_classes=10,
    points=num_points,
    embed_dim=16,
    use_xyz=True,
    dim_expansion=(2, 2, 2),
    pre_blocks=(1, 1, 1),
    pos_blocks=(1, 1, 1),
    k_neighbors=(10, 10, 8),
    reducers=(2, 2, 2),
    dropout=0.1,
    smoothing=0.1,
)

train_pipeline = [
    dict(type='SamplePoints', num_points=num_points, how='random', shuffle=True),
    dict(type='CenterPoints'),
    dict(type='RotatePoints', axis='z', angle=10),
    dict(type='ScaleShiftPoints', scale=(0.8, 1.25), shift=0.1),
    dict(type='PackPoints'),
]
test_pipeline = [
    dict(type='SamplePoints', num_points=num_points),
    dict(type='CenterPoints'),
    dict(type='PackPoints'),
]
tta_pipeline = [
    dict(type='SamplePoints', num_points=num_points),
    dict(type='CenterPoints'),
    dict(
        type='VotePoints', transforms=[dict(type='ScaleShiftPoints', scale=(0.8, 1.25), shift=0.0)]
    ),
]

train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='DigitPoints', split='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=50,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='DigitPoints', split='test', pipeline=test_pipeline, test_mode=True),
)
test_dataloader = val_dataloader

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=epochs)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=3e-3, weight_decay=0.01))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, end=40, by_epoch=False),
    dict(type='CosineAnnealingLR', T_max=epochs, by_epoch=True, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=14), checkpoint=dict(interval=epochs))
