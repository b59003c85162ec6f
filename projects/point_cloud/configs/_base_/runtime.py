"""What all runs of the project share."""

default_scope = 'coc_mm'
custom_imports = dict(imports=['projects.point_cloud.point_cloud'], allow_failed_imports=False)

val_cfg = dict()
test_cfg = dict()
val_evaluator = dict(type='PointAccuracy')
test_evaluator = val_evaluator

default_hooks = dict(
    logger=dict(type='LoggerHook', interval=50),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1),
)
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
log_level = 'INFO'
load_from = None
resume = False
randomness = dict(seed=0)

# tools/test.py ... --tta: vote testing.
tta_model = dict(type='VoteModel')
