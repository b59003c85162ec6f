"""CoC-Nano (1.6 M parameters) on Imagenette at 128 x 128, from nothing.

Data:  python tools/dataset_converters/prepare.py imagenette
Train: python tools/train.py configs/classification/coc-nano_1xb128-200e_imagenette-128.py
"""

_base_ = [
    '../_base_/models/coc_cls.py',
    '../_base_/datasets/imagenette_128.py',
    '../_base_/cls_runtime.py',
    '../quickstart/coc-nano.py',
]

randomness = dict(seed=0)
max_epochs = 200
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, **_base_.nano),
        folds=(4, 2, 1, 1),
        # Blocks that start nearly switched off (1e-5) need more steps than there are here.
        layer_scale_init_value=0.1,
    ),
    head=dict(num_classes=10, in_channels=256),
    train_cfg=dict(
        augments=[dict(type='Mixup', alpha=0.2), dict(type='CutMix', alpha=1.0)], probs=[0.25, 0.5]
    ),
)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        begin=5,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=10)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(logger=dict(interval=37), checkpoint=dict(interval=10, max_keep_ckpts=1))
custom_hooks = [dict(type='EMAHook', momentum=1e-3, priority='ABOVE_NORMAL')]
auto_scale_lr = dict(base_batch_size=128)
