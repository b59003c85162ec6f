"""CoC-Medium on ImageNet-1k, weights, gradients and optimizer sharded over the processes (FSDP).

Train: bash tools/dist_train.sh configs/classification/coc-medium_8xb128-fsdp_in1k.py 8
GPUs:  8, 128 images each; hours and results are not measured.

Each ContextClusterBlock is a unit of its own. Checkpoints are whole, as those of other runs:
tools/test.py and init_cfg take them, and a run goes on with another number of processes.
"""

_base_ = './coc-small_8xb128_in1k.py'

model = dict(backbone=dict(arch='medium'))
runner_type = 'FlexibleRunner'
strategy = dict(
    type='coc_mm.engine.fsdp.ResumableFSDPStrategy',
    model_wrapper=dict(auto_wrap_policy='coc_mm.engine.fsdp.wrap_context_cluster_blocks'),
    state_dict_cfg='full',
)
