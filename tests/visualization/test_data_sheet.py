"""A sheet of training images with their labels, of each kind of own data."""

import numpy as np
import pytest
from exported_data import labelme
from own_data import COCO, FOLDERS, MASKS, resolved
from PIL import Image
from shrunk_configs import CONFIGS, make_ade, make_class_folders

from coc_mm.cli import train
from coc_mm.visualization.data_sheet import save_data_sheet
from coc_mm.visualization.sheets import picture_of


@pytest.mark.parametrize(
    ('name', 'make', 'count', 'drawn'),
    [(FOLDERS, make_class_folders, 8, False), (COCO, labelme, 1, True), (MASKS, make_ade, 4, True)],
)
def test_each_kind(tmp_path, monkeypatch, name, make, count, drawn):
    shown = []
    module = 'coc_mm.visualization.data_sheet'
    monkeypatch.setattr(f'{module}.picture_of', lambda x: shown.append(picture_of(x)) or shown[-1])
    tiles = []
    monkeypatch.setattr(
        f'{module}.contact_sheet', lambda rows, title: [tiles.extend(row) for row in rows]
    )
    monkeypatch.setattr(f'{module}.save_picture', lambda path, sheet: path)
    make(tmp_path)
    cfg, _ = resolved(name, tmp_path)
    assert save_data_sheet(cfg, tmp_path / 'a.png') == tmp_path / 'a.png'
    assert len(tiles) == len(shown) == count
    for (picture, caption), before in zip(tiles, shown, strict=True):
        assert max(picture.shape) == 320
        assert caption.endswith('.jpg')
        assert (caption.split(': ')[0] in cfg.classes) == (name == FOLDERS)
        assert drawn == (not np.array_equal(picture, before))


def test_show_data_alone(tmp_path, monkeypatch, capfd):
    make_class_folders(tmp_path / 'data')
    monkeypatch.chdir(tmp_path)
    config = str(CONFIGS / FOLDERS)
    options = [f'data_root={tmp_path / "data"}', 'fold=2/5', 'val_fraction=0.3']
    train.run([config, '--show-data', '--work-dir', 'out', '--cfg-options', *options])
    assert 'training images with their labels: out/training_data.png' in capfd.readouterr().out
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['training_data.png']
    assert Image.open(tmp_path / 'out' / 'training_data.png').width > 4 * 320
