"""Training, testing, voting and drawing through the tools."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config

from coc_mm.apis.config import load_config
from coc_mm.apis.start import build_model
from projects.point_cloud.point_cloud.data.solids import make_solid
from projects.point_cloud.point_cloud.models import PointMLPCoC
from projects.point_cloud.point_cloud.visualization import color_by_center, color_by_cluster

ROOT = Path(__file__).resolve().parents[3]
TINY = [
    'model.embed_dim=8',
    'model.points=32',
    'model.k_neighbors=[6,6,4]',
    'train_dataloader.dataset.per_class=4',
    'train_dataloader.batch_size=20',
    'val_dataloader.dataset.per_class=2',
    'test_dataloader.dataset.per_class=2',
    'train_cfg.max_epochs=1',
    'train_cfg.val_interval=1',
]


def test_train_from_elsewhere_then_test_with_votes(tmp_path, configs, tool, capsys):
    """As a command, from another folder and without the checkout on the path."""
    config = str(configs / 'pointmlp-coc_quick_solids.py')
    environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    environment['OMP_NUM_THREADS'] = '1'
    command = [sys.executable, str(ROOT / 'tools/train.py'), config, '--work-dir', 'run']
    done = subprocess.run(
        [*command, '--cfg-options', *TINY],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    checkpoint = tmp_path / 'run' / 'epoch_1.pth'
    record = next((tmp_path / 'run').glob('*/vis_data/*.json')).read_text()
    assert {'OA', 'mAcc'} <= set(json.loads(record.strip().splitlines()[-1]))
    # The config that the run wrote is whole: it works from where it lies.
    written = str(tmp_path / 'run' / 'pointmlp-coc_quick_solids.py')
    assert Config.fromfile(written).model.points == 32
    votes = 'tta_pipeline.2.votes=3'
    assert tool('test')([written, str(checkpoint), '--tta', '--cfg-options', votes]) == 0
    assert 'mAcc' in capsys.readouterr().out
    assert tool('test')([config, str(checkpoint)]) == 2
    assert 'of another model' in capsys.readouterr().err


def test_votes_are_averaged():
    from mmengine.structures import BaseDataElement

    from projects.point_cloud.point_cloud.models import VoteModel

    model = VoteModel(module=dict(type='coc_mm.PointMLPCoC', num_classes=3, points=32, embed_dim=4,
                                  k_neighbors=(4, 4, 4, 2)))  # fmt: skip
    scores = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.5, 0.4], [0.2, 0.6, 0.2]])
    versions = [BaseDataElement(gt_label=torch.tensor(1), pred_score=s) for s in scores]
    (merged,) = model.merge_preds([versions])
    torch.testing.assert_close(merged.pred_score, scores.mean(0))
    assert int(merged.pred_label) == 1
    assert int(merged.gt_label) == 1


def test_missing_data_are_told(tool, configs, capsys):
    config = str(configs / 'pointmlp-coc_1xb32-250e_scanobjectnn.py')
    assert tool('train')([config]) == 2
    error = capsys.readouterr().err
    assert 'training_objectdataset_augmentedrot_scale75.h5 does not exist' in error
    assert not Path('work_dirs').exists()


def test_the_papers_config(configs):
    config = load_config(str(configs / 'pointmlp-coc_1xb32-250e_scanobjectnn.py'))
    model = build_model(config)
    assert isinstance(model, PointMLPCoC)
    reference = PointMLPCoC()
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in reference.state_dict().items()
    }
    assert model.smoothing == 0.2
    optimizer = config.optim_wrapper.optimizer
    assert dict(optimizer) == dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4)
    assert config.param_scheduler.eta_min == pytest.approx(optimizer.lr / 100)
    assert (config.train_cfg.max_epochs, config.train_dataloader.batch_size) == (250, 32)
    assert config.train_dataloader.dataset.get('variant', 'PB_T50_RS') == 'PB_T50_RS'


@pytest.fixture(scope='module')
def small():
    torch.manual_seed(0)
    return PointMLPCoC(
        num_classes=3, points=64, embed_dim=8, dim_expansion=(2, 2), pre_blocks=(1, 1),
        pos_blocks=(1, 1), k_neighbors=(8, 5), reducers=(4, 2),
    )  # fmt: skip


def test_colors_by_center(small):
    points = make_solid('torus', np.random.default_rng(0), 200)
    alone, staged = color_by_center(points, 9), color_by_center(points, model=small, stage=0)
    assert (len(alone.centers), len(staged.centers)) == (9, 16)
    for found in (alone, staged):
        distance = np.linalg.norm(points[:, None] - points[found.centers], axis=-1)
        np.testing.assert_array_equal(found.groups, distance.argmin(1))
    with pytest.raises(ValueError, match='there are 2 stages'):
        color_by_center(points, model=small, stage=2)


def test_colors_by_cluster(small):
    """A point has the color of the cluster that it is most similar to, by a slow count."""
    points = make_solid('table', np.random.default_rng(0), 200)
    found = color_by_cluster(points, small, stage=0)
    small.eval()
    with torch.inference_mode():
        cloud = torch.from_numpy(points).T[None]
        _, (chosen, index, grouped, center), _ = next(iter(small.stage_inputs(cloud)))
        similarity = small.pre_blocks_list[0].similarity(grouped, center, -1)[0]
    np.testing.assert_array_equal(found.centers, chosen[0])
    expected = np.full(200, -1)
    for point in range(200):
        of_point = [
            (float(similarity[g, k]), -g)
            for g, k in (index[0] == point).nonzero().tolist()
        ]  # fmt: skip
        if of_point:
            expected[point] = -max(of_point)[1]
    np.testing.assert_array_equal(found.groups, expected)
    assert (expected == -1).any()
    assert ((found.similarity > 0) == (expected >= 0)).all()
    with pytest.raises(ValueError, match='there are 1 blocks'):
        color_by_cluster(points, small, stage=0, block=1)


def test_drawing_tool(tool, tmp_path, configs, capsys, write_h5):
    pytest.importorskip('plotly')
    from PIL import Image

    main = tool('visualization/point_clusters')
    cloud = make_solid('cone', np.random.default_rng(0), 300)
    np.save('cone.npy', cloud)
    assert main(['cone.npy', '--centers', '12']) == 0
    folder = tmp_path / 'work_dirs/point_clusters'
    with Image.open(folder / 'cone-center.png') as picture:
        assert picture.size == (1440, 768)
        # Colors stand out from white, grey and black.
        pixels = np.asarray(picture.convert('RGB')).astype(int)
    assert (np.ptp(pixels, axis=-1) > 60).sum() > 1000
    page = (folder / 'cone-center.html').read_text()
    assert 'plotly.js v' in page
    assert 'src="http' not in page
    assert page.count('scatter3d') > 1

    config = str(configs / 'pointmlp-coc_quick_solids.py')
    torch.save(build_model(load_config(config)).state_dict(), 'weights.pth')
    model = ['--config', config, '--checkpoint', 'weights.pth', '--out', 'a.png', '--out', 'a.html']
    write_h5(tmp_path / 'b.h5', cloud[None], [0])
    assert main(['b.h5:0', *model, '--stage', '1', '--up', 'y']) == 0
    assert 'by 32 clusters' in Path('a.html').read_text()
    capsys.readouterr()
    for name, text in {'b.h5': 'name one, b.h5:0', 'nothing.ply': 'does not exist'}.items():
        assert main([name, '--out', 'c.png']) == 2
        assert text in capsys.readouterr().err
