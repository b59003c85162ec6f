"""CoC-Tiny without regions on ImageNet-1k.

Train:      bash tools/dist_train.sh configs/classification/coc-tiny-plain_8xb128_in1k.py 8
GPUs:       8, 128 images each
Hours:
Parameters: 5.6 M
Published:  73.8 % top-1 (retrained release)
Reproduced:
"""

_base_ = './coc-small_8xb128_in1k.py'

model = dict(backbone=dict(arch='tiny_plain'), head=dict(in_channels=320))
