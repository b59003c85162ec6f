"""CoC-Tiny2 on ImageNet-1k, validated by a moving average of the weights.

Train: bash tools/dist_train.sh configs/classification/coc-tiny2_8xb128-ema_in1k.py 8
GPUs:  8, 128 images each; hours and results are not measured.
"""

_base_ = './coc-small_8xb128_in1k.py'

model = dict(backbone=dict(arch='tiny2'), head=dict(in_channels=320))
# As coc-small_8xb128-ema_in1k.py.
custom_hooks = [dict(type='EMAHook', momentum=2e-4, priority='ABOVE_NORMAL')]
