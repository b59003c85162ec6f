"""``tools/train.py``: train a model of mmpretrain, mmdet or mmseg."""

import os
import shlex
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from coc_mm.cli.options import add_cfg_options, add_launcher, make_parser
from coc_mm.errors import print_rank0, run_command


def parse(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the flags, see ``--help``."""
    parser = make_parser('Train a model of mmpretrain, mmdet or mmseg.', 'config')
    add = parser.add_argument
    add('--work-dir', help='where logs and checkpoints go; default: ./work_dirs/CONFIG_NAME')
    resume = 'continue from PATH, or from the latest complete checkpoint of the work dir, if any'
    add('--resume', nargs='?', const='auto', metavar='PATH', help=resume)
    add('--amp', action='store_true', help='mixed precision: float16 on GPU, bfloat16 on CPU')
    scale = 'scale the learning rate by the actual batch over auto_scale_lr.base_batch_size'
    add('--auto-scale-lr', action='store_true', help=scale)
    add('--no-validate', action='store_true', help='do not evaluate during training')
    repeat = 'results that repeat bit for bit on the same machine; slower on GPUs'
    show = 'write a sheet of training images with their labels into the work dir, and stop'
    add('--show-data', action='store_true', help=show)
    add('--deterministic', action='store_true', help=repeat)
    add_cfg_options(parser)
    add_launcher(parser)
    return parser.parse_args(argv)


def run(argv: Sequence[str] | None = None) -> None:
    """Train what a config describes."""
    args = parse(argv)
    from coc_mm.apis.config import load_config
    from coc_mm.apis.resolve import resolve_train
    from coc_mm.apis.session import build_runner, session
    from coc_mm.apis.start import check_start
    from coc_mm.compat.malloc import keep_freed_memory
    from coc_mm.engine.fault_tolerance.preemption import PreemptionHandler

    if argv is None:  # a process that trains and ends
        keep_freed_memory()
    config = resolve_train(load_config(args.config, args.cfg_options), args)
    if args.show_data:
        with session(config):
            return _show_data(config)
    with PreemptionHandler() as signals:
        check_start(config, args.cfg_options or ())
        with session(config):
            if config.get('custom_data') and not config.get('resume'):
                _show_data(config)
            runner = build_runner(config, signals)
            runner.train()
            _say_next(runner)


def _show_data(config: Any) -> None:
    from coc_mm.visualization.data_sheet import save_data_sheet

    if int(os.environ.get('RANK', 0)) == 0:
        path = save_data_sheet(config, Path(config.work_dir, 'training_data.png'))
        print_rank0(f'training images with their labels: {path}')


def _say_next(runner: Any) -> None:
    """Print the best score, where it is, and the commands that use it."""
    info = runner.message_hub.runtime_info
    if not (checkpoint := info.get('best_ckpt') or info.get('last_ckpt')):
        return
    if 'best_score' in info:
        print_rank0(f'best score: {info["best_score"]:.4g}')
    paths = Path(runner.work_dir, Path(runner.cfg.filename).name), checkpoint
    both = ' '.join(shlex.quote(os.path.relpath(path)) for path in paths)
    print_rank0(f'next: coc test {both}\n      coc infer IMAGE {both}')


main = partial(run_command, run)
