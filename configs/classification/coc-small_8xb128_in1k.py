"""CoC-Small on ImageNet-1k.

Train:      bash tools/dist_train.sh configs/classification/coc-small_8xb128_in1k.py 8
GPUs:       8, 128 images each
Hours:
Parameters: 14.7 M; paper: 14.0 (divided by 2^20), 2.6 G multiply-adds
Published:  77.5 % top-1 (paper), 78.1 % (retrained release)
Reproduced:

The recipe of arXiv 2303.01494 and of its code: 310 epochs, AMP, no EMA; the parts say where
mmpretrain differs from timm. Prepare the data with tools/dataset_converters/prepare.py.
"""

_base_ = [
    '../_base_/models/coc_cls.py',
    '../_base_/datasets/imagenet_bs128_coc_224.py',
    '../_base_/schedules/imagenet_bs1024_adamw_310e.py',
    '../_base_/cls_runtime.py',
]
