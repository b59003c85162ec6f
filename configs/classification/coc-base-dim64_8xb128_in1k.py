"""CoC-Base of width 64 on ImageNet-1k.

Train:      bash tools/dist_train.sh configs/classification/coc-base-dim64_8xb128_in1k.py 8
GPUs:       8, 128 images each
Hours:
Parameters: 54.2 M
Published:
Reproduced:

The architecture is in the released code; neither paper nor release give a result.
"""

_base_ = './coc-small_8xb128_in1k.py'

model = dict(backbone=dict(arch='base_dim64'))
