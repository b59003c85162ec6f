"""The hook within a Runner, in all three libraries."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image
from tiny_projects import SCOPES, write_project

from coc_mm.visualization.hook import ClusterVisualizationHook


def build_runner(folder, scope, hooks, **changes):
    config = Config.fromfile(write_project(folder, scope))
    config.work_dir = str(folder / 'run')
    config.experiment_name = f'{folder.name}_{scope}_{len(hooks)}'
    config.visualizer.name = config.experiment_name  # mmengine keeps visualizers by name
    config.custom_hooks = hooks
    config.train_cfg.max_epochs = 2
    config.default_hooks.checkpoint.interval = -1
    config.val_cfg = config.val_cfg if changes.pop('validate', True) else None
    if config.val_cfg is None:
        config.val_dataloader = config.val_evaluator = None
    else:
        config.train_cfg.val_interval = 99
    config.merge_from_dict(changes)
    return Runner.from_cfg(config)


@pytest.mark.parametrize('scope', SCOPES)
def test_pictures_appear_and_training_is_not_disturbed(scope, tmp_path):
    pytest.importorskip(scope)
    weights = []
    for name in ('plain', 'watched'):
        folder = tmp_path / name
        folder.mkdir()
        hook = dict(type='coc_mm.ClusterVisualizationHook', interval=2, indices=[0, 1])
        runner = build_runner(
            folder,
            scope,
            [hook] if name == 'watched' else [],
            **{'model.backbone.drop_path_rate': 0.3, 'model.backbone.drop_rate': 0.1},
        )
        runner.train()
        weights.append({k: v.clone() for k, v in runner.model.state_dict().items()})
        drawn = sorted(path.name for path in folder.rglob('clusters_*.png'))
        if name == 'plain':
            assert drawn == []
    assert drawn == [f'clusters_{i}_{step}.png' for i in (0, 1) for step in (0, 2)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    # The input with its red disc, then four stages, left to right.
    (path,) = folder.rglob('clusters_0_2.png')
    picture = np.asarray(Image.open(path).convert('RGB')).astype(int)
    assert picture.shape[1] > 4.5 * picture.shape[0]
    input_tile = picture[:, : picture.shape[1] // 5]
    red = (input_tile[..., 0] > 220) & (input_tile[..., 1:] < 100).all(-1)
    blue = (input_tile[..., 2] > 220) & (input_tile[..., :2] < 100).all(-1)
    if scope != 'mmpretrain':  # whose first image shows a green disc
        assert red.sum() > 200
    assert blue.sum() == 0


def test_iterations_and_selection(tmp_path):
    pytest.importorskip('mmpretrain')
    hook = dict(
        type='coc_mm.ClusterVisualizationHook', interval=3, by_epoch=False, indices=[2],
        stage=1, block=-1, head=1, at_start=False, height=64,
    )  # fmt: skip
    build_runner(tmp_path, 'mmpretrain', [hook]).train()  # 2 epochs of 2 steps
    drawn = sorted(tmp_path.rglob('clusters_*.png'))
    assert [path.name for path in drawn] == ['clusters_0_3.png']
    width, height = Image.open(drawn[0]).size
    assert 64 < height < 130
    assert width < 2.5 * height  # the input and one stage


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(stage=4), 'stages 0 to 3'),
        (dict(head=2), 'heads 0 to 1'),
        (dict(block=1), 'blocks only 0'),
        (dict(indices=[0, 4]), r'indices \[4\].*images 0 to 3'),
    ],
)
def test_what_the_model_or_data_lack_stops_before_training(options, message, tmp_path):
    pytest.importorskip('mmpretrain')
    hook = dict(type='coc_mm.ClusterVisualizationHook', **options)
    runner = build_runner(tmp_path, 'mmpretrain', [hook])
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert runner.iter == 0


def test_without_validation_or_epochs(tmp_path):
    pytest.importorskip('mmpretrain')
    hook = dict(type='coc_mm.ClusterVisualizationHook')
    (tmp_path / 'a').mkdir()
    runner = build_runner(tmp_path / 'a', 'mmpretrain', [hook], validate=False)
    with pytest.raises(ValueError, match='no val_dataloader'):
        runner.train()
    (tmp_path / 'b').mkdir()
    loop = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=2, val_interval=99)
    runner = build_runner(tmp_path / 'b', 'mmpretrain', [hook], train_cfg=loop)
    with pytest.raises(ValueError, match='by_epoch=False'):
        runner.train()


@pytest.mark.parametrize('options', [dict(interval=0), dict(channel_order='BGR')])
def test_bad_arguments(options):
    with pytest.raises(ValueError, match='|'.join(options)):
        ClusterVisualizationHook(**options)
