"""Your own images in a folder per class, classified by CoC-Small.

Train: python tools/train.py configs/classification/coc-small_1xb64-50e_custom.py \\
       --cfg-options data_root=FOLDER pretrained=CHECKPOINT
Test:  python tools/test.py configs/classification/coc-small_1xb64-50e_custom.py \\
       CHECKPOINT --cfg-options data_root=FOLDER
GPUs:  1, 64 images; the learning rate follows the actual batch.

FOLDER/train/CLASS/*.jpg and FOLDER/val/CLASS/*.jpg, or FOLDER/CLASS/*.jpg alone, of which
a fifth is held out. Settings: data_root, format, ann_file, img_dir, classes, fold, group_by,
val_fraction, arch, pretrained (docs/custom_data.md).
"""

_base_ = ['./coc-small_8xb128_in1k.py', '../_base_/datasets/custom.py']

custom_data = 'class_folders'
data_root = 'data/custom'

model = dict(train_cfg=None)  # no mixing of images
train_dataloader = dict(batch_size=64)
val_dataloader = dict(batch_size=64)
test_dataloader = dict(batch_size=64)
val_evaluator = dict(topk=(1,))
test_evaluator = dict(topk=(1,))

# float32; --amp trains in mixed precision.
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
train_cfg = dict(max_epochs=50)
param_scheduler = [
    dict(type='coc_mm.WarmupLR', start_factor=1e-3, share=0.05, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, convert_to_iter_based=True),
]
auto_scale_lr = dict(enable=True)
