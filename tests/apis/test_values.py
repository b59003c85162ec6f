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
