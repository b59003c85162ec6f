"""Runs that repeat bit for bit: what ``tools/train.py --deterministic`` sets."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config, ConfigDict

__all__ = ['make_deterministic', 'restoring_determinism']


def make_deterministic(config: Config) -> None:
    """Let a config ask for results that repeat, in place.

    The seed is the config's, or 0; from it mmengine seeds the process and the workers of the
    data loaders. torch uses deterministic algorithms alone, and cuDNN tries none out.

    Args:
        config (Config): Of a runner.
    """
    # Read when cuBLAS is first used; without it torch refuses matrix products on GPUs.
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    randomness = config.setdefault('randomness', ConfigDict())
    if randomness.get('seed') is None:
        randomness.seed = 0
    # On each process the same seed, or each its own (diff_rank_seed), stays as the config has it.
    randomness.deterministic = True
    config.setdefault('env_cfg', ConfigDict()).cudnn_benchmark = False


@contextmanager
def restoring_determinism() -> Iterator[None]:
    """Give torch's switches back as they were: mmengine sets them for the whole process."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
