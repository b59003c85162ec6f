"""80k steps on ADE20K as mmseg's ``schedule_80k.py`` has them, with the paper's AdamW."""

# Weight decay on every parameter, as in the original.
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.0001, weight_decay=0.0001)
)
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, begin=0, end=80000, by_epoch=False)]

train_cfg = dict(type='IterBasedTrainLoop', max_iters=80000, val_interval=8000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=8000),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)

# 4 GPUs x 4 images.
auto_scale_lr = dict(enable=False, base_batch_size=16)
