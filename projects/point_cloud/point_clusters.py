"""``tools/visualization/point_clusters.py``: draw the clusters of a point cloud."""

from functools import partial
from pathlib import Path

from coc_mm.cli.options import at_least, make_parser
from coc_mm.errors import run_command

__all__ = ['main', 'parse', 'run']

_SUFFIXES = ('.png', '.html')


def parse(argv=None):
    """Parse the flags, see ``--help``."""
    parser = make_parser('Color a cloud by its context clusters or by its sampled centers.')
    add = parser.add_argument
    add(
        'cloud',
        help='a .xyz, .npy, .ply or .off file; FILE.h5:I for cloud I of a file; with --config, a '
        'number for that cloud of its test set',
    )
    add(
        '--by',
        type=lambda text: text.replace('centre', 'center'),
        choices=['cluster', 'center'],
        help='cluster: the one that a point is most similar to the center of; center: the '
        'nearest sampled point; default: cluster where there is a checkpoint',
    )
    add('--config', help='the config of a model')
    add('--checkpoint', help='its checkpoint')
    add('--stage', type=int, default=-1, help='of the model; default: the last')
    add('--block', type=int, default=-1, help='of the stage; default: the last')
    add(
        *('--centers', '--centres'),
        type=at_least(1),
        default=64,
        help='without a model: centers to sample; default: 64',
    )
    add('--points', type=at_least(1), default=2048, help='without a model: shown; default: 2048')
    add('--up', choices='xyz', default='z', help='axis that points up; default: z')
    add(
        '--out',
        action='append',
        metavar='FILE',
        help='a .png or .html file, may be given twice; default: both in work_dirs/point_clusters',
    )
    args = parser.parse_args(argv)
    if args.checkpoint and not args.config:
        parser.error('argument --checkpoint: needs the --config of its model')
    if args.by == 'cluster' and not args.checkpoint:
        parser.error("argument --by cluster: clusters are a model's: --config and --checkpoint")
    args.by = args.by or ('cluster' if args.checkpoint else 'center')
    for path in args.out or ():
        if Path(path).suffix.lower() not in _SUFFIXES:
            parser.error(f'argument --out: a .png or .html file, got {path!r}')
    return args


def run(argv=None):
    """Draw a cloud."""
    args = parse(argv)
    from projects.point_cloud.point_cloud.visualization.draw import draw_clusters

    draw_clusters(args)


main = partial(run_command, run)
