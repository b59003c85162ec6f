"""UPerNet on CoC-Small, ADE20K, 80k steps.

Train: bash tools/dist_train.sh \\
       configs/segmentation/upernet_coc-s-c4_4xb4-80k_ade20k-512x512.py 4
GPUs:  4, 4 images each; hours and results are not measured.
"""

_base_ = [
    '../_base_/models/upernet_coc.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/ade20k_80k_adamw.py',
    '../_base_/seg_runtime.py',
]
