"""What makes a training survive kills: checkpoint storage, hooks and the seed."""

from mmengine.config import Config, ConfigDict
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from coc_mm.compat.atomic_backend import use_atomic_saving
from coc_mm.engine.fault_tolerance.preemption import PreemptionHandler, PreemptionHook
from coc_mm.engine.fault_tolerance.seeding import StepSeedHook
from coc_mm.engine.fault_tolerance.validate_on_resume_hook import ValidateOnResumeHook

__all__ = ['adopt_seed', 'register_fault_tolerance_hooks', 'use_atomic_checkpoints']

_REPLACED = ('CheckpointHook', 'mmengine.CheckpointHook', CheckpointHook)


def use_atomic_checkpoints(config: Config) -> None:
    """Replace mmengine's checkpoint hook in a config, and its local files in this process."""
    use_atomic_saving()
    hooks = config.setdefault('default_hooks', ConfigDict())
    hook = hooks.setdefault('checkpoint', ConfigDict(type='CheckpointHook'))
    if isinstance(hook, dict) and hook.get('type') in _REPLACED:
        hook['type'] = 'coc_mm.AtomicCheckpointHook'


def adopt_seed(config: Config, meta: dict) -> tuple[int, int] | None:
    """Let a resumed run draw from the seed that it was begun with.

    mmengine takes it over after the samplers have been built from the seed of the config, or,
    where that has none, from one newly drawn.

    Args:
        config (Config): Of the runner; changed.
        meta (dict): Of the checkpoint.

    Returns:
        tuple[int, int] | None: The config's and the checkpoint's, where they differ.
    """
    seed = meta.get('seed')
    randomness = dict(config.get('randomness') or {})
    own = randomness.get('seed')
    if seed is None or own == seed:
        return None
    config.randomness = dict(randomness, seed=seed)
    return None if own is None else (own, seed)


def register_fault_tolerance_hooks(runner: Runner, signals: PreemptionHandler) -> None:
    """Register the hooks for random numbers, missed validations and requests to stop."""
    runner.register_hook(StepSeedHook())
    runner.register_hook(ValidateOnResumeHook())
    runner.register_hook(PreemptionHook(signals))
