"""CoC-Tiny with other centers and regions on ImageNet-1k.

Train:      bash tools/dist_train.sh configs/classification/coc-tiny2_8xb128_in1k.py 8
GPUs:       8, 128 images each
Hours:
Parameters: 5.6 M
Published:
Reproduced:

The architecture is in the released code; neither paper nor release give a result.
"""

_base_ = './coc-small_8xb128_in1k.py'

model = dict(backbone=dict(arch='tiny2'), head=dict(in_channels=320))
