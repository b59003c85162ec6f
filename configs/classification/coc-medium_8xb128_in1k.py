"""CoC-Medium on ImageNet-1k.

Train:      bash tools/dist_train.sh configs/classification/coc-medium_8xb128_in1k.py 8
GPUs:       8, 128 images each
Hours:
Parameters: 29.3 M; paper: 27.9 (divided by 2^20), 5.5 G multiply-adds
Published:  81.0 % top-1 (paper), 81.2 % (retrained release)
Reproduced:
"""

_base_ = './coc-small_8xb128_in1k.py'

model = dict(backbone=dict(arch='medium'))
