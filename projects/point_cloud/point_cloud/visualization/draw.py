"""Read a cloud, group its points and write the pictures."""

from pathlib import Path

from mmengine.registry import DATASETS, DefaultScope

from coc_mm.apis.config import load_config
from coc_mm.apis.start import build_model
from coc_mm.checkpoints.load import check_weights, load_checkpoint_safely, state_dict_of
from coc_mm.errors import print_rank0
from projects.point_cloud.point_cloud.data import SamplePoints, read_h5, read_points
from projects.point_cloud.point_cloud.errors import PointCloudError
from projects.point_cloud.point_cloud.visualization.inspector import (
    color_by_center,
    color_by_cluster,
)
from projects.point_cloud.point_cloud.visualization.pictures import save_html, save_png

__all__ = ['draw_clusters']

_SAVERS = {'.png': save_png, '.html': save_html}


def _from_test_set(config, number):
    with DefaultScope.overwrite_default_scope(config.default_scope):
        dataset = DATASETS.build(config.test_dataloader.dataset)
    if not 0 <= number < len(dataset):
        raise PointCloudError(f'the test set has {len(dataset)} clouds, counted from 0')
    info = dataset.get_data_info(number)
    return info, str(info['name'])


def _read(args, config):
    """Read the cloud that is meant; return a sample and a name."""
    if args.cloud.isdigit():
        if config is None:
            raise PointCloudError(f'cloud {args.cloud} of which test set? Name its --config')
        return _from_test_set(config, int(args.cloud))
    path, _, number = args.cloud.rpartition(':')
    if path.endswith('.h5') and number.isdigit():
        clouds, _ = read_h5(path)
        if int(number) >= len(clouds):
            raise PointCloudError(f'{path} has {len(clouds)} clouds, counted from 0')
        return dict(points=clouds[int(number)]), f'{Path(path).stem}-{number}'
    if args.cloud.endswith('.h5'):
        raise PointCloudError(f'{args.cloud} holds many clouds; name one, {args.cloud}:0')
    return dict(points=read_points(args.cloud)), Path(args.cloud).stem


def _prepare(sample, config, points):
    """Pass a cloud through the config's test pipeline, or take as many points as are shown."""
    if config is None:
        if len(sample['points']) > points:
            sample = SamplePoints(points, how='farthest')(sample)
        return sample['points']
    from mmcv.transforms import Compose

    pipeline = config.test_dataloader.dataset.pipeline
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return Compose(pipeline)(sample)['inputs'].numpy()


def _load(config, checkpoint):
    model = build_model(config)
    if checkpoint:
        content = load_checkpoint_safely(checkpoint)
        check_weights(model, content, checkpoint, strict=True)
        model.load_state_dict(state_dict_of(content, checkpoint), strict=False)
    return model.eval()


def draw_clusters(args):
    """Draw a cloud as the flags of ``projects.point_cloud.point_clusters`` say."""
    config = load_config(args.config) if args.config else None
    sample, name = _read(args, config)
    points = _prepare(sample, config, args.points)
    model = _load(config, args.checkpoint) if config is not None else None
    if args.by == 'cluster':
        cloud = color_by_cluster(points, model, args.stage, args.block)
    else:
        cloud = color_by_center(points, min(args.centers, len(points)), model, args.stage)
    what = f'{len(cloud.centers)} ' + ('clusters' if args.by == 'cluster' else 'sampled centers')
    where = f', stage {args.stage}' if model is not None else ''
    title = f'{name}: {len(points)} points by {what}{where}'
    stem = (
        Path('work_dirs/point_clusters') / f'{name.replace(" ", "-").replace("/", "-")}-{args.by}'
    )
    for path in args.out or [f'{stem}{suffix}' for suffix in _SAVERS]:
        _SAVERS[Path(path).suffix.lower()](cloud, path, title, args.up)
        print_rank0(f'wrote {path}')
