"""What a run does to the process and its folders, undone where it ends or fails."""

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import get_world_size
from mmengine.runner import Runner
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from coc_mm.checkpoints.load import use_safe_loading
from coc_mm.compat.cpu_distributed import process_group_on_cpu, use_cpu_wrappers
from coc_mm.compat.picture_names import keep_folders
from coc_mm.compat.results_folder import gather_in_log_dir
from coc_mm.engine import (
    ClassCheckHook,
    PreemptionHook,
    ScheduleOnResumeHook,
    StepSeedHook,
    TrialHook,
    ValidateOnResumeHook,
)
from coc_mm.engine.fault_tolerance.preemption import PreemptionHandler
from coc_mm.errors import UserError, explain, print_rank0
from coc_mm.utils.image_checks import naming_bad_files


@contextmanager
def session(config: Config) -> Iterator[None]:
    """Run a training or a test inside this.

    Checkpoints are read safely, images that cannot be read are named, and what a run wrote
    before a user's mistake ended it is taken back.
    """
    use_safe_loading()
    if config.default_scope == 'mmdet':
        from mmdet.utils import setup_cache_size_limit_of_dynamo

        setup_cache_size_limit_of_dynamo()
    with (
        _leaving_nothing_behind(Path(config.work_dir), Path(config.filename).name),
        _restoring_determinism(),
        naming_bad_files(),
        _recording(),
        _process_group(config),
    ):
        yield


def _process_group(config: Config) -> AbstractContextManager:
    """Start the processes' group where mmengine would not: over gloo, without an accelerator."""
    if config.launcher == 'none' or torch.cuda.is_available() or get_device() != 'cpu':
        return nullcontext()
    print_rank0('several processes: no accelerator here, so they run on the CPU, over gloo.')
    use_cpu_wrappers(config)
    return process_group_on_cpu(config.launcher, config.env_cfg.dist_cfg.timeout)


def build_runner(config: Config, signals: PreemptionHandler | None = None) -> Runner:
    """Build the runner that a config asks for, fault-tolerant where it gets a handler."""
    if 'runner_type' in config:
        from mmengine.registry import RUNNERS, init_default_scope

        init_default_scope(config.default_scope)  # the runner may be one of the library's
        runner = RUNNERS.build(config)
    else:
        runner = Runner.from_cfg(config)
    runner.register_hook(ClassCheckHook())
    if signals is not None:
        hooks = StepSeedHook(), ValidateOnResumeHook(), PreemptionHook(signals)
        for hook in (*hooks, ScheduleOnResumeHook(), TrialHook()):
            runner.register_hook(hook)
    _check_loaders(runner)
    keep_folders(runner)
    gather_in_log_dir(runner)
    return runner


def _check_loaders(runner: Runner) -> None:
    """Let every loader that the runner builds be refused if it gives no batch."""
    build = runner.build_dataloader

    def build_dataloader(given, *args, **kwargs):
        loader = build(given, *args, **kwargs)
        count, batch, processes = len(loader.dataset), loader.batch_size, get_world_size()
        names = [f'{part}_dataloader' for part in ('train', 'val', 'test')]
        name = next((x for x in names if given is getattr(runner, f'_{x}', None)), '')
        if name and not count:
            raise UserError(
                f'{name} has no images that can be used: see its folder, annotation file and '
                'filter_cfg.'
                + (' Or leave validation out: --no-validate.' if 'val' in name else '')
            )
        if name and not len(loader):
            several = f' in each of {processes} processes' if processes > 1 else ''
            raise UserError(
                f'{name} gives no batch: {count} images make no batch of {batch}{several}, and '
                f'incomplete ones are dropped; set {name}.batch_size={max(count // processes, 1)} '
                f'or less, or {name}.drop_last=False.'
            )
        return loader

    runner.build_dataloader = build_dataloader


@contextmanager
def _recording() -> Iterator[None]:
    """Let torchrun show what the process said that failed first."""
    if 'TORCHELASTIC_RUN_ID' not in os.environ:
        yield
        return
    handler = get_error_handler()
    handler.initialize()
    try:
        yield
    except Exception as error:
        handler.record_exception(error)
        raise


@contextmanager
def _leaving_nothing_behind(folder: Path, config_name: str) -> Iterator[None]:
    """Take back what a run wrote if a user's mistake ends it before any checkpoint."""
    missing = [path for path in [folder, *folder.parents] if not path.exists()]
    before = set(folder.iterdir()) if folder.is_dir() else set()
    copy = folder / config_name
    copied = copy.read_bytes() if copy.is_file() else None
    try:
        yield
    except Exception as error:
        if explain(error) is None or int(os.environ.get('RANK', 0)) != 0 or not folder.is_dir():
            raise
        new = [path for path in folder.iterdir() if path not in before]
        if any(path.suffix == '.pth' or any(path.rglob('*.pth')) for path in new):
            raise
        for path in new:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if copied is not None:
            copy.write_bytes(copied)
        for path in missing:  # innermost first
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise


@contextmanager
def _restoring_determinism() -> Iterator[None]:
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
