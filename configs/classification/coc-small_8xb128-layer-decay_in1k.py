"""CoC-Small on ImageNet-1k, with learning rates that fall towards the input.

Train: bash tools/dist_train.sh \\
       configs/classification/coc-small_8xb128-layer-decay_in1k.py 8
GPUs:  8, 128 images each; hours and results are not measured.
"""

_base_ = './coc-small_8xb128_in1k.py'

optim_wrapper = dict(
    constructor='coc_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.8),
)
