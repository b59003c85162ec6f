"""The checkpoint hook of every run is the one that writes atomically."""

from mmengine.config import Config

from coc_mm.engine.fault_tolerance import atomic_checkpoint_hook


def test_the_checkpoint_hook_of_every_run_is_ours(monkeypatch):
    from mmengine.hooks import CheckpointHook

    monkeypatch.setattr(atomic_checkpoint_hook, 'use_atomic_saving', lambda: None)
    ours = 'coc_mm.AtomicCheckpointHook'
    for hook in ('CheckpointHook', 'mmengine.CheckpointHook', CheckpointHook):
        config = Config(dict(default_hooks=dict(checkpoint=dict(type=hook, interval=3))))
        atomic_checkpoint_hook.use_atomic_checkpoints(config)
        assert config.default_hooks.checkpoint == dict(type=ours, interval=3)
    for given in (dict(), dict(default_hooks={})):
        config = Config(given)
        atomic_checkpoint_hook.use_atomic_checkpoints(config)
        assert config.default_hooks.checkpoint == dict(type=ours)
    for hook in (None, dict(type='Own')):
        config = Config(dict(default_hooks=dict(checkpoint=hook)))
        atomic_checkpoint_hook.use_atomic_checkpoints(config)
        assert config.default_hooks.checkpoint == hook
