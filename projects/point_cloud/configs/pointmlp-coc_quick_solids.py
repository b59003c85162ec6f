"""A small PointMLP with context clusters on synthetic solids, without a download.

  python tools/train.py projects/point_cloud/configs/pointmlp-coc_quick_solids.py

The clouds are synthetic: ten kinds of solids of random proportions, turned, noisy, partly cut
away. They say whether the model learns, nothing about scans.
"""

_base_ = ['./pointmlp-coc_quick_digits.py']

train_pipeline = [
    dict(type='SamplePoints', num_points=128, how='random', shuffle=True),
    dict(type='CenterPoints'),
    dict(type='RotatePoints', axis='z'),
    dict(type='ScaleShiftPoints', scale=(0.8, 1.25), shift=0.1),
    dict(type='PackPoints'),
]
train_dataloader = dict(
    dataset=dict(
        _delete_=True, type='SyntheticSolids', split='train', per_class=135, pipeline=train_pipeline
    )
)
test_pipeline = _base_.test_pipeline
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='SyntheticSolids',
        split='test',
        per_class=45,
        pipeline=test_pipeline,
        test_mode=True,
    )
)
test_dataloader = val_dataloader
