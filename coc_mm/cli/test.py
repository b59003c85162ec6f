"""``tools/test.py``: test a model of mmpretrain, mmdet or mmseg."""

from argparse import Namespace
from collections.abc import Sequence

from mmengine.config import Config

from coc_mm.apis.config import load_config, merge_test_args
from coc_mm.apis.failures import explaining_failures
from coc_mm.apis.start import build_model
from coc_mm.checkpoints.load import check_weights, is_local, load_checkpoint_safely
from coc_mm.cli.options import add_cfg_options, add_launcher, make_parser
from coc_mm.cli.train import (
    _check_launcher,
    _prepare_libraries,
    _processes,
    _resolve_timeout,
    build_runner,
    leaving_nothing_behind,
)
from coc_mm.compat.results_folder import gather_in_log_dir
from coc_mm.errors import run_command
from coc_mm.utils.image_checks import naming_bad_files

__all__ = ['main', 'parse', 'run']


def parse(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the flags, see ``--help``."""
    parser = make_parser(
        'test.py', 'Test a model of mmpretrain, mmdet or mmseg.', 'config', 'checkpoint'
    )
    parser.add_argument(
        '--work-dir', help='where metrics and logs go; default: ./work_dirs/CONFIG_NAME'
    )
    parser.add_argument(
        '--out',
        help='mmpretrain and mmdet: the .pkl file for the predictions; '
        'mmseg: the folder for the predicted maps (PNG)',
    )
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument(
        '--show-dir', help='where to write pictures; relative to the log folder for mmdet'
    )
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds a window stays; default: 2'
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    add_cfg_options(parser)
    add_launcher(parser)
    return parser.parse_args(argv)


def run(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Test a checkpoint on what a config describes, as ``tools/test.py`` does.

    Args:
        argv (Sequence[str], optional): Arguments; those of the process if None.

    Returns:
        dict[str, float]: The metrics.

    Raises:
        UserError: The arguments, the config, the checkpoint or the data cannot be used.
    """
    args = parse(argv)
    config = merge_test_args(load_config(args.config, args.cfg_options), args)
    _check_launcher(config.launcher)
    _resolve_timeout(config)
    _prepare_libraries(config)
    with (
        leaving_nothing_behind(config.work_dir, args.config),
        naming_bad_files(),
        explaining_failures(),
    ):
        start = config.load_from
        if is_local(start):
            checkpoint = load_checkpoint_safely(start)
            check_weights(build_model(_without_tta(config)), checkpoint, start, strict=True)
            del checkpoint
        with _processes(config):
            runner = build_runner(config)
            if args.out and config.default_scope != 'mmseg':
                runner.test_evaluator.metrics.append(_dump_metric(config.default_scope, args.out))
            gather_in_log_dir(runner)
            return runner.test()


def _without_tta(config: Config) -> Config:
    """Give the config of the model itself, the one that checkpoints are of."""
    module = config.model.get('module')
    if module is None:
        return config
    inner = Config(dict(model=module, default_scope=config.default_scope))
    if config.get('data_preprocessor') is not None:
        inner.data_preprocessor = config.data_preprocessor
    return inner


def _dump_metric(scope: str, out: str):
    if scope == 'mmdet':
        from mmdet.evaluation import DumpDetResults

        return DumpDetResults(out_file_path=out)
    from mmengine.evaluator import DumpResults

    return DumpResults(out_file_path=out)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return run_command(run, argv)
