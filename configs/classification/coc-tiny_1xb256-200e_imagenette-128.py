"""CoC-Tiny (5.3 M parameters) on Imagenette at 128 x 128, from nothing.

Data:  python tools/dataset_converters/prepare.py imagenette
Train: python tools/train.py configs/classification/coc-tiny_1xb256-200e_imagenette-128.py
"""

_base_ = './coc-nano_1xb128-200e_imagenette-128.py'

model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.1),
    head=dict(in_channels=320),
)
train_dataloader = dict(batch_size=256)
auto_scale_lr = dict(base_batch_size=256)
