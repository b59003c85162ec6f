"""Flags that several commands share, and types for those of one."""

import argparse
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

from coc_mm.errors import UserError
from coc_mm.utils.cfg_options import parse_options

_POSITIONALS = {
    'config': 'the config file, or the name of a config of coc_mm',
    'checkpoint': 'the checkpoint file',
    'checkpoint?': 'the checkpoint file; default: no weights',
    'image': 'an image file, or a folder of them',
    'images+': 'images, folders, globs, URLs, videos, or the number of a camera (until Ctrl-C)',
}


def make_parser(description: str, *positionals: str) -> argparse.ArgumentParser:
    """Make a parser, with the positional arguments that several commands have."""
    parser = argparse.ArgumentParser(description=description)
    for name in positionals:
        count = name[-1] if name[-1] in '?+' else None
        parser.add_argument(name.rstrip('?+'), nargs=count, help=_POSITIONALS[name])
    return parser


def at_least(minimum: float, kind: Callable = int) -> Callable[[str], Any]:
    """Make an argument's ``type``: a number that is not smaller."""
    return between(minimum, float('inf'), kind)


def between(minimum: float, maximum: float, kind: Callable = int) -> Callable[[str], Any]:
    """Make an argument's ``type``: a number that is not smaller and not larger."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not minimum <= value <= maximum:
            bounds = f'between {minimum} and {maximum}'
            bounds = f'at least {minimum}' if maximum == float('inf') else bounds
            raise argparse.ArgumentTypeError(f'{bounds}, got {text}')
        return value

    parse.__name__ = kind.__name__  # argparse: "invalid int value: 'x'"
    return parse


class _CfgOptions(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        try:
            options = parse_options(values)
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), **options})


def need_packages(purpose: str, names: Sequence[str]) -> None:
    """Raise a :class:`UserError` that names packages which are not installed."""
    missing = [x for x in names if not importlib.util.find_spec(x.replace('-', '_'))]
    if missing:
        raise UserError(f'{purpose} needs more packages: pip install {" ".join(missing)}')


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``, a dict of dotted keys, or None."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_CfgOptions,
        metavar='KEY=VALUE',
        help='override entries of the config, after every other flag: '
        'model.backbone.arch=small, key="[a,b]", key.0.x=1 for the first of a list; a text with '
        'a comma in quotes of its own: key="\'a, b\'"',
    )


class _Shape(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        if len(values) > 2 or min(values) < self.const:
            raise argparse.ArgumentError(self, f'one or two numbers, at least {self.const}')
        setattr(namespace, self.dest, (values[0], values[-1]))


def add_shape(parser: argparse.ArgumentParser, help: str, minimum: int = 1) -> None:
    """Add ``--shape N [N]``: height and width, or both; a tuple of two, or None."""
    parser.add_argument(
        '--shape', nargs='+', type=int, action=_Shape, const=minimum, metavar='N', help=help
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, a name, or None for what there is."""
    parser.add_argument('--device', help='cpu, cuda, cuda:1; default: cuda if there is one')


def _local_rank(text: str) -> int:
    os.environ.setdefault('LOCAL_RANK', str(int(text)))  # where mmengine looks
    return int(text)


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """Add ``--launcher``, and the rank that ``torch.distributed.launch`` passes."""
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how processes are started; default: none (one process)',
    )
    parser.add_argument(
        '--local-rank',
        '--local_rank',
        type=_local_rank,
        default='0',  # a text, so that argparse passes it through the type
        help='set by the launcher',
    )
