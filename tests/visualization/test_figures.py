"""Picture files of a model's clusters."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_projects import write_project

from coc_mm.visualization import ClusterInspector, FigureWriter


@pytest.fixture(scope='module')
def writer(tmp_path_factory):
    pytest.importorskip('mmpretrain')
    from coc_mm.apis.config import load_config
    from coc_mm.apis.start import build_model

    folder = tmp_path_factory.mktemp('figures')
    config = load_config(str(write_project(folder, 'mmpretrain')))
    inspector = ClusterInspector(build_model(config).eval(), config)
    return FigureWriter(inspector, folder / 'out', height=64, prefix='untrained · ')


IMAGE = np.random.default_rng(0).integers(0, 255, (64, 150, 3), dtype=np.uint8)


def test_rows_grids_and_heads(writer):
    found = writer.inspector(IMAGE, block=-1)
    assert writer.caption(found).startswith('untrained · ')
    names = ['input'] + [f'stage {stage}, block 0, head 0' for stage in range(4)]
    assert [caption for _, caption in writer.row(found, 'input')] == names
    grids = writer.write_grids('a', found)
    assert [path.name for path in grids] == [f'a_stage{s}_block0.png' for s in range(4)]
    heads = writer.write_heads('a', found)
    assert [path.name for path in heads[:2]] == [f'a_stage0_block0_head{h}.png' for h in range(2)]
    assert len(heads) == 8
    for path in (*grids, *heads):
        assert path.parent == writer.out_dir
    assert Image.open(heads[0]).size == (1050, 448)  # enlarged to be seen


def test_a_frame_per_checkpoint(writer, tmp_path):
    weights = writer.inspector.model.state_dict()
    paths = [tmp_path / 'epoch_1.pth', tmp_path / 'last.pth']
    torch.save(dict(state_dict=weights), paths[0])
    changed = {
        k: v + torch.randn_like(v) if v.is_floating_point() else v for k, v in weights.items()
    }
    torch.save(dict(state_dict=changed, meta=dict(iter=7)), paths[1])
    for stage in (None, 0):
        moving = Image.open(writer.write_gif('a', IMAGE, paths, stage))
        assert moving.n_frames == 2
        frames = []
        for number in range(2):
            moving.seek(number)
            frames.append(np.asarray(moving.convert('RGB')).astype(int))
        assert np.abs(frames[0] - frames[1]).max() > 50
    for key, value in writer.inspector.model.state_dict().items():
        assert torch.equal(value, changed[key])
