"""``tools/test.py``: test a model of mmpretrain, mmdet or mmseg."""

from argparse import Namespace
from collections.abc import Sequence
from functools import partial

from coc_mm.cli.options import add_cfg_options, add_launcher, make_parser
from coc_mm.errors import run_command


def parse(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the flags, see ``--help``."""
    description = 'Test a model of mmpretrain, mmdet or mmseg.'
    parser = make_parser(description, 'config', 'checkpoint')
    add = parser.add_argument
    add('--work-dir', help='where metrics and logs go; default: ./work_dirs/CONFIG_NAME')
    add(
        '--out',
        help='a .pkl, .json or .csv file for the predictions (.json of COCO detectors: '
        'OUT.bbox.json, OUT.segm.json); of mmseg: a folder for the maps (PNG)',
    )
    add('--show', action='store_true', help='show predictions in a window')
    add('--show-dir', help='where to write pictures; relative to the log folder for mmdet')
    add('--wait-time', type=float, default=2, help='seconds a window stays; default: 2')
    add('--tta', action='store_true', help='test-time augmentation')
    add_cfg_options(parser)
    add_launcher(parser)
    return parser.parse_args(argv)


def run(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Test a checkpoint on what a config describes; return the metrics."""
    args = parse(argv)
    from coc_mm.apis.config import load_config
    from coc_mm.apis.resolve import resolve_test
    from coc_mm.apis.session import build_runner, session
    from coc_mm.apis.start import check_test_start

    config = resolve_test(load_config(args.config, args.cfg_options), args)
    check_test_start(config, args.cfg_options or ())
    with session(config):
        return build_runner(config).test()


main = partial(run_command, run)
