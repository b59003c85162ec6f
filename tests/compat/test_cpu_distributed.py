"""Several processes on CPUs: wrappers of models, ranks of Slurm."""

import os

from mmengine.config import Config

from coc_mm.compat.cpu_distributed import name_rank, use_cpu_wrappers


def test_wrappers_for_the_cpu():
    config = Config(dict(find_unused_parameters=True))
    use_cpu_wrappers(config)
    assert config.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=True,
        device_ids=None,
    )
    norm = dict(type='SyncBN', requires_grad=True)
    config = Config(dict(model=dict(heads=[dict(norm_cfg=norm)], norm_cfg=norm), sync_bn='torch'))
    use_cpu_wrappers(config)
    assert config.model.norm_cfg.type == config.model.heads[0].norm_cfg.type == 'BN'
    assert 'sync_bn' not in config
    config = Config(dict(model_wrapper_cfg=dict(type='Own', a=1)))
    use_cpu_wrappers(config)
    assert config.model_wrapper_cfg == dict(type='Own', a=1, device_ids=None)
    config = Config(dict(strategy=dict(type='FSDPStrategy', model_wrapper=dict(a=1))))
    use_cpu_wrappers(config)
    assert config.strategy.model_wrapper == dict(a=1, device_id='cpu')
    config = Config(dict(strategy=dict(type='DDPStrategy')))
    use_cpu_wrappers(config)
    assert config.strategy.model_wrapper == dict(broadcast_buffers=False, device_ids=None)


def test_ranks_of_slurm_are_known_early(monkeypatch):
    """Before the group exists: one process speaks, and one cleans up."""
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setenv('SLURM_PROCID', '3')
    name_rank('pytorch')
    assert os.environ['RANK'] == '0'
    name_rank('slurm')
    assert os.environ['RANK'] == '3'
