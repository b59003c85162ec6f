"""The flags of ``tools/train.py``, ``tools/test.py`` and ``tools/infer.py``, and their remarks."""

import argparse
import os
from collections.abc import Sequence

from mmengine.config import DictAction

__all__ = [
    'parse_infer',
    'parse_test',
    'parse_train',
]


class _Options(DictAction):
    """``DictAction`` that refuses a pair without ``=`` as a usage error."""

    def __call__(self, parser, namespace, values, option_string=None):
        for pair in values:
            if '=' not in pair or pair.startswith('='):
                raise argparse.ArgumentError(self, f'expected KEY=VALUE, got {pair!r}')
        try:
            super().__call__(parser, namespace, values, option_string)
        except (AssertionError, ValueError) as error:  # unbalanced brackets in a value
            raise argparse.ArgumentError(self, str(error)) from None
        except RecursionError:  # mmengine's answer to a call such as dict(a=1) in a value
            raise argparse.ArgumentError(
                self, f'lists, tuples, numbers and text alone can be given here, not {values}'
            ) from None


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_Options,
        metavar='KEY=VALUE',
        help='override entries of the config, after every other flag: '
        'model.backbone.arch=small, key="[a,b]", key.0.x=1 for the first of a list',
    )


def _add_launcher(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how processes are started; default: none (one process)',
    )
    # torch.distributed.launch passes --local-rank, its forerunner --local_rank.
    parser.add_argument(
        '--local-rank', '--local_rank', type=int, default=0, help='set by the launcher'
    )


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    args = parser.parse_args(argv)
    if 'local_rank' in args:
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def parse_train(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of ``tools/train.py``.

    Args:
        argv (Sequence[str], optional): Arguments; those of the process if None.

    Returns:
        argparse.Namespace: ``config work_dir resume amp auto_scale_lr no_validate
        deterministic cfg_options launcher local_rank``.

    Raises:
        SystemExit: With status 2 and the usage on stderr.
    """
    parser = argparse.ArgumentParser(
        prog='train.py', description='Train a model of mmpretrain, mmdet or mmseg.'
    )
    parser.add_argument('config', help='the config file')
    parser.add_argument(
        '--work-dir', help='where logs and checkpoints go; default: ./work_dirs/CONFIG_NAME'
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='PATH',
        help='continue from PATH, or without PATH (or with "auto") from the newest whole '
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
    _add_common(parser)
    _add_launcher(parser)
    return _parse(parser, argv)


def parse_test(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of ``tools/test.py``.

    Args:
        argv (Sequence[str], optional): Arguments; those of the process if None.

    Returns:
        argparse.Namespace: ``config checkpoint work_dir out show show_dir wait_time
        tta cfg_options launcher local_rank``.

    Raises:
        SystemExit: With status 2 and the usage on stderr.
    """
    parser = argparse.ArgumentParser(
        prog='test.py', description='Test a model of mmpretrain, mmdet or mmseg.'
    )
    parser.add_argument('config', help='the config file')
    parser.add_argument('checkpoint', help='the checkpoint file')
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
    _add_common(parser)
    _add_launcher(parser)
    return _parse(parser, argv)


def parse_infer(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of ``tools/infer.py``.

    Args:
        argv (Sequence[str], optional): Arguments; those of the process if None.

    Returns:
        argparse.Namespace: ``image config checkpoint out_dir device topk score_thr
        cfg_options``.

    Raises:
        SystemExit: With status 2 and the usage on stderr.
    """
    parser = argparse.ArgumentParser(
        prog='infer.py', description='Predict on an image, or on the images of a folder.'
    )
    parser.add_argument('image', help='an image file, or a folder of them')
    parser.add_argument('config', help='the config file')
    parser.add_argument('checkpoint', help='the checkpoint file')
    parser.add_argument(
        '--out-dir', help='where pictures go; default: ./work_dirs/CONFIG_NAME/infer'
    )
    parser.add_argument('--device', help='cpu, cuda, cuda:1; default: cuda if there is one')
    parser.add_argument(
        '--topk', type=int, default=5, help='classification: classes to print; default: 5'
    )
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='detection: least score shown; default: 0.3'
    )
    _add_common(parser)
    args = _parse(parser, argv)
    if args.topk < 1:
        parser.error(f'argument --topk: at least 1, got {args.topk}')
    if not 0 <= args.score_thr <= 1:
        parser.error(f'argument --score-thr: between 0 and 1, got {args.score_thr}')
    return args
