"""CoC-Base of width 96 on ImageNet-1k, validated by a moving average of the weights.

Train: bash tools/dist_train.sh configs/classification/coc-base-dim96_8xb128-ema_in1k.py 8
GPUs:  8, 128 images each; hours and results are not measured.
"""

_base_ = './coc-small_8xb128_in1k.py'

model = dict(backbone=dict(arch='base_dim96'), head=dict(in_channels=768))
# As coc-small_8xb128-ema_in1k.py.
custom_hooks = [dict(type='EMAHook', momentum=2e-4, priority='ABOVE_NORMAL')]
