import pytest
from mmengine.config import Config

from coc_mm.apis.values import check_values
from coc_mm.errors import UserError


@pytest.mark.parametrize(
    ('option', 'value'),
    [
        ('train_cfg.val_interval', 0),
        ('train_cfg.max_epochs', 1.5),
        ('default_hooks.logger.interval', 0),
        ('default_hooks.checkpoint.interval', 0),
        ('optim_wrapper.accumulative_counts', 0),
        ('optim_wrapper.optimizer.lr', 'abc'),
        ('train_dataloader.batch_size', True),
        ('val_dataloader.num_workers', -1),
        ('train_cfg.val_begin', 'abc'),
        ('default_hooks.checkpoint.max_keep_ckpts', 'abc'),
        ('optim_wrapper.clip_grad.max_norm', 'abc'),
        ('auto_scale_lr.base_batch_size', 0),
        ('randomness.seed', -1),
        ('train_dataloader.prefetch_factor', 0),
    ],
)
def test_values_that_mmengine_refuses_late(option, value):
    config = Config()
    config.merge_from_dict({option: value})
    with pytest.raises(UserError, match=rf'{option} is {value!r}; a .*number'):
        check_values(config)


def test_values_that_it_takes():
    config = Config(dict(train_cfg=dict(by_epoch=True, max_epochs=2), val_dataloader=None))
    options = ('default_hooks.checkpoint.interval', 'train_dataloader.num_workers')
    config.merge_from_dict({option: value for option, value in zip(options, (-1, 0), strict=True)})
    config.merge_from_dict({'optim_wrapper.optimizer.lr': 0})
    check_values(config)
    config.train_cfg.by_epoch = False
    with pytest.raises(UserError, match='by_epoch=False and max_epochs'):
        check_values(config)


@pytest.mark.parametrize(
    ('config', 'says'),
    [
        (dict(load_from=5), 'load_from is 5; the path'),
        (dict(resume='x.pth'), "resume is 'x.pth'; known are True"),
        (dict(launcher='foo'), "launcher is 'foo'; known are none, pytorch"),
        (dict(log_level='foo'), "log_level is 'foo'; known are CRITICAL"),
        (dict(train_cfg=dict(by_epoch=True, type='X')), 'has by_epoch and type'),
        (dict(val_dataloader=dict(dataset=None)), 'val_dataloader.dataset is None'),
        (dict(val_dataloader=dict(batch_size=None)), 'val_dataloader.batch_size is None'),
        (dict(param_scheduler=dict(T_max=0)), 'T_max is 0; a whole number of at least 1'),
        (dict(param_scheduler=[dict(step_size=0)]), 'step_size is 0'),
        (dict(param_scheduler=[dict(milestones=5)]), 'milestones is 5; a list'),
        (dict(param_scheduler=[dict(start_factor=0)]), 'start_factor is 0; a number above 0'),
        (dict(val_dataloader=dict(dataset=dict(type='X', pipeline=[]))), 'pipeline of X is empty'),
        (dict(train_dataloader=dict(shuffle='abc')), "shuffle is 'abc'; True or False"),
        (dict(optim_wrapper=dict(clip_grad=dict(norm=1))), 'clip_grad.norm is not known'),
    ],
)
def test_what_else_is_named(config, says):
    with pytest.raises(UserError, match=says):
        check_values(Config(config))
