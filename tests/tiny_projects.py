"""Data sets of a few small images with a config each, for one library at a time."""

import json
from pathlib import Path

import numpy as np
from mmengine.utils import ManagerMixin
from PIL import Image, ImageDraw

SCOPES = ('mmpretrain', 'mmdet', 'mmseg')

ARCH = dict(
    depths=(1, 1, 1, 1),
    dims=(8, 16, 16, 16),
    mlp_ratios=(2, 2, 2, 2),
    heads=(2, 2, 2, 2),
    head_dim=8,
    proposals=(2, 2, 2, 2),
    folds=(2, 2, 1, 1),
)

RUNTIME = """
default_scope = '{scope}'
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=1),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='{visualization}'),
)
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
randomness = dict(seed=0)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.01))
auto_scale_lr = dict(base_batch_size=16)
train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
val_cfg = dict()
test_cfg = dict()
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='{visualizer}', vis_backends=vis_backends, name='visualizer')
backbone = dict(
    type='coc_mm.ContextCluster', arch={arch}, out_indices={out_indices})


def loader(dataset, batch_size=2, shuffle=False):
    return dict(
        batch_size=batch_size,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=shuffle),
        dataset=dataset,
    )
"""

CLASSIFICATION = """
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[127] * 3, std=[64] * 3, num_classes=2, to_rgb=True),
    backbone=backbone,
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=16, topk=(1, )),
)
train_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
test_pipeline = train_pipeline
train_dataloader = loader(
    dict(type='CustomDataset', data_root='{data}', pipeline=train_pipeline), shuffle=True)
val_dataloader = loader(
    dict(type='CustomDataset', data_root='{data}', pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_evaluator = val_evaluator
"""

DETECTION = """
metainfo = dict(classes=('disc', 'box'), palette=[(255, 0, 0), (0, 255, 0)])
regions = dict(
    type='SingleRoIExtractor', out_channels=8, featmap_strides=[4, 8, 16, 32],
    roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0))
proposals = dict(
    nms_pre=50, max_per_img=20, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0)
rcnn_train = dict(
    assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5),
    sampler=dict(type='RandomSampler', num=16, pos_fraction=0.5),
    mask_size=14, pos_weight=-1, debug=False)
model = dict(
    type='MaskRCNN',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[127] * 3, std=[64] * 3, pad_mask=True,
        pad_size_divisor=32),
    backbone=backbone,
    neck=dict(type='FPN', in_channels=[8, 16, 16, 16], out_channels=8, num_outs=4),
    rpn_head=dict(
        type='RPNHead', in_channels=8, feat_channels=8,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[4], ratios=[1.0], strides=[4, 8, 16, 32]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
        loss_bbox=dict(type='L1Loss')),
    roi_head=dict(
        type='StandardRoIHead',
        bbox_roi_extractor=regions,
        bbox_head=dict(
            type='Shared2FCBBoxHead', in_channels=8, fc_out_channels=16, roi_feat_size=7,
            num_classes=2, bbox_coder=dict(type='DeltaXYWHBBoxCoder'), reg_class_agnostic=False,
            loss_cls=dict(type='CrossEntropyLoss'), loss_bbox=dict(type='L1Loss')),
        mask_roi_extractor=regions,
        mask_head=dict(
            type='FCNMaskHead', num_convs=1, in_channels=8, conv_out_channels=8, num_classes=2,
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True))),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(
                type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3),
            sampler=dict(type='RandomSampler', num=16, pos_fraction=0.5,
                         add_gt_as_proposals=False),
            allowed_border=-1, pos_weight=-1, debug=False),
        rpn_proposal=proposals,
        rcnn=rcnn_train),
    test_cfg=dict(
        rpn=proposals,
        rcnn=dict(
            score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=5,
            mask_thr_binary=0.5)),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=(
        'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
data = dict(
    type='CocoDataset', data_root='{data}', ann_file='annotations.json',
    data_prefix=dict(img='images/'), metainfo=metainfo)
train_dataloader = loader(dict(pipeline=train_pipeline, **data), shuffle=True)
val_dataloader = loader(dict(pipeline=test_pipeline, test_mode=True, **data), batch_size=1)
test_dataloader = val_dataloader
val_evaluator = dict(
    type='CocoMetric', ann_file='{data}/annotations.json', metric=['bbox', 'segm'])
test_evaluator = val_evaluator
"""

SEGMENTATION = """
metainfo = dict(
    classes=('ground', 'disc', 'box'), palette=[[0, 0, 0], [255, 0, 0], [0, 255, 0]])
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[127] * 3, std=[64] * 3, size=(64, 64), pad_val=0,
        seg_pad_val=255),
    backbone=backbone,
    neck=dict(type='FPN', in_channels=[8, 16, 16, 16], out_channels=8, num_outs=4),
    decode_head=dict(
        type='FPNHead', in_channels=[8, 8, 8, 8], in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32], channels=8, num_classes=3, norm_cfg=dict(type='BN'),
        loss_decode=dict(type='CrossEntropyLoss')),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64), keep_ratio=False),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
tta_model = dict(type='SegTTAModel')
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='TestTimeAug', transforms=[
        [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
        [dict(type='LoadAnnotations')],
        [dict(type='PackSegInputs')],
    ]),
]
data = dict(
    type='BaseSegDataset', data_root='{data}', img_suffix='.png', seg_map_suffix='.png',
    data_prefix=dict(img_path='images', seg_map_path='maps'), metainfo=metainfo)
train_dataloader = loader(dict(pipeline=train_pipeline, **data), shuffle=True)
val_dataloader = loader(dict(pipeline=test_pipeline, **data), batch_size=1)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
"""

_NAMES = {
    'mmpretrain': ('VisualizationHook', 'UniversalVisualizer', CLASSIFICATION, (3,)),
    'mmdet': ('DetVisualizationHook', 'DetLocalVisualizer', DETECTION, (0, 1, 2, 3)),
    'mmseg': ('SegVisualizationHook', 'SegLocalVisualizer', SEGMENTATION, (0, 1, 2, 3)),
}


def forget_singletons() -> None:
    """Drop loggers, visualizers and scopes, which mmengine keeps for a whole process."""
    kinds = [ManagerMixin]
    while kinds:
        kind = kinds.pop()
        kinds.extend(kind.__subclasses__())
        for instance in kind._instance_dict.values():
            for handler in getattr(instance, 'handlers', ()):
                handler.close()  # the log file
        kind._instance_dict.clear()


def write_project(folder: Path, scope: str) -> Path:
    """Write data and a config into a folder; return the config."""
    data = folder / 'data'
    {'mmpretrain': _write_classes, 'mmdet': _write_coco, 'mmseg': _write_maps}[scope](data)
    visualization, visualizer, task, out_indices = _NAMES[scope]
    runtime = RUNTIME.replace('{scope}', scope).replace('{visualization}', visualization)
    runtime = runtime.replace('{visualizer}', visualizer).replace('{arch}', repr(ARCH))
    runtime = runtime.replace('{out_indices}', repr(out_indices))
    config = folder / f'tiny_{scope}.py'
    config.write_text(runtime + task.replace('{data}', str(data)))
    return config


def _draw(index: int, size: int = 64):
    """Draw a disc and a box on noise; return the image and the two boxes (x, y, w, h)."""
    rng = np.random.default_rng(index)
    image = Image.fromarray(rng.integers(0, 90, (size, size, 3), dtype=np.uint8))
    x, y = (int(v) for v in rng.integers(2, 14, 2))
    boxes = [(x, y, 16, 16), (x + 26, y + 26, 20, 20)]
    return image, boxes


def _paint(canvas, boxes, colors):
    draw = ImageDraw.Draw(canvas)
    for (x, y, w, h), color, shape in zip(boxes, colors, ('ellipse', 'rectangle'), strict=True):
        getattr(draw, shape)((x, y, x + w, y + h), fill=color)
    return canvas


_COLORS = [(250, 60, 60), (60, 250, 60)]


def _write_classes(data: Path) -> None:
    for label, name in enumerate(('disc', 'box')):
        (data / name).mkdir(parents=True)
        for index in range(2):
            image, boxes = _draw(index, 32)
            _paint(image, boxes, [_COLORS[label]] * 2).save(data / name / f'{index}.png')


def _write_coco(data: Path) -> None:
    (data / 'images').mkdir(parents=True)
    images, annotations = [], []
    for index in range(2):
        image, boxes = _draw(index)
        _paint(image, boxes, _COLORS).save(data / 'images' / f'{index}.png')
        images.append(dict(id=index, file_name=f'{index}.png', width=64, height=64))
        for label, (x, y, w, h) in enumerate(boxes):
            outline = [x, y, x + w, y, x + w, y + h, x, y + h]
            entry = dict(id=len(annotations), image_id=index, category_id=label, iscrowd=0)
            entry.update(bbox=[x, y, w, h], area=w * h, segmentation=[outline])
            annotations.append(entry)
    categories = [dict(id=0, name='disc'), dict(id=1, name='box')]
    content = dict(images=images, annotations=annotations, categories=categories)
    (data / 'annotations.json').write_text(json.dumps(content))


def _write_maps(data: Path) -> None:
    for name in ('images', 'maps'):
        (data / name).mkdir(parents=True)
    for index in range(2):
        image, boxes = _draw(index)
        _paint(image, boxes, _COLORS).save(data / 'images' / f'{index}.png')
        _paint(Image.new('L', (64, 64)), boxes, [1, 2]).save(data / 'maps' / f'{index}.png')
