"""``tools/train.py``: train a model of mmpretrain, mmdet or mmseg."""

import os
import shutil
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.runner import Runner
from torch.distributed.elastic.multiprocessing.errors import record

from coc_mm.apis.amp import cpu_amp_config
from coc_mm.apis.config import load_config, merge_train_args
from coc_mm.apis.deterministic import make_deterministic, restoring_determinism
from coc_mm.apis.failures import explaining_failures
from coc_mm.apis.start import (
    build_model,
    check_pretrained,
    check_weights,
    drop_missing_pretrained,
    is_local,
    pretrained_files,
)
from coc_mm.checkpoints.load import load_checkpoint_safely, use_safe_loading
from coc_mm.cli.options import add_cfg_options, add_launcher, make_parser
from coc_mm.compat.cpu_distributed import name_rank, process_group_on_cpu, use_cpu_wrappers
from coc_mm.compat.results_folder import gather_in_log_dir
from coc_mm.engine.fault_tolerance.preemption import PreemptionHandler
from coc_mm.engine.fault_tolerance.resume import find_latest_checkpoint, verify_checkpoint
from coc_mm.engine.fault_tolerance.setup import (
    adopt_seed,
    register_fault_tolerance_hooks,
    use_atomic_checkpoints,
)
from coc_mm.errors import UserError, explain, print_rank0, run_command
from coc_mm.utils.atomic_io import (
    check_writable,
    remove_partial_files,
)
from coc_mm.utils.image_checks import naming_bad_files

__all__ = ['build_runner', 'leaving_nothing_behind', 'main', 'parse', 'run']


def parse(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the flags, see ``--help``."""
    parser = make_parser('train.py', 'Train a model of mmpretrain, mmdet or mmseg.', 'config')
    parser.add_argument(
        '--work-dir', help='where logs and checkpoints go; default: ./work_dirs/CONFIG_NAME'
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='PATH',
        help='continue from PATH, or without PATH (or with "auto") from the latest complete '
        'checkpoint of the work dir; starts anew where there is none',
    )
    parser.add_argument(
        '--amp', action='store_true', help='mixed precision: float16 on GPU, bfloat16 on CPU'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the actual batch over auto_scale_lr.base_batch_size',
    )
    parser.add_argument(
        '--no-validate', action='store_true', help='do not evaluate during training'
    )
    parser.add_argument(
        '--deterministic',
        action='store_true',
        help='results that repeat bit for bit on the same machine, with the seed of the config, '
        'or 0; slower on GPUs',
    )
    add_cfg_options(parser)
    add_launcher(parser)
    return parser.parse_args(argv)


@contextmanager
def leaving_nothing_behind(work_dir: str, config_path: str) -> Iterator[None]:
    """Take back what a run wrote if a user's mistake ends it before any checkpoint.

    Args:
        work_dir (str): Folder of the run; it need not exist.
        config_path (str): The config, a copy of which the run writes there.
    """
    folder = Path(work_dir)
    missing = [path for path in [folder, *folder.parents] if not path.exists()]
    before = set(folder.iterdir()) if folder.is_dir() else set()
    dump = folder / Path(config_path).name
    dumped = dump.read_bytes() if dump.is_file() else None
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
        if dumped is not None:
            dump.write_bytes(dumped)
        for path in missing:  # innermost first
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise


# What each launcher sets for its processes; mmengine reads these.
_LAUNCHERS = {
    'pytorch': ('torchrun', ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')),
    'slurm': ('srun', ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST')),
    'mpi': (
        'mpirun',
        ('OMPI_COMM_WORLD_LOCAL_RANK', 'OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE'),
    ),
}


def _check_launcher(launcher: str) -> None:
    if launcher not in _LAUNCHERS:
        return
    program, variables = _LAUNCHERS[launcher]
    lacking = [name for name in variables if name not in os.environ]
    if lacking:
        raise UserError(
            f'--launcher {launcher}: the variable {lacking[0]} is not set; start the tool with '
            f'{program}, or leave --launcher out for one process.'
        )
    if get_device() == 'mps':
        raise UserError(
            f'--launcher {launcher}: mmengine runs one process on an Apple GPU; leave --launcher '
            'out.'
        )
    name_rank(launcher)


def _resolve_timeout(config: Config) -> None:
    """Let processes wait for another for 30 minutes, over gloo and NCCL alike.

    torch's default for NCCL is 10, which an evaluation of COCO in one process may take.
    """
    if config.launcher != 'none':
        env_cfg = config.setdefault('env_cfg', ConfigDict())
        env_cfg.setdefault('dist_cfg', ConfigDict()).setdefault('timeout', 1800)


def _processes(config: Config) -> AbstractContextManager:
    """Start the process group where mmengine would not: over gloo, without an accelerator."""
    launcher = config.get('launcher', 'none')
    if launcher == 'none' or torch.cuda.is_available() or get_device() != 'cpu':
        return nullcontext()
    print_rank0('several processes: no accelerator here, so they run on the CPU, over gloo.')
    use_cpu_wrappers(config)
    timeout = ((config.get('env_cfg') or {}).get('dist_cfg') or {}).get('timeout')
    return process_group_on_cpu(launcher, timeout)


def _resolve_amp(config: Config) -> None:
    """Use bfloat16 autocast where there is no accelerator."""
    optim_wrapper = config.get('optim_wrapper')
    if (optim_wrapper or {}).get('type') != 'AmpOptimWrapper':
        return
    if get_device() == 'mps':
        raise UserError('mixed precision: mmengine has none on Apple GPUs; train without --amp.')
    if get_device() == 'cpu':
        cpu_amp_config(optim_wrapper)
        print_rank0(
            'mixed precision: no accelerator here, so bfloat16 on the CPU without loss scaling.'
        )


def _checkpoint_hook(config: Config) -> dict:
    return (config.get('default_hooks') or {}).get('checkpoint') or {}


def _out_dir(config: Config) -> str:
    """Find where the checkpoints of a run go, as mmengine's hook does."""
    hook = _checkpoint_hook(config)
    if hook.get('out_dir') is None or not is_local(str(hook['out_dir'])):
        return config.work_dir
    return os.path.join(hook['out_dir'], os.path.basename(config.work_dir.rstrip(os.sep)))


def _resolve_resume(config: Config, args: Namespace) -> None:
    """Decide what is resumed, now that the work dir is final."""
    if not config.get('resume'):
        return
    named_last = 'load_from' in (args.cfg_options or {})
    automatic = config.get('load_from') is None or (args.resume == 'auto' and not named_last)
    if not automatic:
        return
    template = _checkpoint_hook(config).get('filename_tmpl')
    latest, passed = find_latest_checkpoint(config.work_dir, _out_dir(config), template)
    for reason in passed:
        print_rank0(f'resume: passed over: {reason}')
    if latest is None:
        print_rank0(f'resume: no checkpoint in {config.work_dir}, so training starts anew.')
        config.resume = False
    else:
        print_rank0(f'resume: continuing from {latest}.')
        config.load_from = latest


def _check_start(config: Config) -> None:
    """Check every local checkpoint that a training starts from, before it starts."""
    resume, start = config.get('resume'), config.get('load_from')
    if resume:
        drop_missing_pretrained(config)
    pretrained = pretrained_files(config)
    load = verify_checkpoint if resume else load_checkpoint_safely
    checkpoint = load(start) if start and is_local(start) else None
    if checkpoint is None and not pretrained:
        return
    if checkpoint is not None and resume:
        lacking = [key for key in ('meta', 'message_hub', 'optimizer') if key not in checkpoint]
        if lacking:
            raise UserError(
                f'checkpoint {start} cannot be resumed: it has no {lacking[0]}, only weights.\n'
                f'To start from its weights: --cfg-options load_from={start}'
            )
        differing = adopt_seed(config, checkpoint['meta'])
        if differing:
            print_rank0(
                f'resume: the seed stays {differing[1]}, not {differing[0]} as in the config.'
            )
    model = build_model(config)
    check_pretrained(model, pretrained)
    if checkpoint is not None:
        check_weights(model, checkpoint, start, strict=bool(resume))


def _watch_numbers(config: Config) -> None:
    """Put the watch over losses and gradients into every training, unless it is switched off."""
    hooks = config.setdefault('default_hooks', ConfigDict())
    if 'numbers' in hooks:  # its former name
        hooks.setdefault('nonfinite', hooks.pop('numbers'))
    if 'nonfinite' in hooks and not isinstance(hooks.nonfinite, dict):
        hooks.pop('nonfinite')  # default_hooks.nonfinite=None
    else:
        hooks.setdefault('nonfinite', ConfigDict()).setdefault('type', 'coc_mm.NonFiniteHook')


def _prepare_folders(config: Config) -> None:
    """Refuse folders that take no checkpoint; tidy up after a run that was killed."""
    if int(os.environ.get('RANK', 0)) == 0:
        for folder in {config.work_dir, _out_dir(config)}:
            check_writable(folder)
            remove_partial_files(folder)


def build_runner(config: Config) -> Runner:
    """Build the runner that a config asks for.

    Args:
        config (Config): Merged; ``runner_type`` names another runner than the default.

    Returns:
        Runner: mmengine's, or e.g. a ``FlexibleRunner`` with its strategy.
    """
    if 'runner_type' not in config:
        return Runner.from_cfg(config)
    from mmengine.registry import RUNNERS, init_default_scope

    init_default_scope(config.default_scope)  # the runner may be one of the library's
    return RUNNERS.build(config)


def _prepare_libraries(config: Config) -> None:
    use_safe_loading()
    if config.default_scope == 'mmdet':
        from mmdet.utils import setup_cache_size_limit_of_dynamo

        setup_cache_size_limit_of_dynamo()


def run(argv: Sequence[str] | None = None) -> None:
    """Train what a config describes, as ``tools/train.py`` does.

    Args:
        argv (Sequence[str], optional): Arguments; those of the process if None.

    Raises:
        UserError: The arguments, the config or the data cannot be used.
        SystemExit: With status 75 where SIGTERM or SIGUSR1 stopped the training; it is saved.
    """
    args = parse(argv)
    config = merge_train_args(load_config(args.config, args.cfg_options), args)
    _watch_numbers(config)
    _check_launcher(config.launcher)
    _resolve_timeout(config)
    if args.deterministic:
        make_deterministic(config)
    _prepare_libraries(config)
    _resolve_amp(config)
    use_atomic_checkpoints(config)
    _resolve_resume(config, args)
    folder = config.work_dir
    with (
        leaving_nothing_behind(folder, args.config),
        restoring_determinism(),
        naming_bad_files(),
        explaining_failures(),
        PreemptionHandler() as signals,
    ):
        _prepare_folders(config)
        _check_start(config)
        with _processes(config):
            runner = build_runner(config)
            register_fault_tolerance_hooks(runner, signals)
            gather_in_log_dir(runner)
            train = record(runner.train) if config.launcher == 'pytorch' else runner.train
            train()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return run_command(run, argv)
