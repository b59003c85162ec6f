"""CoC-Small as an ImageNet classifier; the recipe's drop path, mixing and smoothing."""

model = dict(
    type='ImageClassifier',
    backbone=dict(type='coc_mm.ContextCluster', arch='small', drop_path_rate=0.1),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=512,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
        # Smooths as timm does: 0.1 / 1000 on every class.
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    # One of the two for every batch, each with probability 0.5 (timm's switch_prob). The
    # original mixes a batch with itself reversed, mmpretrain with a random permutation.
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
