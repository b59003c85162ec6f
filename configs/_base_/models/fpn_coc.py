"""Semantic FPN on CoC-Small for ADE20K, head as in mmseg's ``fpn_r50``."""

data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
    size=(512, 512),
)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=data_preprocessor,
    backbone=dict(
        type='coc_mm.ContextCluster',
        arch='small',
        out_indices=(0, 1, 2, 3),
        # Elsewhere: --cfg-options model.backbone.init_cfg.checkpoint=FILE
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/coc-small_8xb128_in1k.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(type='FPN', in_channels=[64, 128, 320, 512], out_channels=256, num_outs=4),
    decode_head=dict(
        type='FPNHead',
        in_channels=[256, 256, 256, 256],
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=128,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
